// SPDX-License-Identifier: Apache-2.0
#include "cli/kv/server.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/assert.hpp"

/// Passes over the model: what is in them, how long they take, and what follows from them.
namespace harvest::cli {
namespace {

/// Of what peers lend, for sequences that wait for their turn: nearly all, as copies of what the host has
/// make room. Of host memory, where it is all that there is: no more, so that most prefixes stay.
constexpr double kPeersShare = .95;
constexpr double kHostShare = .5;
/// Without turns: what a sequence needs room for to come in.
constexpr std::uint32_t kTokensAhead = 64;
constexpr double kAtOnce = 1e15;  // bytes a second

/// A server pins its host memory before it serves. For the bound the GPU has the memory of its peers too, and
/// what is on the host is there at once.
Machine machine_for(const ServeRun& run, ServeStrategy strategy) {
  Machine machine = run.machine;
  machine.costs.pin_ns_per_gib = 0;
  if (strategy != ServeStrategy::bound) return machine;
  machine.devices[0].info.total_bytes += run.peer_bytes * run.peers.size();
  for (MachineLink& link : machine.links) {
    const bool host_wire = (link.info.from == kHost) != (link.info.to == kHost);
    if (!host_wire || std::max(link.info.from, link.info.to) != 0) continue;
    link.ports.clear();
    link.info.bandwidth_bytes_per_s = kAtOnce;
    link.info.latency_ns = link.info.issue_ns = link.info.issue_batched_ns = 0;
  }
  return machine;
}

}  // namespace

Server::~Server() {
  sequences_.clear();  // with their loads
  lower_.reset();
  if (compute_ != StreamId::none) static_cast<void>(backend_->destroy_stream(compute_));
}

Status Server::prepare() {
  SimulationOptions options;
  options.bytes = SimulatedBytes::phantom;
  options.seed = run_.seed;
  Machine machine = machine_for(run_, strategy_);
  auto backend = make_simulated_backend(std::move(machine), options);
  if (!backend) return tl::unexpected(backend.error());
  backend_ = std::move(*backend);
  const auto stream = backend_->create_stream(0);
  if (!stream) return tl::unexpected(stream.error());
  compute_ = *stream;

  std::uint64_t bytes = run_.local_bytes;
  if (strategy_ == ServeStrategy::bound) bytes += run_.peer_bytes * run_.peers.size();
  const auto pages = static_cast<std::uint32_t>(bytes / run_.block_bytes());
  for (const ServedRequest& request : run_.requests) {
    const std::uint64_t most = pages_for(request.input_tokens + request.output_tokens + quantum_tokens());
    if (most > pages)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("a request of {} tokens and {} more needs {} blocks of {}; local memory of {} "
                              "has {}",
                              request.input_tokens, request.output_tokens, most,
                              format_bytes(run_.block_bytes()), format_bytes(bytes), pages));
  }
  pages_.emplace(pages);
  auto turns = kv::Turns::create({.room_tokens = std::uint64_t{pages} * run_.block_tokens,
                                  .quantum_tokens = quantum_tokens(),
                                  .page_tokens = run_.block_tokens,
                                  .most_running = run_.most_running,
                                  .away_tokens = away_tokens(),
                                  .new_first = run_.new_first,
                                  .take_turns = takes_turns()});
  if (!turns) return tl::unexpected(turns.error());
  turns_ = std::move(*turns);
  sequences_.resize(run_.requests.size());
  if (strategy_ != ServeStrategy::recompute) {
    auto lower = LowerTiers::create(*backend_, run_, strategy_, pages, compute_);
    if (!lower) return tl::unexpected(lower.error());
    lower_ = std::move(*lower);
    pages_->on_forget = [this](const Key& key, std::uint32_t) { lower_->blocks().forget_local({&key, 1}); };
  }
  begin_ns_ = backend_->now_ns();
  return {};
}

/// Sequences that wait for their turn get as much over the host as over peers, as far as it has that.
std::uint64_t Server::away_tokens() const {
  double bytes = kPeersShare * static_cast<double>(run_.peer_bytes * run_.peers.size());
  if (strategy_ == ServeStrategy::host)
    bytes = std::min(bytes, kHostShare * static_cast<double>(run_.host_bytes));
  return static_cast<std::uint64_t>(bytes / static_cast<double>(run_.rank.kv_bytes_per_token()));
}

std::uint32_t Server::quantum_tokens() const {
  return takes_turns() ? run_.quantum_tokens : kTokensAhead;
}

Status Server::serve(Progress& progress) {
  figures_.strategy = strategy_;
  while (figures_.completed < run_.requests.size()) {
    if (Status heard = hear_of_arrivals(); !heard) return heard;
    if (Status followed = follow_turns(); !followed) return followed;
    compose();
    if (work_.empty())
      idle();
    else if (Status passed = run_pass(); !passed)
      return passed;
    progress.at(figures_.completed);
  }
  figures_.duration_ns = backend_->now_ns() - begin_ns_;
  return {};
}

