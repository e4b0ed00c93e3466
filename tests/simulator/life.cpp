// SPDX-License-Identifier: Apache-2.0
#include "simulator/life.hpp"

#include <fmt/format.h>

#include <cstdio>

#include "simulator/violation.hpp"

/// How a life begins, goes on and ends.
namespace harvest::simulator {
namespace {

constexpr std::uint64_t kStagingBytes = 1ULL << 20;
constexpr std::uint64_t kCollectorBytes = kStagingBytes;
constexpr std::size_t kCollectors = 8;

std::uint64_t mix(std::uint64_t state, std::uint64_t value) {
  state ^= value + 0x9E3779B97F4A7C15ULL + (state << 6) + (state >> 2);
  return (state ^ (state >> 29)) * 0xBF58476D1CE4E5B9ULL;
}

}  // namespace

Life::Life(const Case& life) : case_(life), plan_(draw_plan(life)), hash_(life.seed) {
  SimulationOptions options;
  options.seed = life.seed;
  options.bytes = plan_.phantom ? SimulatedBytes::phantom : SimulatedBytes::real;
  auto made = make_simulated_backend(plan_.machine, options);
  require(made.has_value(), "simulator", "{}", made ? std::string() : made.error().message);
  simulated_ = std::move(*made);
  Backend* inner = simulated_.get();
  if (plan_.checked) {
    checked_ = make_checked_backend(
        *simulated_, {.on_violation = [](const std::string& what) { violated("contract", what); }});
    inner = checked_.get();
  }
  backend_ = std::make_unique<Witness>(*inner, *simulated_, plan_, life.seed);
  for (std::uint32_t i = 0; i < plan_.streams; ++i) streams_.push_back(make_stream());
  for (std::size_t i = 0; i < kCollectors; ++i)
    collectors_.push_back(*backend_->map_segment(plan_.config.consumer, kCollectorBytes, {}));
  streams_at_start_ = backend_->live_streams();

  PeerCacheConfig config = plan_.config;
  config.on_event = [this](const CacheEvent& event) { on_event(event); };
  if (life.nth) plan_nth_failure();
  auto created = PeerCache::create(*backend_, config);
  if (!created && life.nth) created = PeerCache::create(*backend_, config);
  require(created.has_value(), "simulator", "{}", created ? std::string() : created.error().message);
  cache_ = std::move(*created);
  for (const PoolStats& pool : cache_->stats().pools)
    if (pool.tier == Tier::peer) peers_.push_back(pool.device);
  backend_->watch_memory(true);
  backend_->is_leased = [this](const std::byte* address, std::uint64_t bytes) {
    note_arrivals_on_peers();  // before the memory goes
    for (const Held& held : leases_)
      if (held.lease.data() >= address && held.lease.data() < address + bytes) return true;
    return false;
  };
  backend_->owner_waits = [this](DeviceId device) { return owner_waits(device); };
  backend_->read_meanwhile = [this] { read_meanwhile(); };
  random_ = Random(life.seed);
  if (!life.nth) change_faults();
}

Life::~Life() = default;

/// From here on, so that it is the cache's calls that fail, its first ones included.
void Life::plan_nth_failure() {
  const auto& [fault, number] = *case_.nth;
  FaultTrigger& trigger = fault == Fault::fail_map        ? planned_.fail_map
                          : fault == Fault::fail_host_map ? planned_.fail_host_map
                          : fault == Fault::refuse_copy   ? planned_.refuse_copy
                                                          : planned_.fail_copy;
  trigger.at = number;
  simulated_->set_faults(planned_);
}

Life::Stream Life::make_stream() {
  Stream stream;
  stream.id = *backend_->create_stream(plan_.config.consumer);
  stream.staging = *backend_->map_segment(plan_.config.consumer, kStagingBytes, {});
  stream.source = *backend_->map_segment(plan_.config.consumer, kStagingBytes, {});
  return stream;
}

void Life::observe(std::uint64_t value) {
  hash_ = mix(hash_, value);
}

void Life::step(std::uint32_t number) {
  Random draw(case_.seed, 1000 + static_cast<std::uint64_t>(number));
  const auto operation = static_cast<Operation>(draw.weighted(plan_.weights));
  step(operation, draw.next());
}

void Life::step(Operation operation, std::uint64_t seed) {
  random_ = Random(seed);
  callback_random_ = Random(seed ^ 0xCA11BACC);
  operation_ = operation;
  ++coverage_.operations;
  if (trace_) {
    fmt::print("{:>14} ns  {}\n", simulated_->now_ns(), to_string(operation));
    std::fflush(stdout);
  }
  perform(operation);
  check();
  observe(static_cast<std::uint64_t>(operation), static_cast<std::uint64_t>(simulated_->now_ns()));
}

void Life::perform(Operation operation) {
  switch (operation) {
    case Operation::put: return put();
    case Operation::put_from_gpu: return put_from_gpu();
    case Operation::erase: return erase();
    case Operation::fetch: return fetch(false);
    case Operation::fetch_and_wait: return fetch(true);
    case Operation::acquire: return acquire();
    case Operation::use_lease: return use_lease();
    case Operation::release_lease: return release_lease();
    case Operation::prefetch: return prefetch();
    case Operation::reclaim: return reclaim();
    case Operation::begin_reclaim: return begin_reclaim();
    case Operation::orderly_reclaim: return orderly_reclaim();
    case Operation::tenant: return tenant();
    case Operation::pass_time:
      return pass_time(static_cast<TimeNs>(random_.below(60'000'000) >> random_.below(16)));
    case Operation::poll: return static_cast<void>(cache_->poll());
    case Operation::kernel: return kernel();
    case Operation::settle: return settle();
    case Operation::look: return look();
    case Operation::change_stream: return change_stream();
    case Operation::wrong_call: return wrong_call();
    case Operation::race_on_key: return race_on_key();
    case Operation::disturb_put: return disturb_put();
    case Operation::change_faults: return change_faults();
    case Operation::break_link: return break_link();
    case Operation::lose_device:
      if (const auto peer = random_peer()) lose_device(*peer);
      return;
    case Operation::lose_all_peers: return lose_all_peers();
    case Operation::jump_clock: return jump_clock();
    case Operation::calm: return calm();
  }
}

std::optional<DeviceId> Life::random_peer() {
  if (peers_.empty()) return std::nullopt;
  return peers_[random_.below(peers_.size())];
}

void Life::end() {
  operation_ = Operation::calm;
  random_ = Random(case_.seed);
  calm();
  check();
  check_statistics(true);
  const CacheStats stats = cache_->stats();
  coverage_.hits = stats.hits;
  coverage_.reclaims = stats.reclaims;
  coverage_.promotions = stats.promotions_completed;
  coverage_.fallbacks = stats.fetch_fallbacks;
  coverage_.failed_copies = failures();
  coverage_.virtual_ns = simulated_->now_ns();
  cache_.reset();

  for (const DeviceInfo& device : simulated_->devices())
    require(backend_->account(device.id).segments.empty(), "I5",
            "{} bytes of device {} are left after the end", backend_->account(device.id).mapped_bytes,
            device.id);
  require(backend_->live_events() == 0, "contract", "{} events are left after the end",
          backend_->live_events());
  require(backend_->live_streams() == streams_at_start_, "contract",
          "{} streams are left after the end, {} are ours", backend_->live_streams(), streams_at_start_);
  // The simulation stops the process if anything still reads this memory.
  for (const auto& [generation, what] : model_.stored())
    if (what.external != nullptr) static_cast<void>(simulated_->release_host_range(what.external));
  for (const Stream& stream : streams_) {
    for (std::byte* memory : {stream.staging, stream.source})
      static_cast<void>(backend_->unmap_segment(memory));
    static_cast<void>(backend_->destroy_stream(stream.id));
  }
  for (std::byte* memory : collectors_) static_cast<void>(backend_->unmap_segment(memory));
  observe(simulated_->trace_hash());
}

LifeResult live(const Case& life, bool repeat, bool trace,
                const std::function<void(std::uint32_t number, Operation operation)>& tell) {
  LifeResult result;
  for (int round = 0; round < (repeat ? 2 : 1); ++round) {
    Life one(life);
    one.set_trace(trace && round == 0);
    const auto step = [&](std::uint32_t number) {
      tell(number, one.last_operation());
      one.step(number);
    };
    if (life.only.empty()) {
      for (std::uint32_t number = 0; number < life.operations; ++number) step(number);
    } else {
      for (const auto& [first, last] : life.only)
        for (std::uint32_t number = first; number <= last; ++number) step(number);
    }
    tell(life.operations, Operation::calm);
    one.end();
    if (round == 1)
      require(one.hash() == result.hash, "I11", "the same life, lived twice, was not the same: {:x} and {:x}",
              result.hash, one.hash());
    result.hash = one.hash();
    result.coverage = one.coverage();
  }
  return result;
}

}  // namespace harvest::simulator
