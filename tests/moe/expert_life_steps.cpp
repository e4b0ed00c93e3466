// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <utility>

#include "moe/expert_life.hpp"

/// What the consumer does in a life: layer steps, and reading what they deliver.
namespace harvest::moe {
namespace {

constexpr std::size_t kMostOpenSteps = 4;

}  // namespace

/// Decode has favourites in each layer, which move slowly; prefill wants nearly everything.
std::vector<std::uint32_t> ExpertLife::draw_experts(std::uint32_t layer, Phase phase) {
  const std::uint32_t all = plan_.model.experts;
  const auto any = [&] { return static_cast<std::uint32_t>(random_.below(all)); };
  std::vector<std::uint32_t> experts;
  if (phase == Phase::prefill && random_.chance(0.6)) {
    for (std::uint32_t expert = 0; expert < all; ++expert) experts.push_back(expert);
    return experts;
  }
  const auto shift = static_cast<std::uint32_t>(begun_ / 100);
  const std::uint64_t count =
      phase == Phase::prefill ? random_.between(1, 2 * all) : random_.between(1, 2 * plan_.model.top_k);
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto favourite = static_cast<std::uint32_t>(random_.below(plan_.favourites));
    experts.push_back(random_.chance(0.8) ? (layer * 3 + favourite + shift) % all : any());
  }
  return experts;
}

/// Whether a copy may be refused, and a step with it.
bool ExpertLife::may_refuse() const {
  return faults_.refuse_copy.rate > 0;
}

ExpertLife::OpenStep* ExpertLife::open_step(std::uint32_t layer, std::vector<std::uint32_t> experts,
                                            Phase phase, StreamId stream) {
  auto begun = experts_->begin_layer(layer, experts, stream, phase);
  observe(begun ? 1 : static_cast<std::uint64_t>(begun.error().code));
  if (!begun) {
    const bool busy = begun.error().code == ErrorCode::busy;
    require(busy ? !open_.empty() : may_refuse(), "a step with {} others open is refused: {}", open_.size(),
            begun.error().message);
    ++coverage_.refused_steps;
    begun_ = experts_->stats().steps;
    return nullptr;
  }
  ++begun_;
  ++coverage_.steps;
  OpenStep open;
  open.step = std::move(*begun);
  open.layer = layer;
  open.phase = phase;
  open.stream = stream;
  open.wanted.insert(experts.begin(), experts.end());
  require(open.step.size() == open.wanted.size(), "a step of {} experts has {}", open.wanted.size(),
          open.step.size());
  if (open.step.size() > plan_.slots) ++coverage_.waves;
  open_.push_back(std::move(open));
  return &open_.back();
}

void ExpertLife::begin_step() {
  if (open_.size() >= kMostOpenSteps) return end_step();
  const std::size_t stream = random_.below(streams_.size());
  const Phase phase = random_.chance(0.85) ? Phase::decode : Phase::prefill;
  std::uint32_t layer = next_layer_[stream];
  next_layer_[stream] = (layer + 1) % plan_.model.layers;
  if (random_.chance(0.15)) layer = static_cast<std::uint32_t>(random_.below(plan_.model.layers));
  if (!open_.empty() && random_.chance(0.4)) layer = open_.back().layer;  // steps that share experts
  static_cast<void>(open_step(layer, draw_experts(layer, phase), phase, streams_[stream]));
}

void ExpertLife::take_delivery(OpenStep& open, const ReadyExpert& ready) {
  require(open.wanted.contains(ready.expert), "expert {} of layer {} was not asked for", ready.expert,
          open.layer);
  require(open.came.insert(ready.expert).second, "expert {} of layer {} came twice", ready.expert,
          open.layer);
  require(ready.slot < plan_.slots && ready.address == first_slot_ + ready.slot * slot_stride_ &&
              ready.address == experts_->slot_address(ready.slot),
          "expert {} is in slot {}, at another address", ready.expert, ready.slot);
  require(open.came.size() > open.step.resident() || ready.from == Tier::local,
          "expert {} was here, and came from {}", ready.expert, to_string(ready.from));
  const auto from = static_cast<std::size_t>(ready.from);
  require(from < kTiers, "expert {} came from nowhere", ready.expert);
  ++counted_[open.layer][static_cast<std::size_t>(open.phase)].experts[from];
  ++coverage_.delivered[from];
  observe(ready.expert << 8U | ready.slot << 2U | from);
  const std::size_t period = periods_.size() - 1;
  if (random_.chance(0.3)) kernel(open.stream);
  read(open.layer, ready, period, open.stream);
  if (!open.by_table) open.held.clear(), open.held_since.clear();
  open.held.push_back(ready);
  open.held_since.push_back(period);
}

bool ExpertLife::take_next(OpenStep& open) {
  const ReadyExpert* const ready = open.step.next_head();
  if (ready != nullptr) {
    open.step.rest();
    take_delivery(open, *ready);
    return true;
  }
  open.held.clear();
  open.held_since.clear();
  open.over = true;
  return false;
}

