// SPDX-License-Identifier: Apache-2.0
// An inference server of one's own, as far as memory goes: for each token it needs a few experts of every
// layer, and for each request the KV blocks of the conversation so far. Experts have their bytes in host
// memory and are only brought closer. KV blocks live on the peer alone and may vanish: then the server
// computes them again. The peer's owner takes its memory back in the middle of it.
//
// The machine is simulated, so the loop polls: virtual time moves only when somebody waits. A server on real
// GPUs would have a harvest::Runner do that, from a thread of its own.
#include <harvest/harvest.hpp>

#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

using namespace harvest;

namespace {

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kExpertBytes = 2 * kMiB, kBlockBytes = kMiB;
constexpr std::uint64_t kLayers = 4, kExpertsPerLayer = 8, kExpertsPerToken = 2;
constexpr TimeNs kLayerNs = 10'000'000;
constexpr std::uint64_t kConversations = 6, kTurns = 8;  // a turn adds a block to a conversation

// Keys of two kinds that never meet.
Key expert_key(std::uint64_t layer, std::uint64_t expert) {
  return {1, layer * kExpertsPerLayer + expert};
}
Key block_key(std::uint64_t conversation, std::uint64_t turn) {
  return {2, conversation << 32 | turn};
}

// What an object must hold, so that this example can check it.
std::byte value_of(const Key& key) {
  return static_cast<std::byte>(key.high * 131 + key.low * 29 + 1);
}

struct Server {
  SimulatedBackend& backend;
  PeerCache& cache;
  StreamId compute, copies;  // kernels; copies beside them
  std::byte* buffer;         // on GPU 0: where what is not local comes to
  std::vector<std::byte> scratch = std::vector<std::byte>(kExpertBytes);
  std::uint64_t by_tier[kTiers] = {}, recomputed = 0, wrong = 0;

  // A kernel would read here. The example copies the bytes to the host instead, and looks at them.
  void use(StreamId stream, const std::byte* address, std::uint64_t bytes, const Key& key) {
    const Copy back{scratch.data(), address, bytes};
    if (!backend.copy(stream, {0, kHost}, {&back, 1})) ++wrong;
    wait(stream);
    for (std::uint64_t i = 0; i < bytes; ++i) wrong += scratch[i] != value_of(key) ? 1 : 0;
  }

  void wait(StreamId stream) {
    const EventId done = backend.record_event(stream).value();
    if (backend.wait_event(done, kNever) != EventState::complete) ++wrong;
    backend.release_event(done);
  }

  // All experts that a layer's step needs are asked for at once: local ones are read where they lie.
  void run_layer(std::uint64_t layer, std::uint64_t token) {
    std::vector<Lease> leases;
    std::vector<FetchItem> items;
    for (std::uint64_t i = 0; i < kExpertsPerToken; ++i) {
      const Key key = expert_key(layer, (token * (i + 3) + layer) % (i == 0 ? 3 : kExpertsPerLayer));
      if (cache.locate(key) == Tier::local) {
        Lease lease = cache.acquire(key, compute);  // pinned until the lease ends
        if (lease && lease.tier() == Tier::local) {
          ++by_tier[static_cast<std::size_t>(Tier::local)];
          use(compute, lease.data(), kExpertBytes, key);
          leases.push_back(std::move(lease));
          continue;
        }
      }
      items.push_back({.key = key, .destination = buffer + i * kExpertBytes, .capacity_bytes = kExpertBytes});
    }
    if (!cache.fetch(items, compute)) ++wrong;               // ordered in `compute`: nobody waits here
    if (!backend.submit_kernel(compute, kLayerNs)) ++wrong;  // starts when the experts are there
    for (const FetchItem& item : items) {
      if (item.served == Tier::none) {  // cannot be: experts are backed by host memory
        ++wrong;
        continue;
      }
      ++by_tier[static_cast<std::size_t>(item.served)];
      use(compute, static_cast<std::byte*>(item.destination), kExpertBytes, item.key);
    }
  }

