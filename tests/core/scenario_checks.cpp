// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/scenario.hpp"
#include "core/world.hpp"

/// What must hold after every step of a scenario, and at its end.
namespace harvest::testing {

const Scenario::Stored* Scenario::current(std::uint64_t key) const {
  const auto found = alive_.find(key);
  return found == alive_.end() ? nullptr : &stored_.at(found->second);
}

void Scenario::observe() {
  hear_events();
  check_arrivals(false);
  check_growth();
  check_reclaims();
  const Status audit = cache_->audit();
  EXPECT_TRUE(audit.has_value()) << audit.error().message;
}

void Scenario::hear_events() {
  std::vector<CacheEvent> events;
  events.swap(events_);
  for (const CacheEvent& event : events) {
    const auto found = stored_.find(event.generation);
    if (found == stored_.end()) {  // of a put that was answered with an error
      EXPECT_TRUE(in_trouble() && event.kind == CacheEvent::Kind::lost)
          << to_string(event.kind) << " of generation " << event.generation << ", which was never stored";
      continue;
    }
    Stored& what = found->second;
    EXPECT_EQ(event.key, Key(what.key));
    switch (event.kind) {
      case CacheEvent::Kind::lost:
        EXPECT_TRUE(what.backing == Backing::lossy || what.risky)
            << "I4: lost key " << what.key << ", " << to_string(what.backing);
        break;
      case CacheEvent::Kind::evicted:
        EXPECT_TRUE(what.evictable && what.backing == Backing::managed_host)
            << "I4: evicted key " << what.key;
        break;
      case CacheEvent::Kind::settled:
        EXPECT_NE(what.external, nullptr) << "settled twice, or not the caller's memory";
        // The simulation stops the process if anything still reads this memory.
        EXPECT_TRUE(what.external != nullptr && simulated_->release_host_range(what.external).has_value());
        what.external = nullptr;
        EXPECT_FALSE(alive_.contains(what.key) && alive_.at(what.key) == event.generation);
        continue;
      case CacheEvent::Kind::spilled: EXPECT_EQ(what.backing, Backing::spill); continue;
      case CacheEvent::Kind::revoked: continue;
    }
    EXPECT_FALSE(what.told_gone) << "I4: the end of generation " << event.generation << " was told twice";
    what.told_gone = true;
    if (const auto at = alive_.find(what.key); at != alive_.end() && at->second == event.generation)
      alive_.erase(at);
  }
}

void Scenario::compare(const std::byte* bytes, Generation generation, const char* how) {
  const Stored& what = stored_.at(generation);
  const std::vector<std::byte> right = content(what.key, what.version, what.bytes);
  if (std::memcmp(bytes, right.data(), right.size()) == 0) return;
  // A read that did not wait may have been given bytes whose put failed on its way: then the loss is told.
  static_cast<void>(cache_->poll());
  hear_events();
  if (what.risky && what.told_gone && std::string_view(how) != "fetch_and_wait") return;
  const auto wrong = std::mismatch(right.begin(), right.end(), bytes).first - right.begin();
  ADD_FAILURE() << "I2: " << how << ": wrong byte " << wrong << " of " << what.bytes << ", key " << what.key
                << ", generation " << generation << ", step " << step_;
}

void Scenario::check_arrivals(bool all) {
  if (all) synchronize();
  std::erase_if(checks_, [&](const Check& check) {
    if (backend_->query_event(check.event) == EventState::pending) return false;
    backend_->release_event(check.event);
    for (const Expected& expected : check.expected)
      compare(check.buffer.data() + expected.offset, expected.generation, "read on a stream");
    return true;
  });
  std::erase_if(sources_, [&](Source& source) {
    if (backend_->query_event(source.event) == EventState::pending) return false;
    backend_->release_event(source.event);
    std::fill(source.bytes.begin(), source.bytes.end(), std::byte{0xEE});
    return true;
  });
}

/// I6: what we took left the reserve free at that moment.
void Scenario::check_growth() {
  for (const DeviceId peer : peers_) {
    const std::uint64_t mapped = simulated_->mapped_bytes(peer);
    EXPECT_LE(mapped, cache_->config().peer_budget_bytes);
    if (mapped <= mapped_before_[peer]) continue;
    EXPECT_GE(backend_->query_memory(peer)->free_bytes, reserve_bytes_) << "I6: device " << peer;
  }
}

void Scenario::check_reclaims() {
  for (Begun& begun : reclaims_) {
    const auto report = cache_->reclaim_status(begun.id);
    if (!report) continue;  // long ago
    EXPECT_GE(report->returned_bytes, begun.last.returned_bytes);
    EXPECT_LE(report->returned_bytes + report->late_bytes, report->requested_bytes);
    EXPECT_TRUE(report->finished || !begun.last.finished);
    begun.last = *report;
  }
}

void Scenario::check_statistics() {
  const Status settled = cache_->settle(backend_->now_ns() + 10'000'000'000);
  EXPECT_TRUE(settled.has_value() || may_be_stuck()) << settled.error().message;
  hear_events();
  const CacheStats stats = cache_->stats();
  EXPECT_EQ(stats.reads, stats.hits[0] + stats.hits[1] + stats.hits[2] + stats.misses);
  EXPECT_EQ(stats.puts, stats.puts_stored + stats.puts_refused);
  EXPECT_LE(stats.admissions_refused, stats.admissions_asked);
  EXPECT_EQ(stats.promotions, stats.promotions_completed + stats.promotions_failed);
  EXPECT_EQ(stats.objects, alive_.size());
  for (const PoolStats& pool : stats.pools) {
    EXPECT_EQ(pool.used_bytes + pool.free_bytes + pool.draining_bytes, pool.mapped_bytes) << "I7";
    EXPECT_EQ(pool.tier == Tier::peer ? simulated_->mapped_bytes(pool.device) : pool.mapped_bytes,
              pool.mapped_bytes);
  }
  last_stats_ = stats;
}

bool Scenario::download(StreamId stream, DeviceId from, const std::byte* source, std::byte* destination,
                        std::uint64_t bytes) {
  const Copy copy{destination, source, bytes};
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (!backend_->copy(stream, {from, kHost}, {&copy, 1})) continue;
    const auto event = backend_->record_event(stream);
    const bool arrived = backend_->wait_event(*event, kNever) == EventState::complete;
    backend_->release_event(*event);
    if (arrived) return true;
  }
  ADD_FAILURE() << "the test's own copy failed 100 times";
  return false;
}

void Scenario::read_everything() {
  const StreamId stream = streams_.front();
  std::vector<std::byte> buffer(kMostObjectBytes);
  const std::map<std::uint64_t, Generation> keys = alive_;
  for (const auto& [key, generation] : keys) {
    FetchItem item;
    item.key = key;
    item.destination = staging_[stream];
    item.capacity_bytes = kMostObjectBytes;
    ASSERT_TRUE(cache_->fetch_and_wait({&item, 1}, stream).has_value());
    check_item(item);
    if (item.outcome != ErrorCode::ok) continue;
    ASSERT_TRUE(download(stream, 0, staging_[stream], buffer.data(), item.bytes));
    compare(buffer.data(), item.generation, "last read");
  }
}

void Scenario::finish() {
  if (::testing::Test::HasFailure()) return;
  simulated_->set_faults({});
  faulty_ = fails_in_flight_ = false;
  synchronize();
  for (const auto& [from, to] : down_) ASSERT_TRUE(simulated_->set_link_up(from, to, true).has_value());
  down_.clear();
  check_arrivals(true);
  for (Held& held : leases_)
    if (held.stream == StreamId::none) compare(held.lease.data(), held.generation, "last host lease");
  leases_.clear();
  settle();
  pass_time(20'000'000);
  settle();
  observe();
  for (const DeviceId peer : peers_)
    EXPECT_TRUE(simulated_->mapped_bytes(peer) == 0 || may_be_stuck() ||
                backend_->query_memory(peer)->free_bytes >= reserve_bytes_)
        << "I6: device " << peer;
  read_everything();
  hear_events();
  check_statistics();
  hear_events();

  cache_.reset();
  for (const auto& [stream, address] : staging_) EXPECT_TRUE(backend_->unmap_segment(address).has_value());
  for (const auto& [stream, address] : gpu_source_) EXPECT_TRUE(backend_->unmap_segment(address).has_value());
  for (const StreamId stream : streams_) EXPECT_TRUE(backend_->destroy_stream(stream).has_value());
  for (const DeviceInfo& device : backend_->devices())
    EXPECT_EQ(simulated_->mapped_bytes(device.id), 0U) << "I5: device " << device.id;
  for (auto& [generation, what] : stored_)
    if (what.external != nullptr) {
      EXPECT_TRUE(simulated_->release_host_range(what.external).has_value());
    }
}

}  // namespace harvest::testing