/// All at once, where there are slots for all.
void ExpertLife::take_table(OpenStep& open) {
  const auto table = open.step.all();
  observe(table ? table->size() : static_cast<std::uint64_t>(table.error().code));
  if (!table) {
    if (table.error().code == ErrorCode::out_of_memory) {
      require(open.wanted.size() > plan_.slots || open_.size() > 1, "no slots for {} experts: {}",
              open.wanted.size(), table.error().message);
      return;  // they can still be taken one by one
    }
    require(may_refuse(), "a table of {} experts is refused: {}", open.wanted.size(), table.error().message);
    open.over = true;
    return;
  }
  open.by_table = true;
  for (const ReadyExpert& ready : *table) take_delivery(open, ready);
  require(open.step.next() == nullptr, "more experts come behind a table of all");
  open.over = true;
}

void ExpertLife::advance_step() {
  if (open_.empty()) return begin_step();
  OpenStep& open = open_[random_.below(open_.size())];
  if (open.over) return;
  if (open.came.empty() && random_.chance(0.2)) return take_table(open);
  const std::uint64_t times = random_.between(1, 4);
  for (std::uint64_t i = 0; i < times && take_next(open); ++i) {
  }
}

void ExpertLife::close_step(std::size_t number) {
  OpenStep& open = open_[number];
  const bool all_came = open.came == open.wanted;
  const bool over = open.over;
  const Status ended = experts_->end_layer(std::move(open.step));
  observe(ended ? 1 : static_cast<std::uint64_t>(ended.error().code));
  if (ended) {
    require(all_came || !over, "a step ended well, and delivered {} of {} experts", open.came.size(),
            open.wanted.size());
  } else {
    const bool busy = ended.error().code == ErrorCode::busy;
    require(!all_came || may_refuse(), "a step delivered all, and failed: {}", ended.error().message);
    require(busy ? plan_.slots < 64 : true, "a step failed: {}", ended.error().message);
  }
  open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(number));
}

void ExpertLife::end_step() {
  if (!open_.empty()) close_step(random_.below(open_.size()));
}

void ExpertLife::close_all() {
  while (!open_.empty()) close_step(open_.size() - 1);
}

void ExpertLife::whole_step() {
  const std::size_t before = open_.size();
  begin_step();
  if (open_.size() <= before) return;
  OpenStep& open = open_.back();
  if (random_.chance(0.2)) take_table(open);
  while (!open.over && take_next(open)) {
  }
  close_step(open_.size() - 1);
}

/// A second kernel of an open step, on what was delivered before.
void ExpertLife::read_again() {
  if (open_.empty()) return;
  const OpenStep& open = open_[random_.below(open_.size())];
  if (open.held.empty()) return;
  const std::size_t which = random_.below(open.held.size());
  read(open.layer, open.held[which], open.held_since[which], open.stream);
}

// --- reading ------------------------------------------------------------------------------------------

void ExpertLife::read(std::uint32_t layer, const ReadyExpert& ready, std::size_t period, StreamId stream) {
  check_reads(false);
  if (free_buffers_.empty()) {
    backend_->wait_event(reads_.front().event, kNever);
    check_reads(false);
  }
  require(!free_buffers_.empty(), "a read does not end");
  const Copy copy{free_buffers_.back(), ready.address, plan_.model.expert_bytes()};
  if (!backend_->copy(stream, {0, 0}, {&copy, 1})) return;
  free_buffers_.pop_back();
  auto event = backend_->record_event(stream);
  while (!event) event = backend_->record_event(stream);
  reads_.push_back({layer, ready.expert, period, copy.destination, *event});
}

void ExpertLife::check_reads(bool wait) {
  std::erase_if(reads_, [&](const Read& read) {
    const EventState state =
        wait ? backend_->wait_event(read.event, kNever) : backend_->query_event(read.event);
    if (state == EventState::pending) return false;
    if (state == EventState::complete) judge(read);
    backend_->release_event(read.event);
    free_buffers_.push_back(read.buffer);
    return true;
  });
}

void ExpertLife::judge(const Read& read) {
  ++coverage_.reads;
  std::string wrong;
  for (std::size_t i = 0; i < plan_.model.tensors.size() && wrong.empty(); ++i) {
    const std::uint64_t offset = plan_.model.tensor_offset(i);
    const std::byte* const expected =
        weights_of(read.layer, read.expert) + offset + i * plan_.tensor_gap_bytes;
    if (std::memcmp(read.buffer + offset, expected, plan_.model.tensors[i].bytes) != 0)
      wrong = fmt::format("expert {} of layer {} has wrong bytes in tensor {}", read.expert, read.layer, i);
  }
  if (wrong.empty()) return;
  ++coverage_.wrong_reads;
  Period& period = periods_[read.period];
  period.wrong_read = true;
  require(!period.confirmed || period.failed, "{}, and confirm said that all arrived", wrong);
}

void ExpertLife::confirm() {
  const Status told = experts_->confirm();
  observe(told ? 1 : 0);
  Period& period = periods_.back();
  period.confirmed = true;
  period.failed = !told;
  require(period.failed || !period.wrong_read, "wrong bytes were read, and confirm says that all arrived");
  if (period.failed) {
    ++coverage_.failures_told;
    require(told.error().code == ErrorCode::copy_failed, "confirm fails with {}", told.error().message);
    require(failed_copies() > failures_before_period_, "no copy failed, and confirm says: {}",
            told.error().message);
    for (OpenStep& open : open_) open.held.clear(), open.held_since.clear();
  }
  periods_.emplace_back();
}

}  // namespace harvest::moe
