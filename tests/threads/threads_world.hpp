// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "core/world.hpp"

/// A cache on a machine whose streams are threads that really copy, and clients that tell what they read.
namespace harvest::testing {

/// How much a test does: under the thread sanitizer everything takes a multiple of the time.
#if defined(__SANITIZE_THREAD__)
inline constexpr int kSlowdown = 4;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
inline constexpr int kSlowdown = 4;
#else
inline constexpr int kSlowdown = 1;
#endif
#else
inline constexpr int kSlowdown = 1;
#endif

inline constexpr std::uint64_t kObjectBytes = 16 * KiB;
inline constexpr std::uint64_t kVersions = 8;

/// Every 64-bit word of an object says its key and version, so that a mix of two is seen.
inline std::uint64_t word_of(std::uint64_t key, std::uint64_t version) {
  return (key << 32) | (version << 16) | 0xA5A5;
}

/// Which version of `key` this is; nothing if it is another key's, poison, or a mix.
inline std::optional<std::uint64_t> version_in(std::span<const std::byte> bytes, std::uint64_t key) {
  std::uint64_t first = 0;
  std::memcpy(&first, bytes.data(), sizeof first);
  const std::uint64_t version = (first >> 16) & 0xFFFF;
  if (first != word_of(key, version)) return std::nullopt;
  for (std::size_t at = 0; at < bytes.size(); at += sizeof first)
    if (std::memcmp(bytes.data() + at, &first, sizeof first) != 0) return std::nullopt;
  return version;
}

/// Two peers of one 2 MiB segment each; local memory only where a test asks for it. What is given back is not
/// taken again while a test looks.
inline PeerCacheConfig threads_config() {
  PeerCacheConfig config = small_config();
  config.peers = {1, 2};
  config.peer_budget_bytes = 2 * MiB;
  config.host_budget_bytes = 32 * MiB;
  config.pressure.regrow_delay_ns = 600'000'000'000;
  config.pressure.sample_interval_ns = 1'000'000;
  return config;
}

struct ThreadsWorld {
  explicit ThreadsWorld(std::uint64_t keys, PeerCacheConfig config = threads_config()) {
    SimulationOptions options;
    options.time = SimulatedTime::real_time;
    backend = std::move(*make_simulated_backend(*machine_from_preset("dgx-h100"), std::move(options)));
    cache = std::move(*PeerCache::create(*backend, std::move(config)));
    contents.resize(keys);
    for (std::uint64_t key = 0; key < keys; ++key)
      for (std::uint64_t version = 0; version < kVersions; ++version) {
        const std::vector<std::uint64_t> words(kObjectBytes / sizeof(std::uint64_t), word_of(key, version));
        contents[key].push_back(words);
      }
  }

  Result<Generation> put(std::uint64_t key, std::uint64_t version, PutOptions options = {}) const {
    return cache->put(key, contents[key][version].data(), kObjectBytes, options);
  }

  /// A copy on a peer and one on the host, as most objects have.
  void put_on_peer_and_host(std::uint64_t key) const {
    ASSERT_TRUE(put(key, 0).has_value());
    const Key wanted = key;
    ASSERT_EQ(cache->prefetch({&wanted, 1}, Tier::peer), 1U);
    settle();
    ASSERT_EQ(cache->locate(key), Tier::peer);
  }

  [[nodiscard]] std::uint64_t mapped_on_peers() const {
    std::uint64_t bytes = 0;
    for (const DeviceId peer : cache->config().peers) bytes += backend->mapped_bytes(peer);
    return bytes;
  }

  void begin_to_reclaim_all() const {
    for (const DeviceId peer : cache->config().peers)
      ASSERT_TRUE(cache->begin_reclaim(peer, GiB, backend->now_ns()).has_value());
  }

  /// Polls until `done`, for as long as a loaded machine may need.
  void poll_until(const std::function<bool()>& done, const char* what) const {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!done()) {
      ASSERT_LT(std::chrono::steady_clock::now(), give_up) << "never: " << what;
      cache->poll();
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }

