// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/assert.hpp"
#include "moe/impl.hpp"

/// Demand: what a layer step needs, gets, and leaves behind.
namespace harvest::moe {
namespace {

/// What goes before everything that decode may need. Of these the latest goes first: prefill passes over the
/// layers again and again, and of a cycle that does not fit only what stays at rest is there the next time.
/// Far below all values, and near enough to 0 that a double tells the steps of a lifetime apart.
constexpr double kExpendable = -1e15;
constexpr std::size_t kSlotsOfPrefill = 4;
constexpr TimeNs kShortestPauseNs = 1'000;
constexpr TimeNs kLongestPauseNs = 64'000;

}  // namespace

Result<std::uint32_t> ExpertCache::Impl::begin(std::uint32_t layer, std::span<const std::uint32_t> experts,
                                               StreamId stream, Phase phase) {
  MutexLock lock(mutex_);
  const auto free = std::find_if(steps_.begin(), steps_.end(), [](const Step& step) { return !step.open; });
  if (free == steps_.end())
    return fail(ErrorCode::busy, fmt::format("{} steps are open, the limit is {}", kMostSteps, kMostSteps));
  Step& step = *free;
  step.layer = layer;
  step.phase = phase;
  step.stream = stream;
  settle();
  if (Status status = name_experts(step, experts); !status) return tl::unexpected(status.error());
  if (backend_.is_capturing(stream))
    return fail(
        ErrorCode::not_supported,
        fmt::format(
            "stream {} is being captured into a graph, whose replays would read slots that hold other "
            "experts by then; begin the step on the stream on which the graph is launched",
            static_cast<std::uint32_t>(stream)));
  if (step.here < step.entries.size()) {
    if (const auto device = backend_.stream_device(stream); !device || *device != cache_.config().consumer)
      return fail(ErrorCode::invalid_argument,
                  device ? fmt::format("stream {} is of device {}, the consumer is {}",
                                       static_cast<std::uint32_t>(stream), *device, cache_.config().consumer)
                         : device.error().message);
  }
  adapt_windows(layer);
  waited_ = step.here < step.entries.size();
  if (phase == Phase::decode) note_use(step);
  step.open = true;
  step.next = 0;
  step.watch = kNone;
  step.status = {};
  step.table.clear();
  for (Entry& entry : step.entries)
    if (entry.slot != kNone) slots_.add_step(entry.slot, layer);
  if (step.here < step.entries.size()) {
    give_slots(step, phase == Phase::prefill);
    if (phase == Phase::decode)
      for (const Entry& entry : step.entries) stats_.absent_needed += entry.brought ? 1 : 0;
    if (step.waiting == 0) {
      close(step);
      return fail(ErrorCode::busy, fmt::format("all {} slots are in open steps", slot_count_));
    }
    if (Status status = bring_all(step); !status) {
      close(step);
      return tl::unexpected(status.error());
    }
    watch_arrivals(step, std::span(step.entries).subspan(step.here, step.waiting - step.here));
  }
  ++stats_.steps;
  if (phase == Phase::decode) ask_predictor(layer, step.entries);
  pump();
  return static_cast<std::uint32_t>(&step - steps_.data());
}

/// Lists each expert once: those that are here, those that are coming, those that are absent.
Status ExpertCache::Impl::name_experts(Step& step, std::span<const std::uint32_t> experts) {
  step.entries.clear();
  ++marks_;
  for (const std::uint32_t number : experts) {
    if (Status status = check_expert(step.layer, number); !status) return status;
    Expert& expert = experts_[index_of(step.layer, number)];
    if (expert.pieces == 0)
      return fail(ErrorCode::not_found,
                  fmt::format("expert {} of layer {} was not added", number, step.layer));
    if (expert.mark == marks_) continue;
    expert.mark = marks_;
    const bool here = expert.slot != kNone && is_here(slots_.at(expert.slot));
    step.entries.push_back({index_of(step.layer, number), expert.slot, here});
  }
  const auto rank = [](const Entry& entry) { return entry.here ? 0 : entry.slot != kNone ? 1 : 2; };
  std::size_t here = 0;
  std::size_t slotted = 0;
  for (const Entry& entry : step.entries) {
    here += rank(entry) == 0 ? 1 : 0;
    slotted += rank(entry) < 2 ? 1 : 0;
  }
  step.here = here;
  step.waiting = slotted;
  if (here < step.entries.size())
    std::sort(step.entries.begin(), step.entries.end(), [&](const Entry& a, const Entry& b) {
      return rank(a) != rank(b) ? rank(a) < rank(b) : a.expert < b.expert;
    });
  return {};
}

double ExpertCache::Impl::frequency_of(const Expert& expert) const {
  const std::uint32_t passes = layer_pass_[expert.layer] - expert.last_use_pass;
  return passes < decay_.size() ? static_cast<double>(expert.frequency * decay_[passes]) : 0.0;
}

void ExpertCache::Impl::note_use(const Step& step) {
  ++step_clock_;
  layer_step_[step.layer] = step_clock_;
  ++layer_pass_[step.layer];
  for (const Entry& entry : step.entries) {
    Expert& expert = experts_[entry.expert];
    expert.frequency = static_cast<float>(frequency_of(expert)) + (1.0F - decay_[1]);
    expert.last_use_pass = layer_pass_[step.layer];
    expert.last_use_step = step_clock_;
  }
}

double ExpertCache::Impl::value_of(const Expert& expert) const {
  return slot_value_({.layers = config_.model.layers,
                      .step = layer_step_[expert.layer],
                      .last_use_step = expert.last_use_step,
                      .passes_since_use = layer_pass_[expert.layer] - expert.last_use_pass,
                      .frequency = frequency_of(expert)});
}

/// As many of those that wait as there are slots whose content may go. Prefill goes through a few slots
/// rather than take what decode has learnt to keep.
void ExpertCache::Impl::give_slots(Step& step, bool spare_decode) {
  const auto holds = std::count_if(step.entries.begin(), step.entries.end(),
                                   [](const Entry& entry) { return entry.slot != kNone && !entry.released; });
  for (auto held = static_cast<std::size_t>(holds); step.waiting < step.entries.size();
       ++step.waiting, ++held) {
    Entry& entry = step.entries[step.waiting];
    if (const std::uint32_t has = experts_[entry.expert].slot; has != kNone) {  // somebody else brought it
      entry.here = is_here(slots_.at(has));
      entry.slot = has;
      slots_.add_step(has, step.layer);
      continue;
    }
    const std::uint32_t slot = slots_.next_victim();
    if (slot == kNone) return;
    const bool decodes = slots_.at(slot).expert != kNone && !slots_.at(slot).expendable;
    if (spare_decode && decodes && held >= kSlotsOfPrefill) return;
    occupy(slot, entry.expert, value_of(experts_[entry.expert]));
    ready_ns_[slot] = 0;
    slots_.add_step(slot, step.layer);
    entry.slot = slot;
    entry.brought = true;
  }
}

void ExpertCache::Impl::note_last_use(Slot& slot, StreamId stream, std::uint32_t event) {
  uses_.hold(event);
  for (Use& use : slot.uses) {
    if (use.stream != stream) continue;
    uses_.drop(use.event);
    use.event = event;
    return;
  }
  for (Use& use : slot.uses) {
    if (use.stream != StreamId::none && !is_over(use)) continue;
    uses_.drop(use.event);
    use = {stream, event};
    return;
  }
  slot.uses.push_back({stream, event});
}

bool ExpertCache::Impl::is_over(const Use& use) const {
  return use.event != kNone && backend_.query_event(uses_.event(use.event)) != EventState::pending;
}

/// The end of the work on a step's stream, for the slots that it read. Asks with patience, since afterwards
/// the stream may be destroyed.
ExpertCache::Impl::End ExpertCache::Impl::end_of_work(const Step& step) {
  const auto event = lanes_.record(step.stream);
  if (event) return {true, uses_.add(*event)};
  // A stream that is being captured runs nothing now; one that is lost or gone, nothing any more.
  return {event.error().code == ErrorCode::out_of_memory, kNone};
}

void ExpertCache::Impl::release(Step& step, Entry& entry, const End& end) {
  if (entry.slot == kNone || entry.released) return;
  entry.released = true;
  if (end.reads) note_last_use(slots_.at(entry.slot), step.stream, end.use);
  slots_.end_step(entry.slot, step.layer);
}

/// The experts before `step.next` have their work in the stream. If others wait for a slot, one of theirs is
/// refilled.
void ExpertCache::Impl::refill(Step& step) {
  if (step.waiting == step.entries.size() || step.next == 0 || !step.status) return;
  const End end = end_of_work(step);
  if (!end.reads) {
    step.status =
        fail(ErrorCode::unavailable,
             fmt::format("stream {} has no event to tell when an expert's work ends, and a step of {} "
                         "experts in fewer slots needs one",
                         static_cast<std::uint32_t>(step.stream), step.entries.size()));
    return;
  }
  release(step, step.entries[step.next - 1], end);
  uses_.drop(end.use);
  bring_more(step, step.phase == Phase::prefill);
}

/// Gives slots to entries that wait for one, and begins their copies.
void ExpertCache::Impl::bring_more(Step& step, bool spare_decode) {
  const std::size_t first = step.waiting;
  give_slots(step, spare_decode);
  for (const Entry& entry : std::span(step.entries).subspan(first, step.waiting - first))
    if (Status status = bring(entry.slot, experts_[entry.expert].pieces, Why::demand, {}); !status)
      step.status = status;
  watch_arrivals(step, std::span(step.entries).subspan(first, step.waiting - first));
}

void ExpertCache::Impl::watch_arrivals(Step& step, std::span<const Entry> coming) {
  for (const Entry& entry : coming) {
    if (step.watch == kNone) step.watch = stalls_.open();
    stalls_.expect(step.watch, slots_.at(entry.slot).flights);
  }
}

/// And so `confirm` answers for the slot's bytes, all of them.
void ExpertCache::Impl::order_behind_arrival(StreamId stream, Slot& slot, Part part) {
  slot.delivered = true;
  if (lanes_.ended(slot.flights)) return;
  lanes_.order(stream, part == Part::head ? slot.head_flights : slot.flights);
  for (std::size_t lane = 0; lane < kLanes; ++lane)
    delivered_[lane] = std::max(delivered_[lane], slot.flights[lane]);
}

bool ExpertCache::Impl::deliver(Step& step, Entry& entry, Part part, ReadyExpert& answer) {
  if (entry.slot == kNone) {
    step.status = fail(ErrorCode::busy, fmt::format("all {} slots are in open steps", slot_count_));
    return false;
  }
  Slot& slot = slots_.at(entry.slot);
  if (slot.broken)
    if (Status status = bring(entry.slot, experts_[entry.expert].pieces, Why::demand, {}); !status)
      step.status = status;
  if (!step.status) return false;
  const FlightNumbers& awaited = part == Part::head ? slot.head_flights : slot.flights;
  if (step.watch != kNone) stalls_.wait(step.watch, step.stream, awaited, !step.table.empty());
  order_behind_arrival(step.stream, slot, part);
  const Tier from = entry.here ? Tier::local : slot.from;
  answer = {experts_[entry.expert].number, entry.slot, memory_ + entry.slot * slot_bytes_, from};
  return true;
}

void ExpertCache::Impl::count(const Step& step, const ReadyExpert& delivered) {
  Slot& slot = slots_.at(delivered.slot);
  if (slot.guessed) ++stats_.guesses_used;
  slot.guessed = false;
  ++stats_.layers[step.layer][static_cast<std::size_t>(step.phase)]
        .experts[static_cast<std::size_t>(delivered.from)];
}

const ReadyExpert* ExpertCache::Impl::next(std::uint32_t number, Part part) {
  MutexLock lock(mutex_);
  Step& step = steps_[number];
  settle();
  refill(step);
  if (step.next == step.entries.size() || !step.status) return nullptr;
  if (!deliver(step, step.entries[step.next], part, step.answer)) return nullptr;
  ++step.next;
  count(step, step.answer);
  return &step.answer;
}

void ExpertCache::Impl::rest(std::uint32_t number) {
  MutexLock lock(mutex_);
  Step& step = steps_[number];
  settle();
  if (step.next == 0 || step.entries[step.next - 1].released) return;
  Slot& slot = slots_.at(step.entries[step.next - 1].slot);
  if (step.watch != kNone) stalls_.wait(step.watch, step.stream, slot.flights, false);
  order_behind_arrival(step.stream, slot);
}

Result<std::span<const ReadyExpert>> ExpertCache::Impl::all(std::uint32_t number) {
  MutexLock lock(mutex_);
  Step& step = steps_[number];
  if (!step.table.empty()) return std::span<const ReadyExpert>(step.table);
  if (step.next > 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} of {} experts were taken by next(); so are the others", step.next,
                            step.entries.size()));
  settle();
  bring_more(step, false);
  if (step.waiting < step.entries.size())
    return fail(ErrorCode::out_of_memory,
                fmt::format("the step has {} experts, and there are slots for {}; take them one by one",
                            step.entries.size(), step.waiting));
  step.table.reserve(step.entries.size());
  for (Entry& entry : step.entries) {
    ReadyExpert ready;
    if (!deliver(step, entry, Part::all, ready)) {
      step.table.clear();
      return tl::unexpected(step.status.error());
    }
    step.table.push_back(ready);
  }
  for (const ReadyExpert& ready : step.table) count(step, ready);
  step.next = step.entries.size();
  return std::span<const ReadyExpert>(step.table);
}

