// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <initializer_list>

#include "simulator/life.hpp"
#include "simulator/violation.hpp"

/// What others do in a life: owners of the peers, time, and everything that goes wrong.
namespace harvest::simulator {
namespace {

constexpr std::uint64_t kMiB = 1ULL << 20;
constexpr TimeNs kMillisecond = 1'000'000;
constexpr TimeNs kSecond = 1'000 * kMillisecond;
constexpr TimeNs kPatienceNs = 2 * kSecond;  ///< far longer than anything that is under way takes
constexpr TimeNs kLongestSuspensionNs = 60 * kSecond;

}  // namespace

// --- owners
// -------------------------------------------------------------------------------------------------

void Life::reclaim() {
  const auto device = random_peer();
  if (!device) return;
  const std::uint64_t bytes = random_.between(1, 8 * kMiB);
  const TimeNs patience = std::initializer_list<TimeNs>{0, 200'000, 5 * kMillisecond, 100 * kMillisecond}
                              .begin()[random_.below(4)];
  const TimeNs deadline = backend_->now_ns() + patience;
  const Witness::Account before = backend_->account(*device);
  waiting_ = begun(*device, bytes);
  const auto report = cache_->reclaim(*device, bytes, deadline);
  waiting_.reset();
  require(report.has_value(), "I5", "a reclaim is refused: {}",
          report ? std::string() : report.error().message);
  const Witness::Account& after = backend_->account(*device);
  observe(report->returned_bytes, report->late_bytes, report->spilled_bytes, report->dropped_bytes,
          report->lost_bytes, static_cast<std::uint64_t>(report->duration_ns), report->finished ? 1 : 0);
  require(report->requested_bytes == bytes && report->returned_bytes + report->late_bytes <= bytes, "I5",
          "a reclaim of {} bytes reports {} returned and {} late", bytes, report->returned_bytes,
          report->late_bytes);
  require(after.unmapped_bytes - before.unmapped_bytes >= report->returned_bytes, "I5",
          "{} bytes are reported as returned, {} were unmapped", report->returned_bytes,
          after.unmapped_bytes - before.unmapped_bytes);
  if (report->finished) {
    require(report->returned_bytes == bytes || before.segments.empty() ||
                after.times_emptied > before.times_emptied,
            "I5", "a reclaim of {} bytes is over with {} returned and {} mapped", bytes,
            report->returned_bytes, after.mapped_bytes);
  } else {
    require(report->late_bytes > 0 && backend_->now_ns() >= deadline, "I5",
            "a reclaim gave up {} ns before its deadline with {} bytes late", deadline - backend_->now_ns(),
            report->late_bytes);
  }
  returned_[*device] += report->returned_bytes;
}

/// Everything, now.
void Life::reclaim_all(DeviceId device) {
  const std::uint64_t mapped = backend_->account(device).mapped_bytes;
  if (mapped == 0) return;
  waiting_ = begun(device, mapped);
  const auto report = cache_->reclaim(device, mapped, backend_->now_ns());
  waiting_.reset();
  require(report.has_value(), "I5", "a reclaim is refused");
  returned_[device] += report->returned_bytes;
  observe(report->returned_bytes, report->late_bytes, report->spilled_bytes);
}

Life::Begun Life::begun(DeviceId device, std::uint64_t bytes) const {
  const Witness::Account& account = backend_->account(device);
  return {ReclaimId::none, device, account.segments.empty(), account.times_emptied, account.unmapped_bytes,
          bytes,           {}};
}

/// Surely: what was unmapped since does not cover what it asked for.
bool Life::owner_waits(DeviceId device) const {
  const Witness::Account& account = backend_->account(device);
  const auto waits = [&](const Begun& one) {
    return one.device == device && !one.last.finished && !one.was_empty &&
           account.times_emptied == one.emptied_before &&
           account.unmapped_bytes - one.unmapped_before < one.bytes;
  };
  return (waiting_ && waits(*waiting_)) || std::any_of(reclaims_.begin(), reclaims_.end(), waits);
}

void Life::begin_reclaim() {
  const auto device = random_peer();
  if (!device) return;
  const TimeNs patience = static_cast<TimeNs>(random_.below(3)) * 10 * kMillisecond;
  Begun one = begun(*device, random_.between(1, 8 * kMiB));
  const auto id = cache_->begin_reclaim(*device, one.bytes, backend_->now_ns() + patience);
  require(id.has_value(), "I5", "a reclaim is refused: {}", id ? std::string() : id.error().message);
  one.id = *id;
  reclaims_.push_back(one);
  if (reclaims_.size() > 32) reclaims_.erase(reclaims_.begin());
}

/// I1: when nothing else goes on, a lease explains what does not come back, and explains its own segment
/// alone.
void Life::orderly_reclaim() {
  const auto device = random_peer();
  if (!device || planned_.refuse_copy.rate > 0 || planned_.fail_copy.rate > 0 || planned_.fail_map.rate > 0 ||
      planned_.fail_host_map.rate > 0 || !down_.empty() || !lost_.empty())
    return;
  synchronize();
  if (!cache_->settle(backend_->now_ns() + kPatienceNs) && leases_.empty() && !may_be_stuck())
    violated("liveness", "copies and reclaims are under way for long, and nothing holds them up");
  const std::uint64_t leased = leased_segment_bytes(*device);
  const std::uint64_t mapped = backend_->account(*device).mapped_bytes;
  if (mapped == 0 || may_be_stuck()) return;
  const auto report = cache_->reclaim(*device, mapped, backend_->now_ns() + kPatienceNs);
  require(report.has_value(), "I5", "a reclaim is refused");
  returned_[*device] += report->returned_bytes;
  observe(report->returned_bytes, report->late_bytes);
  if (may_be_stuck()) return;
  require(report->late_bytes <= leased, "I1", "{} of {} bytes of device {} are late, and leases hold {}",
          report->late_bytes, mapped, *device, leased);
}

void Life::tenant() {
  const auto device = random_peer();
  if (!device || is_lost(*device)) return;
  const std::uint64_t total = simulated_->devices()[static_cast<std::size_t>(*device)].total_bytes;
  const std::uint64_t free = total - simulated_->tenant_bytes(*device) - simulated_->mapped_bytes(*device);
  const std::uint64_t leave = random_.below(8 * kMiB);
  if (free > leave && random_.chance(0.6)) {
    require(simulated_->tenant_allocate(*device, free - leave).has_value(), "simulator",
            "an owner got no memory");
  } else {
    static_cast<void>(simulated_->tenant_free(*device, simulated_->tenant_bytes(*device) / 2));
  }
}

// --- time
// ---------------------------------------------------------------------------------------------------

/// As a `Runner` does.
void Life::pass_time(TimeNs ns) {
  const TimeNs until = backend_->now_ns() + ns;
  while (backend_->now_ns() < until) {
    const TimeNs next = cache_->poll();
    backend_->sleep_until(std::min(until, std::max(next, backend_->now_ns() + 20'000)));
  }
}

void Life::kernel() {
  const auto duration = static_cast<TimeNs>(random_.between(10'000, 20 * kMillisecond));
  static_cast<void>(simulated_->submit_kernel(random_stream().id, duration));
}

/// Nobody polled for long: a debugger, a suspended machine.
void Life::jump_clock() {
  const TimeNs by =
      std::initializer_list<TimeNs>{kSecond, 100 * kSecond, 100'000 * kSecond}.begin()[random_.below(3)];
  backend_->sleep_until(backend_->now_ns() + by);
}

void Life::settle() {
  const Status settled =
      cache_->settle(backend_->now_ns() + static_cast<TimeNs>(random_.below(100)) * kMillisecond);
  observe(settled ? 1 : 0);
}

// --- streams and wrong calls
// ----------------------------------------------------------------------------------

void Life::change_stream() {
  Stream& stream = random_stream();
  for (std::size_t i = leases_.size(); i-- > 0;) {
    if (leases_[i].stream != stream.id) continue;
    drop(leases_[i]);
    leases_.erase(leases_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  require(cache_->forget_stream(stream.id).has_value(), "I10", "a stream cannot be forgotten");
  require(backend_->destroy_stream(stream.id).has_value(), "simulator", "a stream cannot be destroyed");
  stream.id = *backend_->create_stream(plan_.config.consumer);
}

/// Wrong calls are answered with an error, and change nothing.
void Life::wrong_call() {
  std::byte byte{};
  FetchItem item;
  item.key = random_key();
  item.capacity_bytes = 1;
  const auto expect = [](const auto& answer, ErrorCode code, std::string_view what) {
    require(!answer.has_value() && answer.error().code == code, "errors", "{} is answered with {}", what,
            answer.has_value() ? "success" : to_string(answer.error().code));
  };
  const TimeNs now = backend_->now_ns();
  switch (random_.below(8)) {
    case 0:
      return expect(cache_->put(random_key(), nullptr, 1), ErrorCode::invalid_argument, "a put of null");
    case 1:
      return expect(cache_->put(random_key(), &byte, 0), ErrorCode::invalid_argument, "a put of 0 bytes");
    case 2:
      return expect(cache_->put(random_key(), &byte, 1ULL << 63), ErrorCode::invalid_argument,
                    "a put of 2^63 bytes");
    case 3:
      return expect(cache_->fetch({&item, 1}, random_stream().id), ErrorCode::invalid_argument,
                    "a fetch to null");
    case 4:
      return expect(cache_->fetch({&item, 1}, StreamId{9999}), ErrorCode::not_found, "a fetch on no stream");
    case 5: return expect(cache_->reclaim(99, 1, now), ErrorCode::not_found, "a reclaim of no device");
    case 6:
      return expect(cache_->begin_reclaim(plan_.config.consumer, 1, now), ErrorCode::not_found,
                    "a reclaim of the consumer");
    default:
      return expect(cache_->reclaim_status(ReclaimId{1ULL << 60}), ErrorCode::not_found,
                    "the state of no reclaim");
  }
}

// --- what goes wrong
// ------------------------------------------------------------------------------------------

void Life::change_faults() {
  if (case_.nth) return;
  const Faults& may = plan_.faults;
  const bool all_quiet = random_.chance(0.3);
  const auto happens = [&](Fault fault, double probability) {
    const bool drawn = random_.chance(probability);  // drawn in any case, so that narrowing changes no other
    return drawn && may.has(fault) && !all_quiet;
  };
  // From hardly ever to most of the time.
  const auto rate = [&] { return 0.5 / static_cast<double>(1ULL << random_.below(6)); };
  FaultPlan plan;
  for (const auto& [fault, trigger] : {std::pair{Fault::refuse_copy, &plan.refuse_copy},
                                       {Fault::fail_copy, &plan.fail_copy},
                                       {Fault::slow_copy, &plan.slow_copy},
                                       {Fault::fail_map, &plan.fail_map},
                                       {Fault::fail_host_map, &plan.fail_host_map},
                                       {Fault::late_event, &plan.late_event},
                                       {Fault::slow_query, &plan.slow_query}}) {
    const double drawn = rate();
    if (happens(fault, 0.6)) trigger->rate = drawn;
  }
  if (happens(Fault::stale_free, 0.6)) plan.stale_free_ns = 20 * kMillisecond;
  plan.late_event_ns = static_cast<TimeNs>(random_.between(1'000, 5 * kMillisecond));
  Witness::Mischief mischief;
  if (happens(Fault::jumping_free, 0.6)) mischief.jumping_free = 0.3;
  if (happens(Fault::sudden_owner, 0.6)) mischief.sudden_owner = 0.1;
  if (happens(Fault::refuse_fill, 0.6)) mischief.refuse_fill = 0.5;
  planned_ = plan;
  simulated_->set_faults(plan);
  backend_->set_mischief(mischief);
}

void Life::break_link() {
  const auto peer = random_peer();
  if (!peer || !plan_.faults.has(Fault::break_link)) return;
  std::pair<DeviceId, DeviceId> link{*peer, plan_.config.consumer};
  switch (random_.weighted({50, 15, 15, 10, 10})) {
    case 0: break;
    case 1: std::swap(link.first, link.second); break;
    case 2: link = {kHost, *peer}; break;
    case 3: link = {*peer, kHost}; break;
    default: link = {kHost, plan_.config.consumer};
  }
  const bool up = down_.contains(link);
  require(simulated_->set_link_up(link.first, link.second, up).has_value(), "simulator",
          "there is no such link");
  if (up)
    down_.erase(link);
  else
    down_.insert(link);
  if (!up && link == std::pair{*peer, plan_.config.consumer} && random_.chance(0.5))
    read_over_broken_link(*peer);
}

/// I10: a peer whose copies fail leaves service.
void Life::read_over_broken_link(DeviceId peer) {
  const Stream& stream = random_stream();
  for (std::uint64_t key = 1; key <= plan_.keys; ++key) {
    const Lease lease = cache_->acquire(key, stream.id);
    if (!lease || lease.device() != peer) continue;
    const std::uint64_t failed = cache_->stats().failed_copies;
    fetch_keys(stream, {key}, true);
    if (cache_->stats().failed_copies == failed) continue;
    static_cast<void>(cache_->poll());
    for (const PoolStats& pool : cache_->stats().pools)
      require(pool.device != peer || !pool.in_service, "I10",
              "a copy from device {} failed, and it is in service", peer);
    return;
  }
}

void Life::lose_device(DeviceId device) {
  const bool may = plan_.faults.has(Fault::lose_device) || plan_.faults.has(Fault::lose_all_peers);
  if (!may || device == plan_.config.consumer) return;
  require(simulated_->lose_device(device).has_value(), "simulator", "there is no device {}", device);
  lost_.insert(device);
  backend_->note_lost(device);
}

void Life::lose_all_peers() {
  if (!plan_.faults.has(Fault::lose_all_peers)) return;
  for (const DeviceId peer : peers_) lose_device(peer);
}

bool Life::host_path_is_good() const {
  return planned_.refuse_copy.rate == 0 && planned_.fail_copy.rate == 0 && planned_.refuse_copy.at == 0 &&
         planned_.fail_copy.at == 0 && !down_.contains({kHost, plan_.config.consumer});
}

// --- and then nothing more
// --------------------------------------------------------------------------------------

/// Faults stop. From here on every operation completes, every reclaim is honoured, and memory returns to its
/// target.
void Life::calm() {
  planned_ = {};
  simulated_->set_faults({});
  backend_->set_mischief({});
  for (const auto& [from, to] : down_) static_cast<void>(simulated_->set_link_up(from, to, true));
  down_.clear();
  synchronize();
  check_arrivals();
  release_all();
  pass_time(50 * kMillisecond);
  // What lives on peers alone stays there if it has nowhere to go: the owner of the data must decide.
  if (may_be_stuck()) {
    const std::map<std::uint64_t, Generation> alive = model_.alive();
    for (const auto& [key, generation] : alive)
      if (model_.current(key) == generation && model_.at(generation).backing == Backing::spill)
        erase_key(key);
  }
  rest();
  check_reclaims();
  for (const Begun& begun : reclaims_)
    require(begun.last.finished, "liveness",
            "a reclaim of {} bytes of device {} is not over, {} are returned", begun.last.requested_bytes,
            begun.device, begun.last.returned_bytes);
  // A slow query is asked seldom: at most a twentieth of the time goes into it.
  pass_time(3 * plan_.config.pressure.sample_interval_ns + 200 * kMillisecond);
  rest();
  check_owners_at_rest();
  check_wiped_at_rest();
  read_everything();
  rest();
  check_statistics(true);

  // A peer that was out of service comes back, unless its device is lost.
  backend_->sleep_until(backend_->now_ns() + kLongestSuspensionNs);
  pass_time(kMillisecond);
  for (const PoolStats& pool : cache_->stats().pools)
    require(pool.tier != Tier::peer || pool.in_service == !is_lost(pool.device), "I10",
            "device {} is {} service: {}", pool.device, pool.in_service ? "in" : "out of",
            pool.out_of_service_reason);
  rest();
  model_.forget_old();
}

void Life::rest() {
  const Status settled = cache_->settle(backend_->now_ns() + 30 * kSecond);
  require(settled.has_value(), "liveness", "nothing goes wrong any more, but: {}",
          settled ? std::string() : settled.error().message);
}

}  // namespace harvest::simulator
