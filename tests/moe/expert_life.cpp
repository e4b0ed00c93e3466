// SPDX-License-Identifier: Apache-2.0
#include "moe/expert_life.hpp"

#include <algorithm>

#include "backend/checked.hpp"

/// How a life begins, goes on and ends.
namespace harvest::moe {
namespace {

constexpr std::size_t kBuffers = 48;
constexpr std::uint64_t kGranularity = 64ULL << 10;
constexpr TimeNs kMillisecond = 1'000'000;

std::uint64_t round_up(std::uint64_t bytes, std::uint64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

std::uint64_t mix(std::uint64_t state, std::uint64_t value) {
  state ^= value + 0x9E3779B97F4A7C15ULL + (state << 6) + (state >> 2);
  return (state ^ (state >> 29)) * 0xBF58476D1CE4E5B9ULL;
}

}  // namespace

ExpertLife::ExpertLife(std::uint64_t seed, std::uint32_t operations)
    : seed_(seed),
      operations_(operations),
      plan_(draw_life_plan(seed)),
      random_(seed, 0),
      counted_(plan_.model.layers) {}

ExpertLife::~ExpertLife() = default;

void ExpertLife::build_machine() {
  SimulationOptions options;
  options.seed = seed_;
  simulated_ = std::move(*make_simulated_backend(plan_.machine, options));
  witness_ = std::make_unique<LifeWitness>(*simulated_);
  backend_ = witness_.get();
  if (plan_.checked) {
    CheckedOptions checks;
    checks.on_violation = [this](const std::string& what) {
      if (breach_.empty()) breach_ = what;
    };
    checked_ = make_checked_backend(*witness_, std::move(checks));
    backend_ = checked_.get();
  }
  for (std::uint32_t i = 0; i < plan_.streams; ++i) streams_.push_back(*backend_->create_stream(0));
  next_layer_.assign(plan_.streams, 0);
  const std::uint64_t stride = plan_.model.slot_bytes();
  buffers_ = *backend_->map_segment(0, round_up(kBuffers * stride, kGranularity), {});
  for (std::size_t i = 0; i < kBuffers; ++i) free_buffers_.push_back(buffers_ + i * stride);

  // In host memory an expert's tensors have gaps between them, so that it is one run or many.
  const auto tensors = static_cast<std::uint64_t>(plan_.model.tensors.size());
  expert_stride_ = plan_.model.expert_bytes() + tensors * plan_.tensor_gap_bytes;
  weights_ = *simulated_->reserve_host_range(expert_stride_ * plan_.model.layers * plan_.model.experts);
}

std::byte* ExpertLife::weights_of(std::uint32_t layer, std::uint32_t expert) const {
  return weights_ + (layer * plan_.model.experts + expert) * expert_stride_;
}

void ExpertLife::build_caches() {
  peer_cache_ = std::move(*PeerCache::create(*backend_, plan_.peers));
  streams_before_ = witness_->live_streams();
  segments_before_ = witness_->live_segments();
  auto made = ExpertCache::create(*peer_cache_, plan_.experts);
  require(made.has_value(), "no cache of experts: {}", made ? std::string() : made.error().message);
  experts_ = std::move(*made);
  first_slot_ = experts_->slot_address(0);
  slot_stride_ = plan_.model.slot_bytes();
  require(experts_->slots() == plan_.slots, "{} slots, expected {}", experts_->slots(), plan_.slots);
  witness_->watch_slots(first_slot_, plan_.slots * slot_stride_);

  testing::Random content(seed_, 99);
  for (std::uint32_t layer = 0; layer < plan_.model.layers; ++layer)
    for (std::uint32_t expert = 0; expert < plan_.model.experts; ++expert) {
      std::vector<const std::byte*> tensors;
      for (std::size_t i = 0; i < plan_.model.tensors.size(); ++i) {
        std::byte* const tensor =
            weights_of(layer, expert) + plan_.model.tensor_offset(i) + i * plan_.tensor_gap_bytes;
        for (std::uint64_t at = 0; at < plan_.model.tensors[i].bytes; ++at)
          tensor[at] = static_cast<std::byte>(content.next());
        tensors.push_back(tensor);
      }
      const Status added = experts_->add_expert(layer, expert, tensors);
      require(added.has_value(), "expert not added: {}", added ? std::string() : added.error().message);
    }
}

void ExpertLife::observe(std::uint64_t value) {
  hash_ = mix(hash_, value);
}

LifeResult ExpertLife::live() {
  LifeResult result;
  std::uint32_t number = 0;
  auto operation = LifeOperation::calm;
  try {
    build_machine();
    build_caches();
    periods_.emplace_back();
    change_faults();
    for (; number < operations_; ++number) {
      random_ = testing::Random(seed_, 1000 + static_cast<std::uint64_t>(number));
      operation = static_cast<LifeOperation>(random_.weighted(plan_.weights));
      perform(operation);
      check_all();
      observe(static_cast<std::uint64_t>(simulated_->now_ns()));
    }
    operation = LifeOperation::calm;
    end();
  } catch (const Violation& violation) {
    result.wrong = fmt::format("operation {} ({}): {}\n  {}", number, to_string(operation), violation.what(),
                               describe(plan_));
    open_.clear();
  }
  coverage_.virtual_ns = simulated_->now_ns();
  result.hash = mix(hash_, simulated_->trace_hash());
  result.coverage = coverage_;
  return result;
}

void ExpertLife::perform(LifeOperation operation) {
  ++coverage_.operations;
  switch (operation) {
    case LifeOperation::whole_step: return whole_step();
    case LifeOperation::begin_step: return begin_step();
    case LifeOperation::advance_step: return advance_step();
    case LifeOperation::end_step: return end_step();
    case LifeOperation::read_again: return read_again();
    case LifeOperation::confirm: return confirm();
    case LifeOperation::poll_experts: return experts_->poll();
    case LifeOperation::poll_peers: return static_cast<void>(peer_cache_->poll());
    case LifeOperation::pass_time: return pass_time();
    case LifeOperation::kernel: return kernel(random_stream());
    case LifeOperation::prefetch: return prefetch();
    case LifeOperation::cancel: return cancel();
    case LifeOperation::reclaim: return reclaim();
    case LifeOperation::tenant: return tenant();
    case LifeOperation::change_stream: return change_stream();
    case LifeOperation::change_faults: return change_faults();
    case LifeOperation::break_link: return break_link();
    case LifeOperation::lose_peer: return lose_peer();
    case LifeOperation::look: return look();
    case LifeOperation::wrong_call: return wrong_call();
    case LifeOperation::calm: return calm();
  }
}

void ExpertLife::check_all() {
  check_reads(false);
  require(breach_.empty(), "the contract of the backend: {}", breach_);
  require(experts_->slot_address(0) == first_slot_, "the slots have moved");
  const Status audit = peer_cache_->audit();
  require(audit.has_value(), "{}", audit ? std::string() : audit.error().message);
}

void ExpertLife::check_statistics() {
  const ExpertCacheStats stats = experts_->stats();
  for (std::uint32_t layer = 0; layer < plan_.model.layers; ++layer)
    for (std::size_t phase = 0; phase < kPhases; ++phase)
      require(stats.layers[layer][phase].experts == counted_[layer][phase].experts,
              "layer {} has delivered {} experts, its statistics say {}", layer,
              fmt::join(counted_[layer][phase].experts, " + "),
              fmt::join(stats.layers[layer][phase].experts, " + "));
  require(stats.steps == begun_, "{} steps were begun, the statistics say {}", begun_, stats.steps);
  std::array<std::uint64_t, kTiers> brought{};
  for (const auto& [device, bytes] : witness_->brought_bytes())
    brought[static_cast<std::size_t>(device == kHost ? Tier::host
                                     : device == 0   ? Tier::local
                                                     : Tier::peer)] += bytes;
  std::uint64_t guessed = 0;
  for (std::size_t tier = 0; tier < kTiers; ++tier) {
    guessed += stats.prefetched_bytes[tier];
    require(stats.demand_bytes[tier] + stats.prefetched_bytes[tier] == brought[tier],
            "{} bytes came from {}, the statistics say {} + {}", brought[tier],
            to_string(static_cast<Tier>(tier)), stats.demand_bytes[tier], stats.prefetched_bytes[tier]);
  }
  require(stats.guesses_used <= stats.guesses, "{} guesses, {} used", stats.guesses, stats.guesses_used);
  require(stats.wasted_bytes <= guessed, "{} bytes wasted of {}", stats.wasted_bytes, guessed);
  require(stats.slots == plan_.slots && stats.slots_used <= stats.slots, "{} of {} slots used, there are {}",
          stats.slots_used, stats.slots, plan_.slots);
  require(stats.experts_on_peers <= plan_.model.layers * plan_.model.experts, "{} experts on peers",
          stats.experts_on_peers);
  coverage_.guesses = stats.guesses;
  coverage_.guesses_used = stats.guesses_used;
  coverage_.rebalanced_bytes = stats.rebalanced_bytes;
  observe(stats.guesses);
  observe(stats.wasted_bytes);
  observe(stats.failed_arrivals);
}

/// Some lives end calmly, others in the middle of everything but open steps.
void ExpertLife::end() {
  if (random_.chance(0.5)) calm();
  close_all();
  check_all();
  check_statistics();
  experts_.reset();
  require(witness_->live_segments() <= segments_before_ + peer_cache_->stats().pools.size() * 4096,
          "the slots' memory is left");
  require(peer_cache_->stats().objects == 0, "{} objects are left in the PeerCache",
          peer_cache_->stats().objects);
  check_reads(true);
  peer_cache_.reset();
  require(witness_->live_streams() == streams_.size(), "{} streams are left",
          witness_->live_streams() - streams_.size());
  require(witness_->live_events() == 0, "{} events are left", witness_->live_events());
  require(witness_->live_segments() == 1, "{} segments are left", witness_->live_segments() - 1);
  require(breach_.empty(), "the contract of the backend: {}", breach_);
  for (const StreamId stream : streams_) static_cast<void>(backend_->destroy_stream(stream));
  static_cast<void>(backend_->unmap_segment(buffers_));
  static_cast<void>(kMillisecond);
}

LifeResult live_twice(std::uint64_t seed, std::uint32_t operations) {
  LifeResult one = ExpertLife(seed, operations).live();
  if (!one.wrong.empty()) return one;
  const LifeResult other = ExpertLife(seed, operations).live();
  if (!other.wrong.empty()) return other;
  if (one.hash != other.hash) one.wrong = "I11: the same seed lived another life";
  return one;
}

}  // namespace harvest::moe
