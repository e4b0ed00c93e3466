// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/harm_world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <random>

#include "cli/bench/greedy_consumer.hpp"
#include "cli/output.hpp"

namespace harvest::cli::bench {
namespace {

constexpr double kGiBHourNs = static_cast<double>(1ULL << 30) * 3600e9;
constexpr TimeNs kBusyPollNs = 1'000'000;    ///< while memory is on its way back, as a `Runner` polls
constexpr TimeNs kSlowPollNs = 500'000'000;  ///< while nothing but the monitor's caution fades
constexpr TimeNs kFillPatienceNs = 600'000'000'000;
constexpr TimeNs kForcedPatienceNs = 60'000'000'000;
constexpr TimeNs kSamplesToWatch = 3;

PeerCacheConfig cache_config(const HarmSetting& setting, const std::vector<DeviceId>& peers) {
  PeerCacheConfig config;
  config.consumer = GreedyConsumer::kDevice;
  config.peers = peers;
  config.verify_paths = false;  // phantom bytes carry no pattern
  config.host_budget_bytes = setting.backing == Backing::spill ? 512ULL << 30 : 0;
  config.background_bytes = 4ULL << 30;  // what is asked for at once begins at once
  config.pressure.reserve_bytes = setting.reserve_bytes;
  return config;
}

struct Owner {
  DeviceId device = kHost;
  std::uint64_t total_bytes = 0;
  std::uint64_t held_bytes = 0;
  std::uint64_t wanted_bytes = 0;
  TimeNs next_step_ns = kNever;  ///< of a rise under way
  bool failed = false;           ///< that rise has failed: it counts once
};

/// One run.
///
/// Time jumps. While nothing changes, the cache is as large as it may be and each of its polls finds the
/// device as the one before: so all of them but the last before the next event are left out. That one comes
/// at a random point within one sampling interval before the event, as an event of an owner falls at random
/// between two samples. From the event on the cache is polled on its schedule, until it has given back what
/// it must and taken what it may; after that seldom, while the monitor's memory of the burst fades and more
/// may be taken bit by bit; and when that is over too, time jumps again.
class HarmRun {
 public:
  HarmRun(const Machine& machine, const OwnerTrace& trace, const HarmSetting& setting)
      : machine_(machine), trace_(trace), setting_(setting), random_(setting.seed) {}

  [[nodiscard]] Status prepare();
  [[nodiscard]] Status run(const std::function<void(TimeNs)>& tell);
  [[nodiscard]] Result<HarmFigures> finish();

 private:
  [[nodiscard]] Status fill();
  [[nodiscard]] Status work();
  [[nodiscard]] Status wait_until(TimeNs until_ns);
  [[nodiscard]] Status pass_time_until(TimeNs until_ns);
  void sleep_until(TimeNs until_ns);
  void count_time();
  [[nodiscard]] Status want(Owner& owner, std::uint64_t bytes);
  [[nodiscard]] Status allocate(Owner& owner);
  [[nodiscard]] Status ask_back(const Owner& owner, std::uint64_t missing_bytes);
  [[nodiscard]] Status force(Owner& owner, std::uint64_t bytes);
  void watch();
  [[nodiscard]] std::uint64_t free_bytes(const Owner& owner) const;
  [[nodiscard]] Owner& owner_of(DeviceId device);