  // Brings the conversation's blocks back, computes those that are gone, and adds the new turn's.
  void run_attention(std::uint64_t conversation, std::uint64_t turn) {
    for (std::uint64_t t = 0; t <= turn; ++t) {
      FetchItem item{.key = block_key(conversation, t), .destination = buffer, .capacity_bytes = kBlockBytes};
      if (t < turn && cache.fetch_and_wait({&item, 1}, copies) && item.served != Tier::none) {
        ++by_tier[static_cast<std::size_t>(item.served)];
      } else {
        if (t < turn) ++recomputed;
        const auto value = static_cast<std::uint8_t>(value_of(item.key));
        if (!backend.fill(copies, 0, buffer, kBlockBytes, value)) ++wrong;
        // No room anywhere is an answer, not an error: the block is computed again next time.
        const PutOptions options{.backing = Backing::lossy, .source_device = 0, .stream = copies};
        static_cast<void>(cache.put(item.key, buffer, kBlockBytes, options));
      }
      use(copies, buffer, kBlockBytes, item.key);
    }
  }
};

}  // namespace

int main() {
  auto backend = make_simulated_backend(*machine_from_preset("2xh100-nvl")).value();
  std::uint64_t lost = 0;
  PeerCacheConfig config{.consumer = 0, .local_budget_bytes = 32 * kMiB, .peer_budget_bytes = 128 * kMiB};
  config.segment_min_bytes = config.segment_max_bytes = 8 * kMiB;  // small, as the objects here
  config.pressure.regrow_delay_ns = 200'000'000;
  config.on_event = [&](const CacheEvent& event) { lost += event.kind == CacheEvent::Kind::lost ? 1 : 0; };
  auto cache = PeerCache::create(*backend, config).value();

  std::vector<std::byte> weights(kLayers * kExpertsPerLayer * kExpertBytes);
  for (std::uint64_t i = 0; i < kLayers * kExpertsPerLayer; ++i) {
    const Key key = expert_key(i / kExpertsPerLayer, i % kExpertsPerLayer);
    std::byte* at = weights.data() + i * kExpertBytes;
    std::memset(at, static_cast<int>(value_of(key)), kExpertBytes);
    if (!cache->put(key, at, kExpertBytes, {.backing = Backing::external_host})) return 1;
  }
  const StreamId compute = backend->create_stream(0).value(), copies = backend->create_stream(0).value();
  std::byte* buffer = backend->map_segment(0, kExpertsPerToken * kExpertBytes, {}).value();
  Server server{.backend = *backend, .cache = *cache, .compute = compute, .copies = copies, .buffer = buffer};

  for (std::uint64_t turn = 0; turn < kTurns; ++turn) {
    for (std::uint64_t conversation = 0; conversation < kConversations; ++conversation) {
      server.run_attention(conversation, turn);
      for (std::uint64_t layer = 0; layer < kLayers; ++layer) server.run_layer(layer, turn + conversation);
      cache->poll();  // between requests: what is hot climbs, owners are heard
    }
    if (turn == kTurns / 2) {  // the owner of GPU 1 wants back half of what we hold there
      const std::uint64_t bytes = backend->mapped_bytes(1) / 2;
      const auto report = cache->reclaim(1, bytes, backend->now_ns() + 1'000'000'000).value();
      std::printf("turn %llu: the owner got %llu of %llu MiB back in %.2f ms\n",
                  static_cast<unsigned long long>(turn),
                  static_cast<unsigned long long>(report.returned_bytes / kMiB),
                  static_cast<unsigned long long>(bytes / kMiB),
                  static_cast<double>(report.duration_ns) / 1e6);
      if (report.returned_bytes < bytes) ++server.wrong;
    }
  }
  std::printf(
      "reads: %llu local, %llu from the peer, %llu from host; blocks lost %llu, computed again %llu\n",
      static_cast<unsigned long long>(server.by_tier[0]), static_cast<unsigned long long>(server.by_tier[1]),
      static_cast<unsigned long long>(server.by_tier[2]), static_cast<unsigned long long>(lost),
      static_cast<unsigned long long>(server.recomputed));
  std::printf("wrong bytes: %llu\n", static_cast<unsigned long long>(server.wrong));
  cache.reset();  // before the machine, and before the memory of the experts
  static_cast<void>(backend->unmap_segment(buffer));
  return server.wrong == 0 ? 0 : 1;
}