void Server::compose() {
  work_ = {};
  decoding_.clear();
  chunks_.clear();
  add_next_tokens();
  add_chunks(false);
  add_chunks(true);
}

/// Every sequence that answers gets its next token, unless there is no room for it.
void Server::add_next_tokens() {
  for (const kv::Turns::Id id : turns_->running()) {
    if (turns_->can_run(id) == 0) continue;
    Sequence& sequence = *sequences_[id];
    grow(sequence);
    decoding_.push_back(&sequence);
    work_.add_next_token(static_cast<double>(sequence.computed));
  }
}

/// Of prompts that are waited for by nothing, or of those whose blocks are still on their way. These join
/// when the rest is expected to come while the pass computes, layer by layer; or when there is nothing else
/// to do.
void Server::add_chunks(bool loading) {
  for (Sequence* const one : prefilling_) {
    Sequence& sequence = *one;
    if (sequence.load.has_value() != loading) continue;
    const auto taken = static_cast<std::uint64_t>(work_.tokens);
    if (taken >= run_.chunk_tokens) return;
    const std::uint64_t tokens = std::min(run_.chunk_tokens - taken, sequence.target - sequence.computed);
    PassWork with = work_;
    with.add_chunk(static_cast<double>(tokens), static_cast<double>(sequence.computed));
    if (sequence.computed + tokens == sequence.target) with.sampled += 1;
    const bool may_wait = !work_.empty() && !waits_for_all();
    if (loading && may_wait && backend_->now_ns() + run_.rank.pass_ns(with) < sequence.load_due_ns) continue;
    work_ = with;
    chunks_.push_back({&sequence, tokens});
  }
}

Status Server::run_pass() {
  const TimeNs begin = backend_->now_ns();
  if (Status submitted = submit(); !submitted) return submitted;
  if (Status waited = wait_for_pass(); !waited) return waited;
  pass_ns_ += backend_->now_ns() - begin;
  for (const Chunk& chunk : chunks_)
    if (Status done = after_chunk(chunk); !done) return done;
  for (Sequence* const sequence : decoding_) {
    ++sequence->computed;
    turns_->ran(sequence->id, 1);
    if (Status named = name_blocks(*sequence); !named) return named;
    draw_token(*sequence);
  }
  finish_served();
  poll();
  return {};
}

/// A kernel for each group of layers, behind the blocks that it reads.
Status Server::submit() {
  const TimeNs layer_ns = run_.rank.layer_ns(work_);
  const TimeNs head_ns = run_.rank.head_ns(work_);
  const std::uint32_t layers = run_.rank.model().layers;
  computed_ns_ += layers * layer_ns + head_ns;
  const bool loads =
      std::ranges::any_of(chunks_, [](const Chunk& c) { return c.sequence->load.has_value(); });
  const std::uint32_t group = loads ? (layers + run_.layer_groups - 1) / run_.layer_groups : layers;
  for (std::uint32_t first = 0; first < layers; first += group) {
    const std::uint32_t end = std::min(first + group, layers);
    for (const Chunk& chunk : chunks_) {
      if (!chunk.sequence->load) continue;
      const std::uint32_t behind = waits_for_all() ? layers - 1 : end - 1;
      if (Status ordered = chunk.sequence->load->order_behind(behind, compute_); !ordered) return ordered;
    }
    const TimeNs ns = (end - first) * layer_ns + (end == layers ? head_ns : 0);
    if (Status given = backend_->submit_kernel(compute_, ns); !given) return given;
  }
  return {};
}

Status Server::wait_for_pass() {
  const auto end = backend_->record_event(compute_);
  if (!end) return tl::unexpected(end.error());
  while (backend_->wait_event(*end, lower_ ? next_poll_ns_ : kNever) == EventState::pending) poll();
  backend_->release_event(*end);
  return {};
}

Status Server::after_chunk(const Chunk& chunk) {
  Sequence& sequence = *chunk.sequence;
  figures_.computed_tokens += chunk.tokens;
  if (sequence.load && !finish_load(sequence)) return {};  // what was computed behind a gap means nothing
  sequence.computed += chunk.tokens;
  if (Status named = name_blocks(sequence); !named) return named;
  if (sequence.computed < sequence.target) return {};
  std::erase(prefilling_, &sequence);
  turns_->came(sequence.id);
  if (sequence.times_left > 0) turns_->ran(sequence.id, 1);  // the last token that was drawn before it left
  draw_token(sequence);
  return {};
}

/// Answers whether all of it came. Else the sequence goes on from the first block that did not.
bool Server::finish_load(Sequence& sequence) {
  const auto lost = sequence.load->finish();
  const std::size_t came = lost.empty() ? sequence.loading.size() : lost.front();
  for (std::size_t i = 0; i < sequence.loading.size(); ++i) {
    const auto& [block, tier, key] = sequence.loading[i];
    if (i < came && !lower_->holds(sequence.pages[block], key)) figures_.wrong_bytes += run_.block_bytes();
  }
  if (!lost.empty()) forget_from(sequence, sequence.loading[came].block);
  const bool all = lost.empty();
  sequence.load.reset();
  unpark(sequence);
  return all;
}