  const Machine& machine_;
  const OwnerTrace& trace_;
  HarmSetting setting_;
  std::mt19937_64 random_;  ///< where samples fall before an event
  std::unique_ptr<SimulatedBackend> backend_;
  std::unique_ptr<GreedyConsumer> consumer_;
  std::unique_ptr<PeerCache> cache_;
  std::vector<Owner> owners_;
  TimeNs counted_ns_ = 0;    ///< up to here time is in the figures
  bool rests_ = false;       ///< nothing will change by itself
  TimeNs next_poll_ns_ = 0;  ///< kNever while it rests
  TimeNs polled_ns_ = 0;
  TimeNs watched_until_ns_ = 0;
  TimeNs grows_again_ns_ = 0;
  std::uint64_t forced_ = 0;  ///< requests of ours, for owners whose allocation had failed
  CacheStats before_;
  HarmFigures figures_;
};

Owner& HarmRun::owner_of(DeviceId device) {
  return *std::find_if(owners_.begin(), owners_.end(),
                       [&](const Owner& owner) { return owner.device == device; });
}

std::uint64_t HarmRun::free_bytes(const Owner& owner) const {
  return owner.total_bytes - owner.held_bytes - backend_->mapped_bytes(owner.device);
}

// --- before ---------------------------------------------------------------------------------------------

Status HarmRun::prepare() {
  Machine machine = machine_;
  for (MachineDevice& device : machine.devices) device.tenant_bytes = 0;
  auto backend = make_simulated_backend(std::move(machine), {.bytes = SimulatedBytes::phantom});
  if (!backend) return tl::unexpected(backend.error());
  backend_ = std::move(*backend);
  const std::vector<DeviceId> devices = trace_.devices();
  for (const DeviceId device : devices) {
    const auto first = std::find_if(trace_.steps.begin(), trace_.steps.end(),
                                    [&](const OwnerStep& step) { return step.device == device; });
    const std::uint64_t total = machine_.devices[static_cast<std::size_t>(device)].info.total_bytes;
    owners_.push_back({device, total, first->used_bytes, first->used_bytes});
    if (Status taken = backend_->tenant_allocate(device, first->used_bytes); !taken) return taken;
  }
  auto consumer = GreedyConsumer::create(*backend_, setting_.backing, setting_.seed);
  if (!consumer) return tl::unexpected(consumer.error());
  consumer_ = std::move(*consumer);
  PeerCacheConfig config = cache_config(setting_, devices);
  config.on_event = [consumer = consumer_.get()](const CacheEvent& event) { consumer->hear(event); };
  auto cache = PeerCache::create(*backend_, std::move(config));
  if (!cache) return tl::unexpected(cache.error());
  cache_ = std::move(*cache);
  return fill();
}

/// What it takes to fill idle memory for the first time is no harm, and is in no figure.
Status HarmRun::fill() {
  const TimeNs patience_ns = backend_->now_ns() + kFillPatienceNs;
  watch();
  while (!rests_) {
    if (backend_->now_ns() > patience_ns)
      return fail(ErrorCode::timed_out, "the cache does not come to rest on idle peers");
    backend_->sleep_until(next_poll_ns_);
    if (Status worked = work(); !worked) return worked;
  }
  before_ = cache_->stats();
  counted_ns_ = backend_->now_ns();
  return {};
}

// --- time -----------------------------------------------------------------------------------------------

/// Memory changes hands in calls alone, so what is mapped now has been that since the last call.
void HarmRun::count_time() {
  const TimeNs now = backend_->now_ns();
  const double gib_hours_per_byte = static_cast<double>(now - counted_ns_) / kGiBHourNs;
  for (const Owner& owner : owners_) {
    figures_.idle_gib_hours += gib_hours_per_byte * static_cast<double>(owner.total_bytes - owner.held_bytes);
    figures_.harvested_gib_hours +=
        gib_hours_per_byte * static_cast<double>(backend_->mapped_bytes(owner.device));
  }
  counted_ns_ = now;
}

void HarmRun::sleep_until(TimeNs until_ns) {
  count_time();
  backend_->sleep_until(until_ns);
  count_time();
}

/// An owner did something: the monitor has to see it, when its next sample is due.
void HarmRun::watch() {
  const PressureConfig& pressure = cache_->config().pressure;
  const TimeNs now = backend_->now_ns();
  watched_until_ns_ = now + kSamplesToWatch * pressure.sample_interval_ns;
  grows_again_ns_ = watched_until_ns_ + pressure.regrow_delay_ns;
  next_poll_ns_ = std::min(next_poll_ns_, std::max(now, polled_ns_ + pressure.sample_interval_ns));
}

/// A poll, the consumer's wishes, and when the next one is due.
Status HarmRun::work() {
  cache_->poll();
  polled_ns_ = backend_->now_ns();
  CacheStats stats = cache_->stats();
  const auto busy = consumer_->want_more(*cache_, stats);
  if (!busy) return tl::unexpected(busy.error());
  if (*busy) {
    cache_->poll();  // begins what was asked for
    stats = cache_->stats();
  }
  const auto any_peer = [&](auto holds) {
    return std::any_of(stats.pools.begin(), stats.pools.end(),
                       [&](const PoolStats& pool) { return pool.tier == Tier::peer && holds(pool); });
  };
  const PressureConfig& pressure = cache_->config().pressure;
  const TimeNs now = backend_->now_ns();
  const bool shrinks = any_peer([](const PoolStats& pool) { return pool.mapped_bytes > pool.allowed_bytes; });
  const bool fades = any_peer([&](const PoolStats& pool) {
    return pool.reserve_bytes > pressure.reserve_bytes + GreedyConsumer::kObjectBytes;
  });
  if (shrinks) {
    next_poll_ns_ = now + kBusyPollNs;
    grows_again_ns_ = now + pressure.regrow_delay_ns + pressure.sample_interval_ns;
  } else if (*busy || now < watched_until_ns_) {
    next_poll_ns_ = now + pressure.sample_interval_ns;
  } else if (fades || now < grows_again_ns_) {
    next_poll_ns_ = now + kSlowPollNs;
  } else {
    next_poll_ns_ = kNever;
  }
  rests_ = next_poll_ns_ == kNever;
  if (setting_.every_poll) next_poll_ns_ = std::min(next_poll_ns_, now + pressure.sample_interval_ns);
  return {};
}

/// Lets time pass until something of an owner happens at `until_ns`.
Status HarmRun::wait_until(TimeNs until_ns) {
  const TimeNs interval_ns = cache_->config().pressure.sample_interval_ns;
  const TimeNs last_sample_ns =
      until_ns - static_cast<TimeNs>(random_() % static_cast<std::uint64_t>(interval_ns));
  while (backend_->now_ns() < until_ns) {
    TimeNs next = std::min(next_poll_ns_, until_ns);
    const TimeNs now = backend_->now_ns();
    const bool leaves_polls_out = next_poll_ns_ > now + interval_ns;
    if (leaves_polls_out && now < last_sample_ns) next = std::min(next, last_sample_ns);
    sleep_until(next);
    if (backend_->now_ns() >= until_ns) break;
    if (Status worked = work(); !worked) return worked;
    count_time();
  }
  return {};
}

/// The same, with the allocations of rises that are under way.
Status HarmRun::pass_time_until(TimeNs until_ns) {
  while (true) {
    const auto next = std::min_element(owners_.begin(), owners_.end(), [](const Owner& a, const Owner& b) {
      return a.next_step_ns < b.next_step_ns;
    });
    if (next->next_step_ns >= until_ns) break;
    if (Status waited = wait_until(next->next_step_ns); !waited) return waited;
    if (Status allocated = allocate(*next); !allocated) return allocated;
  }
  return wait_until(until_ns);
}

// --- owners ---------------------------------------------------------------------------------------------

Status HarmRun::want(Owner& owner, std::uint64_t bytes) {
  const bool rises = bytes > owner.wanted_bytes;
  owner.wanted_bytes = bytes;
  if (rises) {
    ++figures_.rises;
    owner.failed = false;
  }
  if (bytes > owner.held_bytes) {
    if (rises && owner.next_step_ns == kNever) return allocate(owner);
    return {};
  }
  owner.next_step_ns = kNever;
  if (bytes == owner.held_bytes) return {};
  count_time();
  if (Status freed = backend_->tenant_free(owner.device, owner.held_bytes - bytes); !freed) return freed;
  owner.held_bytes = bytes;
  watch();
  return {};
}

/// One allocation of a rise. The consumer has just begun to read: what the owner wants back is in use.
Status HarmRun::allocate(Owner& owner) {
  const std::uint64_t left = owner.wanted_bytes - owner.held_bytes;
  const RiseShape& rise = setting_.rise;
  const std::uint64_t bytes = rise.bytes_per_s == 0 ? left : std::min(left, rise.step_bytes);
  if (Status reads = consumer_->read_from(*cache_, owner.device); !reads) return reads;
  const TimeNs begin = backend_->now_ns();
  if (setting_.mode == ReclaimMode::cooperative && free_bytes(owner) < bytes)
    if (Status asked = ask_back(owner, bytes - free_bytes(owner)); !asked) return asked;
  count_time();
  if (!backend_->tenant_allocate(owner.device, bytes))
    if (Status forced = force(owner, bytes); !forced) return forced;
  owner.held_bytes += bytes;
  owner.next_step_ns = kNever;
  if (owner.held_bytes < owner.wanted_bytes)
    owner.next_step_ns =
        begin + static_cast<TimeNs>(1e9 * static_cast<double>(bytes) / static_cast<double>(rise.bytes_per_s));
  watch();
  return {};
}

Status HarmRun::ask_back(const Owner& owner, std::uint64_t missing_bytes) {
  const TimeNs begin = backend_->now_ns();
  const auto report = cache_->reclaim(owner.device, missing_bytes, begin + setting_.deadline_ns);
  if (!report) return tl::unexpected(report.error());
  const TimeNs took_ns = backend_->now_ns() - begin;
  figures_.reclaim_ns.push_back(took_ns);
  // The memory may also be there, and be there later than it was to be.
  if (!report->finished || took_ns > setting_.deadline_ns) ++figures_.late;
  return {};
}

/// The allocation failed. A real owner would have died of it, or done without. This one is counted, and then
/// gets its memory by a request, so that it goes on living as recorded and the next rise is no easier.
Status HarmRun::force(Owner& owner, std::uint64_t bytes) {
  if (!owner.failed) ++figures_.failed_rises;
  owner.failed = true;
  const std::uint64_t free = free_bytes(owner);
  if (free < bytes) {
    ++forced_;
    const TimeNs deadline_ns = backend_->now_ns() + kForcedPatienceNs;
    if (const auto report = cache_->reclaim(owner.device, bytes - free, deadline_ns); !report)
      return tl::unexpected(report.error());
  }
  count_time();
  if (backend_->tenant_allocate(owner.device, bytes)) return {};
  return fail(ErrorCode::unavailable, fmt::format("the owner of {} does not get {} within a minute",
                                                  device_name(owner.device), format_bytes(bytes)));
}

// --- the run --------------------------------------------------------------------------------------------

Status HarmRun::run(const std::function<void(TimeNs)>& tell) {
  const TimeNs begin = backend_->now_ns();
  for (const OwnerStep& step : trace_.steps) {
    tell(step.at_ns);
    if (Status passed = pass_time_until(begin + step.at_ns); !passed) return passed;
    if (Status done = want(owner_of(step.device), step.used_bytes); !done) return done;
  }
  return {};
}

Result<HarmFigures> HarmRun::finish() {
  count_time();
  const CacheStats after = cache_->stats();
  const auto written = [&](Tier tier) {
    const auto t = static_cast<std::size_t>(tier);
    return after.written_bytes[t] - before_.written_bytes[t];
  };
  figures_.spilled_bytes = after.spilled_bytes - before_.spilled_bytes;
  // What moved to another peer was written there, and fills no room that was idle before.
  figures_.populated_bytes = written(Tier::peer) - (figures_.spilled_bytes - written(Tier::host));
  figures_.monitor_reclaims = after.reclaims - before_.reclaims - forced_ - figures_.reclaim_ns.size();
  if (Status sound = cache_->audit(); !sound) return tl::unexpected(sound.error());
  cache_.reset();  // before the consumer, which hears of events, and the machine
  return std::move(figures_);
}

}  // namespace

std::string_view to_string(ReclaimMode mode) {
  return mode == ReclaimMode::watermark ? "watermark" : "cooperative";
}

Result<HarmFigures> run_harm(const Machine& machine, const OwnerTrace& trace, const HarmSetting& setting,
                             const std::function<void(TimeNs)>& tell) {
  HarmRun run(machine, trace, setting);
  if (Status ready = run.prepare(); !ready) return tl::unexpected(ready.error());
  if (Status ran = run.run(tell); !ran) return tl::unexpected(ran.error());
  return run.finish();
}

}  // namespace harvest::cli::bench
