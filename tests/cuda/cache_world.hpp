// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/peer_cache.hpp>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "backend/checked.hpp"
#include "cuda/contents.hpp"

/// A cache over a CUDA backend, real or on the fake, every byte compared.
namespace harvest::test {

using Contents = std::map<std::uint64_t, std::vector<std::byte>>;

inline PeerCacheConfig small_config() {
  PeerCacheConfig config;
  config.host_budget_bytes = 64 * kMiB;
  config.peer_budget_bytes = 32 * kMiB;
  config.segment_min_bytes = 2 * kMiB;
  config.segment_max_bytes = 4 * kMiB;
  config.host_chunk_bytes = 4 * kMiB;
  config.max_objects = 4096;
  config.pressure.reserve_bytes = 64 * kMiB;
  config.pressure.hysteresis_bytes = 2 * kMiB;
  config.pressure.regrow_delay_ns = 50'000'000;
  return config;
}

/// The backend under `checked`, which calls every missing order a violation.
class CacheWorld {
 public:
  explicit CacheWorld(std::unique_ptr<Backend> backend, PeerCacheConfig config = small_config())
      : backend_(make_checked_backend(std::move(backend))) {
    config.on_event = [this](const CacheEvent& event) { events.push_back(event); };
    cache_ = PeerCache::create(*backend_, std::move(config)).value();
    stream_ = backend_->create_stream(0).value();
    staging_ = backend_->map_segment(0, kStagingBytes, {}).value();
  }
  CacheWorld(const CacheWorld&) = delete;
  CacheWorld& operator=(const CacheWorld&) = delete;
  ~CacheWorld() {
    cache_.reset();
    EXPECT_TRUE(backend_->unmap_segment(staging_));
    EXPECT_TRUE(backend_->destroy_stream(stream_));
    EXPECT_THAT(backend_->violations(), testing::IsEmpty());
  }

  Backend& backend() { return *backend_; }
  PeerCache& cache() { return *cache_; }
  StreamId stream() const { return stream_; }

  void put(std::uint64_t key, std::uint64_t bytes, Backing backing) {
    auto& source = sources_.emplace_back(content(bytes, key * 1000 + ++version_));
    PutOptions options;
    options.backing = backing;
    const auto put = cache_->put(key, source.data(), bytes, options);
    ASSERT_TRUE(put.has_value()) << put.error().message;
    current[key] = source;
  }

  std::vector<std::byte> download(const std::byte* address, DeviceId device, std::uint64_t bytes) {
    std::vector<std::byte> out(bytes);
    EXPECT_TRUE(copy_one(*backend_, stream_, {device, kHost}, out.data(), address, bytes));
    EXPECT_EQ(finish(*backend_, stream_), EventState::complete);
    return out;
  }

  /// Fetches all of `keys` in one batch and compares; the tier of each.
  std::map<std::uint64_t, Tier> fetch(const std::vector<std::uint64_t>& keys) {
    std::vector<FetchItem> items;
    std::uint64_t at = 0;
    for (const std::uint64_t key : keys) {
      items.push_back({.key = key, .destination = staging_ + at, .capacity_bytes = current[key].size()});
      at += (current[key].size() + 255) / 256 * 256;
    }
    EXPECT_LE(at, kStagingBytes);
    EXPECT_TRUE(backend_->fill(stream_, 0, staging_, at, 0xEE));
    EXPECT_TRUE(cache_->fetch(items, stream_));
    std::map<std::uint64_t, Tier> served;
    for (const FetchItem& item : items) {
      served[item.key.low] = item.served;
      if (item.served == Tier::none) continue;
      EXPECT_EQ(item.bytes, current[item.key.low].size());
      EXPECT_EQ(download(static_cast<const std::byte*>(item.destination), 0, item.bytes),
                current[item.key.low])
          << "wrong bytes for key " << item.key.low << " from tier " << to_string(item.served);
    }
    return served;
  }

  void settle() {
    const Status settled = cache_->settle(backend_->now_ns() + 20'000'000'000);
    EXPECT_TRUE(settled.has_value()) << settled.error().message;
    const Status audit = cache_->audit();
    EXPECT_TRUE(audit.has_value()) << audit.error().message;
  }

  std::size_t count(CacheEvent::Kind kind) const {
    return static_cast<std::size_t>(std::count_if(
        events.begin(), events.end(), [&](const CacheEvent& event) { return event.kind == kind; }));
  }

  std::vector<DeviceId> peers() const {
    std::vector<DeviceId> gpus;
    for (const DeviceInfo& device : backend_->devices())
      if (device.id > 0) gpus.push_back(device.id);
    return gpus;
  }

  Contents current;
  std::vector<CacheEvent> events;

 private:
  static constexpr std::uint64_t kStagingBytes = 96 * kMiB;
  std::unique_ptr<CheckedBackend> backend_;
  std::deque<std::vector<std::byte>> sources_;  ///< outlives the cache, which reads external objects in place
  std::unique_ptr<PeerCache> cache_;
  StreamId stream_ = StreamId::none;
  std::byte* staging_ = nullptr;
  std::uint64_t version_ = 0;
};

inline constexpr Backing kBackings[] = {Backing::external_host, Backing::managed_host, Backing::spill,
                                        Backing::lossy};
inline constexpr std::uint64_t kSizes[] = {1, 4'097, 65'536, 300'001, 2 * kMiB, 5 * kMiB + 3};

/// Objects of each size and backing; their keys.
inline std::vector<std::uint64_t> put_all(CacheWorld& world, std::uint64_t first_key = 1) {
  std::vector<std::uint64_t> keys;
  for (const Backing backing : kBackings) {
    for (const std::uint64_t bytes : kSizes) {
      keys.push_back(first_key + keys.size());
      world.put(keys.back(), bytes, backing);
    }
  }
  return keys;
}

inline bool is_lossy(std::uint64_t key) {
  return (key - 1) / std::size(kSizes) == 3;
}

}  // namespace harvest::test