  void poll_a_few_times() const {
    for (int i = 0; i < 20; ++i) {
      cache->poll();
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }

  void settle() const {
    const Status settled = cache->settle(backend->now_ns() + 60'000'000'000);
    EXPECT_TRUE(settled.has_value()) << (settled ? "" : settled.error().message);
    const Status audit = cache->audit();
    EXPECT_TRUE(audit.has_value()) << (audit ? "" : audit.error().message);
  }

  /// Takes all memory of the peers back, which nobody may hold up now.
  void give_all_back() const {
    for (const DeviceId peer : cache->config().peers) {
      const auto report = cache->reclaim(peer, GiB, backend->now_ns() + 60'000'000'000);
      ASSERT_TRUE(report.has_value());
      EXPECT_TRUE(report->finished) << "something still holds memory of peer " << peer;
      EXPECT_EQ(backend->mapped_bytes(peer), 0U) << "I5";
    }
    settle();
  }

  std::unique_ptr<SimulatedBackend> backend;
  std::unique_ptr<PeerCache> cache;
  std::vector<std::vector<std::vector<std::uint64_t>>> contents;  ///< by key, by version
};

/// What one read delivered.
struct Seen {
  std::uint64_t key = 0;
  ErrorCode outcome = ErrorCode::not_found;
  Tier tier = Tier::none;
  Generation generation = 0;
  std::optional<std::uint64_t> version;  ///< nothing where the bytes are of no one version
};

/// One who reads, on a stream of his own or a given one; for one thread.
class Client {
 public:
  static constexpr std::size_t kMostItems = 8;

  explicit Client(ThreadsWorld& world, StreamId stream = StreamId::none)
      : world_(world), owns_stream_(stream == StreamId::none), host_(kMostItems * kObjectBytes) {
    stream_ = owns_stream_ ? *world.backend->create_stream(0) : stream;
    device_ = *world.backend->map_segment(0, 2 * MiB, {});
  }
  ~Client() {
    wait();
    if (owns_stream_) {
      EXPECT_TRUE(world_.cache->forget_stream(stream_).has_value());
      EXPECT_TRUE(world_.backend->destroy_stream(stream_).has_value());
    }
    EXPECT_TRUE(world_.backend->unmap_segment(device_).has_value());
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  enum class How : std::uint8_t { fetch, fetch_and_wait };

  /// Reads a batch of at most `kMostItems` and looks at what arrived.
  std::vector<Seen> read(std::span<const std::uint64_t> keys, How how = How::fetch) {
    std::vector<FetchItem> items = submit(keys, how);
    return arrived(items);
  }
  Seen read(std::uint64_t key, How how = How::fetch) { return read({&key, 1}, how).front(); }

  /// The first half of `read`.
  std::vector<FetchItem> submit(std::span<const std::uint64_t> keys, How how = How::fetch) {
    std::vector<FetchItem> items(keys.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      items[i].key = keys[i];
      items[i].destination = device_ + i * kObjectBytes;
      items[i].capacity_bytes = kObjectBytes;
    }
    const Status status = how == How::fetch ? world_.cache->fetch(items, stream_)
                                            : world_.cache->fetch_and_wait(items, stream_);
    EXPECT_TRUE(status.has_value());
    return items;
  }

  /// The second half.
  std::vector<Seen> arrived(std::span<const FetchItem> items) {
    download(device_, 0, items.size() * kObjectBytes);
    std::vector<Seen> seen;
    for (std::size_t i = 0; i < items.size(); ++i) {
      const FetchItem& item = items[i];
      seen.push_back({item.key.low, item.outcome, item.served, item.generation, std::nullopt});
      if (item.outcome == ErrorCode::ok)
        seen.back().version = version_in({host_.data() + i * kObjectBytes, kObjectBytes}, item.key.low);
    }
    return seen;
  }

  /// Gives work to the stream that reads the leased bytes, releases the lease, and looks at what arrived.
  Seen read_leased(std::uint64_t key, Lease lease) {
    Seen seen{key, lease.outcome(), lease.tier(), lease.generation(), std::nullopt};
    if (!lease) return seen;
    use(std::move(lease));
    seen.version = version_of(key);
    return seen;
  }
  Seen lease_and_read(std::uint64_t key) { return read_leased(key, world_.cache->acquire(key, stream_)); }

  /// The first half of `read_leased`.
  void use(Lease lease) {
    const Copy copy{device_, lease.data(), kObjectBytes};
    EXPECT_TRUE(world_.backend->copy(stream_, {lease.device(), 0}, {&copy, 1}).has_value());
  }

  /// The second half: what lies in the client's buffer when all work on the stream is done.
  std::optional<std::uint64_t> version_of(std::uint64_t key) {
    download(device_, 0, kObjectBytes);
    return version_in({host_.data(), kObjectBytes}, key);
  }

  [[nodiscard]] StreamId stream() const { return stream_; }

  void wait() {
    const EventId event = *world_.backend->record_event(stream_);
    world_.backend->wait_event(event, kNever);
    world_.backend->release_event(event);
  }

 private:
  void download(const std::byte* from, DeviceId device, std::uint64_t bytes) {
    const Copy copy{host_.data(), from, bytes};
    EXPECT_TRUE(world_.backend->copy(stream_, {device, kHost}, {&copy, 1}).has_value());
    wait();
  }

  ThreadsWorld& world_;
  const bool owns_stream_;
  StreamId stream_ = StreamId::none;
  std::byte* device_ = nullptr;
  std::vector<std::byte> host_;
};

}  // namespace harvest::testing