/// The step's layer has passed: what its experts in slots are worth until it comes again.
void ExpertCache::Impl::judge_layer(const Step& step) {
  const double expendable = kExpendable - static_cast<double>(stats_.steps);
  if (step.phase == Phase::prefill) {
    for (const Entry& entry : step.entries) {
      if (!entry.brought || entry.slot == kNone || slots_.at(entry.slot).expert != entry.expert) continue;
      slots_.at(entry.slot).expendable = true;
      slots_.set_value(entry.slot, step.layer, expendable);
    }
    return;
  }
  for (const std::uint32_t number : slots_.of_layer(step.layer)) {
    Slot& slot = slots_.at(number);
    const Expert& expert = experts_[slot.expert];
    if (expert.last_use_step == layer_step_[step.layer])
      slot.expendable = false;
    else if (slot.guessed)
      slot.expendable = true;
    slots_.set_value(number, step.layer, slot.expendable ? expendable : value_of(expert));
  }
}

void ExpertCache::Impl::close(Step& step) {
  const End end = step.next > 0 ? end_of_work(step) : End{};
  for (Entry& entry : step.entries) release(step, entry, end);
  uses_.drop(end.use);
  if (step.watch != kNone) stalls_.close(step.watch);
  judge_layer(step);
  step.open = false;
}

