// SPDX-License-Identifier: Apache-2.0
// One object, kept in a neighbour's idle memory and given back when the neighbour wants it.
#include <harvest/harvest.hpp>

#include <cstdio>
#include <string>
#include <vector>

int main() {
  using namespace harvest;
  constexpr std::uint64_t kBytes = 8 << 20;
  std::vector<std::byte> weights(kBytes, std::byte{42}), received(kBytes);

  // A machine with two GPUs that exists in this process only. GPU 0 reads, GPU 1 lends.
  auto backend = make_simulated_backend(*machine_from_preset("2xh100-nvl")).value();
  auto cache = PeerCache::create(*backend, {.consumer = 0, .peers = {1}}).value();
  const StreamId stream = backend->create_stream(0).value();
  std::byte* buffer = backend->map_segment(0, kBytes, {}).value();  // on GPU 0

  // The bytes stay where they are in host memory; Harvest makes copies on the peer.
  if (!cache->put(7, weights.data(), kBytes, {.backing = Backing::external_host})) return 1;
  const Key key = 7;
  cache->prefetch({&key, 1}, Tier::peer);
  if (!cache->settle(kNever)) return 1;

  const auto fetch = [&](const char* when) {
    FetchItem item{.key = key, .destination = buffer, .capacity_bytes = kBytes};
    if (!cache->fetch_and_wait({&item, 1}, stream)) return false;
    std::printf("%-24s served by the %s\n", when, std::string(to_string(item.served)).c_str());
    const Copy back{received.data(), buffer, kBytes};  // to compare
    if (!backend->copy(stream, {0, kHost}, {&back, 1})) return false;
    const EventId done = backend->record_event(stream).value();
    backend->wait_event(done, kNever);
    backend->release_event(done);
    return received == weights;
  };
  bool right = fetch("before the reclaim:");

  // The peer's owner wants its memory back, within a second.
  const auto report = cache->reclaim(1, kBytes, backend->now_ns() + 1'000'000'000).value();
  std::printf("%-24s %llu of %llu bytes in %.3f ms\n",
              "returned to the owner:", static_cast<unsigned long long>(report.returned_bytes),
              static_cast<unsigned long long>(report.requested_bytes),
              static_cast<double>(report.duration_ns) / 1e6);
  right = right && fetch("after the reclaim:") && report.returned_bytes >= report.requested_bytes;
  std::puts(right ? "every byte was right" : "WRONG");
  cache.reset();
  return right && backend->unmap_segment(buffer) ? 0 : 1;
}