/// What was found from this block on is to be computed after all. Where a page is shared, the same keys and
/// values are written to it again.
void Server::forget_from(Sequence& sequence, std::size_t first) {
  const std::size_t end = sequence.computed / run_.block_tokens;
  if (sequence.times_left > 0 && end > first) figures_.parked_lost += end - first;
  for (std::size_t block = first; block < end && sequence.times_left == 0; ++block) {
    const auto loaded = std::ranges::find(sequence.loading, block, &Sequence::Loading::block);
    const Tier tier = loaded == sequence.loading.end() ? Tier::local : loaded->tier;
    --figures_.hits[static_cast<std::size_t>(tier)];
    ++figures_.recomputed;
    ++figures_.lost;
  }
  sequence.computed = first * run_.block_tokens;
  sequence.named = std::min(sequence.named, first);
}

/// Blocks that are complete now may be used by others, and are kept below.
Status Server::name_blocks(Sequence& sequence) {
  const auto& keys = sequence.keys;
  const std::size_t full = std::min<std::size_t>(keys.size(), sequence.computed / run_.block_tokens);
  const std::size_t begin = sequence.named;
  if (full <= begin) return {};
  sequence.named = full;
  for (std::size_t i = begin; i < full; ++i)
    if (pages_->name(sequence.pages[i], keys[i]) && lower_)
      if (Status noted = lower_->blocks().note_local({&keys[i], 1}, {&sequence.pages[i], 1}); !noted)
        return noted;
  if (!lower_) return {};
  return lower_->computed(std::span(keys).subspan(begin, full - begin),
                          std::span(sequence.pages).subspan(begin, full - begin),
                          begin == 0 ? Key{} : keys[begin - 1]);
}

void Server::draw_token(Sequence& sequence) {
  const TimeNs now = backend_->now_ns();
  if (sequence.produced++ == 0) {
    ttft_ns_.push_back(now - begin_ns_ - sequence.request->arrival_ns);
    sequence.begun_answer_ns = now;
  } else {
    tbt_ns_.push_back(now - sequence.last_token_ns);
  }
  sequence.last_token_ns = now;
  ++figures_.output_tokens;
}

void Server::finish_served() {
  served_.clear();
  for (const kv::Turns::Id id : turns_->running())
    if (sequences_[id]->produced >= sequences_[id]->request->output_tokens) served_.push_back(id);
  for (const kv::Turns::Id id : served_) {
    Sequence& sequence = *sequences_[id];
    const TimeNs ttft = sequence.begun_answer_ns - begin_ns_ - sequence.request->arrival_ns;
    const auto gaps = static_cast<TimeNs>(sequence.produced - 1);
    const TimeNs tbt = gaps == 0 ? 0 : (sequence.last_token_ns - sequence.begun_answer_ns) / gaps;
    if (ttft <= run_.ttft_limit_ns && tbt <= run_.tbt_limit_ns) ++good_;
    let_go(sequence);
    turns_->finish(id);
    sequences_[id].reset();
    ++figures_.completed;
  }
}

/// Until the next request, or a part of that while somebody leaves.
void Server::idle() {
  const bool expected = next_arrival_ < run_.requests.size();
  HARVEST_ASSERT(expected || !leaving_.empty(), "nobody is served, and nobody comes");
  const TimeNs until = expected ? begin_ns_ + run_.requests[next_arrival_].arrival_ns : kNever;
  do {
    backend_->sleep_until(lower_ ? std::min(until, next_poll_ns_) : until);
    poll();
  } while (leaving_.empty() && backend_->now_ns() < until);
}

void Server::poll() {
  if (lower_ && next_poll_ns_ <= backend_->now_ns()) next_poll_ns_ = lower_->poll();
}

ServeFigures Server::figures() {
  const double seconds = static_cast<double>(figures_.duration_ns) / 1e9;
  figures_.ttft = percentiles_of(ttft_ns_);
  figures_.tbt = percentiles_of(tbt_ns_);
  figures_.tokens_per_s = static_cast<double>(figures_.output_tokens) / seconds;
  figures_.goodput_per_s = static_cast<double>(good_) / seconds;
  if (pass_ns_ > 0)
    figures_.exposed_stall_fraction = 1 - static_cast<double>(computed_ns_) / static_cast<double>(pass_ns_);
  if (lower_) {
    figures_.cache = lower_->blocks().stats();
    figures_.bytes_from = figures_.cache.loaded_bytes;
    if (takes_turns()) {
      const auto came_back = lower_->parked().stats().loaded_bytes;
      for (std::size_t tier = 0; tier < kTiers; ++tier) figures_.bytes_from[tier] += came_back[tier];
    }
    figures_.owners = lower_->owners();
  }
  return figures_;
}

}  // namespace harvest::cli