Status ExpertCache::Impl::end(std::uint32_t number) {
  MutexLock lock(mutex_);
  Step& step = steps_[number];
  close(step);
  pump();
  return step.status;
}

std::size_t ExpertCache::Impl::size_of(std::uint32_t step) {
  MutexLock lock(mutex_);
  return steps_[step].entries.size();
}

std::size_t ExpertCache::Impl::resident_of(std::uint32_t step) {
  MutexLock lock(mutex_);
  return steps_[step].here;
}

Status ExpertCache::Impl::confirm() {
  MutexLock lock(mutex_);
  // Waits without the lock, and for no more than what was delivered before: other threads go on.
  const FlightNumbers awaited = delivered_;
  TimeNs pause_ns = kShortestPauseNs;
  for (settle(); !lanes_.ended(awaited); settle()) {
    lock.unlock();
    backend_.sleep_until(backend_.now_ns() + pause_ns);
    pause_ns = std::min(2 * pause_ns, kLongestPauseNs);
    lock.lock();
  }
  if (failed_expert_ == kNone) return {};
  const Expert& expert = experts_[failed_expert_];
  failed_expert_ = kNone;
  return fail(
      ErrorCode::copy_failed,
      fmt::format("a copy of expert {} of layer {} failed in flight: what was computed since the last "
                  "confirm is worth nothing",
                  expert.number, expert.layer));
}

}  // namespace harvest::moe
