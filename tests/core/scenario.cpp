// SPDX-License-Identifier: Apache-2.0
#include "core/scenario.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/world.hpp"

namespace harvest::testing {
namespace {

constexpr std::uint64_t kStagingBytes = 16 * MiB;

PeerCacheConfig random_config(Random& random, std::vector<DeviceId> peers) {
  const auto pick = [&](std::span<const std::string_view> names) {
    return std::string(names[random.below(names.size())]);
  };
  PeerCacheConfig config = small_config();
  config.peers = std::move(peers);
  config.verify_paths = random.chance(0.2);
  config.local_budget_bytes = random.below(3) * 4 * MiB;
  config.peer_budget_bytes = random.between(2, 8) * 2 * MiB;
  config.host_budget_bytes = random.between(6, 24) * 2 * MiB;
  config.host_chunk_bytes = 2 * MiB;
  config.max_objects = random.chance(0.2) ? 40 : 512;
  config.local_policy = {pick(eviction_policy_names()), pick(admission_policy_names())};
  config.peer_policy = {pick(eviction_policy_names()), pick(admission_policy_names())};
  config.host_policy = {pick(eviction_policy_names()), pick(admission_policy_names())};
  config.placement = pick(placement_policy_names());
  config.pressure.regrow_delay_ns = random.chance(0.5) ? 5'000'000 : 100'000'000;
  config.background_bytes = random.chance(0.5) ? MiB : 64 * MiB;
  return config;
}

}  // namespace

Scenario::Scenario(ScenarioOptions options) : options_(options), random_(options.seed) {
  const bool many = random_.chance(0.5);
  peers_ = many ? std::vector<DeviceId>{1, 2, 3} : std::vector<DeviceId>{1};
  SimulationOptions simulation;
  simulation.seed = options.seed;
  simulated_ = *make_simulated_backend(*load_machine(many ? "dgx-h100" : "2xh100-nvl"), simulation);
  backend_ = simulated_.get();
  if (options.checked) {
    checked_ = make_checked_backend(*simulated_, {.on_violation = [](const std::string& what) {
      ADD_FAILURE() << "contract of the backend: " << what;
    }});
    backend_ = checked_.get();
  }
  PeerCacheConfig config = random_config(random_, peers_);
  reserve_bytes_ = config.pressure.reserve_bytes;
  config.on_event = [this](const CacheEvent& event) { events_.push_back(event); };
  auto created = PeerCache::create(*backend_, std::move(config));
  EXPECT_TRUE(created.has_value()) << created.error().message;
  cache_ = std::move(*created);
  for (int i = 0; i < 2; ++i) {
    const StreamId stream = *backend_->create_stream(0);
    streams_.push_back(stream);
    staging_[stream] = *backend_->map_segment(0, kStagingBytes, {});
    gpu_source_[stream] = *backend_->map_segment(0, kMostObjectBytes, {});
  }
}

Scenario::~Scenario() {
  leases_.clear();
  if (cache_) synchronize();
  cache_.reset();
}

void Scenario::run(int steps) {
  for (int i = 0; i < steps && !::testing::Test::HasFailure(); ++i) {
    step_ = i;
    for (const DeviceId peer : peers_) mapped_before_[peer] = simulated_->mapped_bytes(peer);
    step();
    observe();
  }
}

void Scenario::step() {
  switch (random_.weighted({18, 4, 5, 18, 8, 10, 6, 10, 4, 5, 4, 8, 12, 5, 4, 3, 2})) {
    case 0: return put();
    case 1: return put_from_gpu();
    case 2: return erase();
    case 3: return fetch(false);
    case 4: return fetch(true);
    case 5: return acquire();
    case 6: return use_lease();
    case 7: return release();
    case 8: return prefetch();
    case 9: return reclaim();
    case 10: return tenant();
    case 11: return pass_time(static_cast<TimeNs>(random_.between(1'000, 60'000'000)));
    case 12: static_cast<void>(cache_->poll()); return;
    case 13: return kernel();
    case 14: return change_faults();
    case 15: return change_link();
    default: return settle();
  }
}

// --- what happens ------------------------------------------------------------------------------------

std::uint64_t Scenario::random_bytes() {
  switch (random_.weighted({35, 40, 20, 5})) {
    case 0: return random_.between(1, 4 * KiB);
    case 1: return random_.between(4 * KiB, 128 * KiB);
    case 2: return random_.between(128 * KiB, MiB);
    default: return random_.between(MiB, kMostObjectBytes);
  }
}

void Scenario::put() {
  Stored what;
  what.key = random_key();
  what.version = next_version_++;
  what.bytes = random_bytes();
  what.backing = static_cast<Backing>(random_.below(4));
  what.evictable = random_.chance(0.4);
  PutOptions options;
  options.backing = what.backing;
  options.evictable = what.evictable;
  options.tenant = random_.chance(0.2) ? static_cast<std::uint32_t>(random_.between(1, 3)) : 0;
  options.recompute_cost_ns = random_.chance(0.3) ? 1e6 : 0;
  if (what.backing == Backing::external_host) {
    what.external = *simulated_->reserve_host_range(what.bytes);
    write_content({what.external, what.bytes}, what.key, what.version);
    stored(cache_->put(what.key, what.external, what.bytes, options), what, false);
    return;
  }
  if (random_.chance(0.5)) options.stream = streams_[random_.below(streams_.size())];
  what.risky = fails_in_flight_ || !down_.empty();
  Source source;
  source.bytes = content(what.key, what.version, what.bytes);
  stored(cache_->put(what.key, source.bytes.data(), what.bytes, options), what, fails_in_flight_);
  if (options.stream == StreamId::none) return;
  source.event = *backend_->record_event(options.stream);
  sources_.push_back(std::move(source));
}

/// The bytes are written by work on the stream itself, as a model's own kernel would.
void Scenario::put_from_gpu() {
  if (fails_in_flight_ || !down_.empty()) return;
  Stored what;
  what.key = random_key();
  what.version = next_version_++;
  what.bytes = random_bytes();
  what.backing = static_cast<Backing>(random_.between(1, 3));
  PutOptions options;
  options.backing = what.backing;
  options.source_device = 0;
  options.stream = streams_[random_.below(streams_.size())];
  std::byte* const at = gpu_source_[options.stream];
  Source source;
  source.bytes = content(what.key, what.version, what.bytes);
  const Copy upload{at, source.bytes.data(), what.bytes};
  while (!backend_->copy(options.stream, {kHost, 0}, {&upload, 1})) ASSERT_TRUE(faulty_);
  stored(cache_->put(what.key, at, what.bytes, options), what, false);
  source.event = *backend_->record_event(options.stream);
  sources_.push_back(std::move(source));
}

void Scenario::stored(const Result<Generation>& generation, Stored what, bool old_may_go) {
  if (generation) {
    ASSERT_FALSE(stored_.contains(*generation)) << "generations are never used twice";
    ASSERT_TRUE(stored_.empty() || *generation > stored_.rbegin()->first);
    stored_[*generation] = what;
    alive_[what.key] = *generation;
    return;
  }
  const ErrorCode code = generation.error().code;
  if (what.external != nullptr) static_cast<void>(simulated_->release_host_range(what.external));
  ASSERT_TRUE(code == ErrorCode::out_of_memory ||
              (in_trouble() && (code == ErrorCode::copy_failed || code == ErrorCode::unavailable)))
      << generation.error().message;
  // A copy that was accepted and failed afterwards has replaced the old content before it was known.
  if (old_may_go && code == ErrorCode::copy_failed && cache_->locate(what.key) == Tier::none)
    alive_.erase(what.key);
}

void Scenario::erase() {
  const std::uint64_t key = random_key();
  const Status erased = cache_->erase(key);
  hear_events();
  if (erased) {
    ASSERT_TRUE(alive_.contains(key)) << "key " << key << " was not known to be there";
    alive_.erase(key);
  } else {
    ASSERT_EQ(erased.error().code, ErrorCode::not_found);
    expect_missing(key);
  }
}

void Scenario::fetch(bool wait) {
  // What fails in flight is only told by the call that waits.
  if (fails_in_flight_ || !down_.empty()) wait = true;
  const StreamId stream = streams_[random_.below(streams_.size())];
  std::vector<FetchItem> items(random_.between(1, random_.chance(0.1) ? 200 : 16));
  std::uint64_t used = 0;
  std::vector<std::uint64_t> offsets;
  for (FetchItem& item : items) {
    const std::uint64_t key = random_key();
    const auto found = alive_.find(key);
    const std::uint64_t bytes = found == alive_.end() ? 1 : stored_.at(found->second).bytes;
    item.key = key;
    item.capacity_bytes = bytes + random_.below(2) * 100;
    if (used + item.capacity_bytes > kStagingBytes) {
      items.resize(offsets.size());
      break;
    }
    if (bytes > 1 && random_.chance(0.02)) item.capacity_bytes = bytes - 1;
    item.destination = staging_[stream] + used;
    offsets.push_back(used);
    used += item.capacity_bytes;
  }
  const Status status = wait ? cache_->fetch_and_wait(items, stream) : cache_->fetch(items, stream);
  ASSERT_TRUE(status.has_value()) << status.error().message;
  Check check;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (items[i].outcome != ErrorCode::ok) continue;
    check_item(items[i]);
    check.expected.push_back({offsets[i], items[i].generation});
  }
  // Looking for the reason of a miss may tell of losses that came after the reads above.
  for (const FetchItem& item : items)
    if (item.outcome != ErrorCode::ok) check_item(item);
  if (::testing::Test::HasFailure()) return;
  if (check.expected.empty()) return;
  std::uint64_t end = 0;
  for (const Expected& expected : check.expected)
    end = std::max(end, expected.offset + stored_.at(expected.generation).bytes);
  check.buffer.resize(end);
  if (wait) {
    if (!download(stream, 0, staging_[stream], check.buffer.data(), end)) return;
    for (const Expected& expected : check.expected)
      compare(check.buffer.data() + expected.offset, expected.generation, "fetch_and_wait");
    return;
  }
  const Copy copy{check.buffer.data(), staging_[stream], end};
  while (!backend_->copy(stream, {0, kHost}, {&copy, 1})) ASSERT_TRUE(faulty_);
  check.event = *backend_->record_event(stream);
  checks_.push_back(std::move(check));
}

void Scenario::check_item(const FetchItem& item) {
  const Stored* what = current(item.key.low);
  if (item.outcome == ErrorCode::ok) {
    ASSERT_NE(what, nullptr) << "key " << item.key.low << " was erased and is served";
    ASSERT_EQ(item.generation, alive_.at(item.key.low)) << "I2: key " << item.key.low;
    ASSERT_EQ(item.bytes, what->bytes);
    ASSERT_NE(item.served, Tier::none);
    return;
  }
  ASSERT_EQ(item.served, Tier::none);
  if (item.outcome == ErrorCode::not_found) return expect_missing(item.key.low);
  if (item.outcome == ErrorCode::invalid_argument) {
    ASSERT_TRUE(what == nullptr || item.capacity_bytes < what->bytes);
    return;
  }
  ASSERT_TRUE(in_trouble()) << "key " << item.key.low << ": " << to_string(item.outcome)
                            << " on healthy devices";
}

/// I4: what is not there was erased, or its end was told.
void Scenario::expect_missing(std::uint64_t key) {
  static_cast<void>(cache_->poll());
  hear_events();
  ASSERT_FALSE(alive_.contains(key)) << "I4: key " << key << " (generation " << alive_.at(key)
                                     << ") is gone and nobody was told";
}

void Scenario::acquire() {
  const std::uint64_t key = random_key();
  const StreamId stream = random_.chance(0.3) ? StreamId::none : streams_[random_.below(streams_.size())];
  Lease lease = cache_->acquire(key, stream);
  if (!lease) {
    if (stream == StreamId::none) {  // by the host only what lies on the host and is complete
      ASSERT_TRUE(lease.outcome() == ErrorCode::not_found || lease.outcome() == ErrorCode::busy);
      return;
    }
    ASSERT_EQ(lease.outcome(), ErrorCode::not_found);
    return expect_missing(key);
  }
  ASSERT_NE(current(key), nullptr);
  ASSERT_EQ(lease.generation(), alive_.at(key));
  ASSERT_EQ(lease.bytes(), current(key)->bytes);
  if (stream == StreamId::none) compare(lease.data(), lease.generation(), "host lease");
  const Generation generation = lease.generation();
  if (leases_.size() >= 6) leases_.erase(leases_.begin());
  leases_.push_back({std::move(lease), stream, generation});
}

/// Work on the lease's stream reads the leased bytes; the lease may end long before that work runs.
void Scenario::use_lease() {
  if (leases_.empty() || fails_in_flight_ || !down_.empty()) return;
  Held& held = leases_[random_.below(leases_.size())];
  const std::uint64_t bytes = stored_.at(held.generation).bytes;
  ASSERT_EQ(held.lease.generation(), held.generation) << "I2";
  if (held.stream == StreamId::none) return compare(held.lease.data(), held.generation, "old host lease");
  Check check;
  check.buffer.resize(bytes);
  check.expected = {{0, held.generation}};
  std::byte* const between = staging_[held.stream];
  const Copy read{between, held.lease.data(), bytes};
  while (!backend_->copy(held.stream, {held.lease.device(), 0}, {&read, 1})) ASSERT_TRUE(faulty_);
  const Copy down{check.buffer.data(), between, bytes};
  while (!backend_->copy(held.stream, {0, kHost}, {&down, 1})) ASSERT_TRUE(faulty_);
  check.event = *backend_->record_event(held.stream);
  checks_.push_back(std::move(check));
}

void Scenario::release() {
  if (leases_.empty()) return;
  leases_.erase(leases_.begin() + static_cast<std::ptrdiff_t>(random_.below(leases_.size())));
}

void Scenario::prefetch() {
  std::vector<Key> keys;
  for (std::uint64_t n = random_.between(1, 8); n > 0; --n) keys.emplace_back(random_key());
  const std::size_t coming = cache_->prefetch(keys, random_.chance(0.5) ? Tier::local : Tier::peer);
  ASSERT_LE(coming, keys.size());
}

void Scenario::reclaim() {
  const DeviceId device = random_peer();
  const std::uint64_t bytes = random_.between(1, 24 * MiB);
  const TimeNs patience = std::initializer_list<TimeNs>{0, 200'000, 500'000'000}.begin()[random_.below(3)];
  const TimeNs deadline = backend_->now_ns() + patience;
  if (random_.chance(0.4)) {
    const auto id = cache_->begin_reclaim(device, bytes, deadline);
    ASSERT_TRUE(id.has_value());
    reclaims_.push_back({*id, {}});
    return;
  }
  const std::uint64_t mapped = simulated_->mapped_bytes(device);
  const std::uint64_t free = backend_->query_memory(device)->free_bytes;
  const auto report = cache_->reclaim(device, bytes, deadline);
  ASSERT_TRUE(report.has_value());
  const std::uint64_t left = simulated_->mapped_bytes(device);
  EXPECT_EQ(report->requested_bytes, bytes);
  EXPECT_LE(report->returned_bytes, bytes);
  EXPECT_GE(mapped, left + report->returned_bytes) << "I5: returned bytes are not mapped any more";
  EXPECT_GE(backend_->query_memory(device)->free_bytes, free + report->returned_bytes) << "I5";
  if (report->finished) {
    EXPECT_TRUE(report->returned_bytes == bytes || left == 0);
  } else {
    EXPECT_GT(report->late_bytes, 0U);
    EXPECT_LE(report->returned_bytes + report->late_bytes, bytes);
    EXPECT_GE(backend_->now_ns(), deadline);
  }
}

void Scenario::tenant() {
  const DeviceId device = random_peer();
  const std::uint64_t free = backend_->query_memory(device)->free_bytes;
  const std::uint64_t leave = random_.below(120 * MiB);
  if (free > leave && random_.chance(0.6)) {
    ASSERT_TRUE(simulated_->tenant_allocate(device, free - leave).has_value());
    mapped_before_[device] = UINT64_MAX;  // the cache cannot have known
  } else {
    ASSERT_TRUE(simulated_->tenant_free(device, simulated_->tenant_bytes(device) / 2).has_value());
  }
}

void Scenario::pass_time(TimeNs ns) {
  const TimeNs until = backend_->now_ns() + ns;
  while (backend_->now_ns() < until) backend_->sleep_until(std::min(until, cache_->poll()));
}

void Scenario::kernel() {
  ASSERT_TRUE(simulated_
                  ->submit_kernel(streams_[random_.below(streams_.size())],
                                  static_cast<TimeNs>(random_.between(10'000, 20'000'000)))
                  .has_value());
}

void Scenario::change_faults() {
  if (!options_.faults) return;
  faulty_ = fails_in_flight_ = false;
  FaultPlan plan;
  if (random_.chance(0.6)) {
    faulty_ = true;
    if (random_.chance(0.5)) plan.refuse_copy.rate = 0.2;
    if (random_.chance(0.4)) plan.fail_copy.rate = 0.2, fails_in_flight_ = true;
    if (random_.chance(0.3)) plan.slow_copy.rate = 0.3;
    if (random_.chance(0.3)) plan.fail_map.rate = 0.5;
    if (random_.chance(0.3)) plan.fail_host_map.rate = 0.5;
    if (random_.chance(0.3)) plan.late_event.rate = 0.3;
    if (random_.chance(0.3)) plan.slow_query.rate = 0.3;
  }
  simulated_->set_faults(plan);
}

void Scenario::change_link() {
  if (!options_.faults) return;
  synchronize();  // what the streams were given before arrives; what is given from now on is known to be at
                  // risk
  const DeviceId peer = random_peer();
  std::pair<DeviceId, DeviceId> link{peer, 0};
  if (random_.chance(0.3)) link = {kHost, peer};
  const bool up = down_.contains(link);
  ASSERT_TRUE(simulated_->set_link_up(link.first, link.second, up).has_value());
  if (up)
    down_.erase(link);
  else
    down_.insert(link);
}

void Scenario::settle() {
  const Status settled = cache_->settle(backend_->now_ns() + 3'000'000'000);
  const bool leased =
      std::any_of(leases_.begin(), leases_.end(), [](const Held& h) { return bool(h.lease); });
  if (!leased && !in_trouble() && !may_be_stuck()) {
    EXPECT_TRUE(settled.has_value()) << settled.error().message;
  }
}

/// What lives on a peer alone can only leave when there is room for it on the host.
bool Scenario::may_be_stuck() const {
  return std::any_of(alive_.begin(), alive_.end(), [&](const auto& entry) {
    return stored_.at(entry.second).backing == Backing::spill && cache_->locate(entry.first) != Tier::host;
  });
}

/// Everything that the streams were given is done.
void Scenario::synchronize() {
  for (const StreamId stream : streams_) {
    const auto event = backend_->record_event(stream);
    ASSERT_TRUE(event.has_value());
    backend_->wait_event(*event, kNever);
    backend_->release_event(*event);
  }
}

}  // namespace harvest::testing
