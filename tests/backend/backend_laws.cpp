// SPDX-License-Identifier: Apache-2.0
#include "backend/backend_laws.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "backend/backend_trial.hpp"

namespace harvest::test {

namespace {

// --- the machine ----------------------------------------------------------------------------------------

void machine_is_described(Trial& t) {
  const auto devices = t.backend().devices();
  t.require(devices.size() >= 3, "fewer than two GPUs and the host");
  for (std::size_t i = 0; i < devices.size(); ++i) {
    const DeviceId wanted = i + 1 == devices.size() ? kHost : static_cast<DeviceId>(i);
    t.expect(devices[i].id == wanted, "GPUs are not numbered from 0 with the host last");
    const std::uint64_t step = devices[i].segment_granularity_bytes;
    t.expect(step > 0 && (step & (step - 1)) == 0, "a granularity is not a power of two");
    t.expect(devices[i].total_bytes > 0, "a device has no memory");
  }
  std::set<std::pair<DeviceId, DeviceId>> pairs;
  for (const LinkInfo& link : t.backend().links()) {
    t.expect(link.bandwidth_bytes_per_s > 0, "a link has no bandwidth");
    t.expect(link.latency_ns >= 0 && link.issue_ns >= 0 && link.issue_batched_ns >= 0,
             "a link's cost is negative");
    t.expect(pairs.emplace(link.from, link.to).second, "two links on one route");
  }
  for (const DeviceInfo& device : devices)
    t.expect(pairs.contains({device.id, device.id}), "a device has no link to itself");
}

// --- copies and fills -----------------------------------------------------------------------------------

/// One way around: host, GPU, its peer, host. Odd sizes and offsets; what lies beside stays as it was.
void copies_arrive(Trial& t) {
  const StreamId s = t.stream();
  std::byte* a = t.segment(0, 4 * kMiB);
  std::byte* b = t.segment(1, 4 * kMiB);
  std::uint64_t seed = 1;
  for (const std::uint64_t bytes : {std::uint64_t{2}, std::uint64_t{4097}, kMiB, 3 * kMiB + 7}) {
    for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{64}, std::uint64_t{12'345}}) {
      const std::byte* source = t.content(bytes, ++seed);
      std::byte* target = t.content(bytes + 128, seed + 1000);
      t.copy(s, {kHost, 0}, a + offset, source, bytes);
      t.copy(s, {0, 1}, b + offset / 2, a + offset, bytes);
      t.copy(s, {1, kHost}, target + 64, b + offset / 2, bytes);
      t.finish(s);
      t.expect(t.host().holds(target + 64, bytes, seed),
               fmt::format("{} bytes at offset {} did not arrive", bytes, offset));
      t.expect(t.host().holds(target, 64, seed + 1000), "a copy wrote before its destination");
      t.expect(t.host().holds(target + 64 + bytes, 64, seed + 1000, 64 + bytes),
               "a copy wrote past its destination");
    }
  }
}

void copies_arrive_on_every_link(Trial& t) {
  constexpr std::uint64_t kBytes = 300'001;
  const StreamId s = t.stream();
  std::uint64_t seed = 1;
  for (const LinkInfo& link : t.backend().links()) {
    std::byte* from = t.segment(link.from, kBytes);
    std::byte* to = t.segment(link.to, kBytes);
    const std::byte* source = t.content(kBytes, ++seed);
    std::byte* target = t.host().allocate(kBytes);
    t.copy(s, {kHost, link.from}, from, source, kBytes);
    t.copy(s, {link.from, link.to}, to, from, kBytes);
    t.copy(s, {link.to, kHost}, target, to, kBytes);
    t.finish(s);
    t.expect(t.host().holds(target, kBytes, seed),
             fmt::format("wrong bytes from {} to {}", link.from, link.to));
    t.require(t.backend().unmap_segment(from), "unmap");
    t.require(t.backend().unmap_segment(to), "unmap");
  }
}

/// A source is read where it begins, not where its segment does.
void parts_of_a_segment_are_told_apart(Trial& t) {
  constexpr std::uint64_t kPart = 10'000;
  const StreamId s = t.stream();
  std::byte* a = t.segment(0, kMiB);
  for (std::uint64_t i = 0; i < 8; ++i) t.copy(s, {kHost, 0}, a + i * kPart, t.content(kPart, i + 1), kPart);
  for (std::uint64_t i = 0; i < 8; ++i) {
    std::byte* target = t.host().allocate(kPart);
    t.copy(s, {0, kHost}, target, a + i * kPart, kPart);
    t.finish(s);
    t.expect(t.host().holds(target, kPart, i + 1), fmt::format("part {} of a segment is another", i));
  }
}

void batches_arrive_whole(Trial& t) {
  const StreamId s = t.stream();
  std::byte* a = t.segment(0, 4 * kMiB);
  for (const std::size_t count : {std::size_t{1}, std::size_t{2}, std::size_t{7}, std::size_t{64}}) {
    const std::uint64_t bytes = 5'003;
    std::vector<Copy> in, out;
    for (std::size_t i = 0; i < count; ++i) {
      std::byte* place = a + (i * 37 % count) * 2 * bytes;  // scattered
      in.push_back({place, t.content(bytes, count * 100 + i), bytes});
      out.push_back({t.host().allocate(bytes), place, bytes});
    }
    t.require(t.backend().copy(s, {kHost, 0}, in), "copy");
    std::fill(in.begin(), in.end(), Copy{});  // not read after the call
    t.require(t.backend().copy(s, {0, kHost}, out), "copy");
    t.finish(s);
    for (std::size_t i = 0; i < count; ++i)
      t.expect(t.host().holds(out[i].destination, bytes, count * 100 + i),
               fmt::format("copy {} of a batch of {} did not arrive", i, count));
  }
}

void fills_set_their_bytes_and_no_others(Trial& t) {
  constexpr std::uint64_t kBytes = 30'000;
  const StreamId s = t.stream();
  std::byte* a = t.segment(0, kBytes);
  std::byte* target = t.host().allocate(kBytes);
  for (const std::uint8_t value : {std::uint8_t{0}, std::uint8_t{1}, std::uint8_t{0xA7}}) {
    t.copy(s, {kHost, 0}, a, t.content(kBytes, 5), kBytes);
    t.require(t.backend().fill(s, 0, a + 1'000, 20'001, value), "fill");
    t.copy(s, {0, kHost}, target, a, kBytes);
    t.finish(s);
    t.expect(t.host().is_filled(target + 1'000, 20'001, value),
             fmt::format("a fill with {} is not that", value));
    t.expect(t.host().holds(target, 1'000, 5), "a fill wrote before its range");
    t.expect(t.host().holds(target + 21'001, kBytes - 21'001, 5, 21'001), "a fill wrote past its range");
  }
}

/// What is refused has done nothing, and the stream goes on.
void bad_work_is_refused(Trial& t) {
  constexpr std::uint64_t kBytes = 5'000;
  const StreamId s = t.stream();
  Backend& backend = t.backend();
  std::byte* a = t.segment(0, kBytes);
  std::byte* source = t.content(kBytes, 3);
  std::byte* target = t.host().allocate(kBytes);
  t.copy(s, {kHost, 0}, a, source, kBytes);
  const std::array good{Copy{a, target, kBytes}};
  const std::array empty{Copy{a, source, 0}}, no_source{Copy{a, nullptr, 8}},
      no_target{Copy{nullptr, source, 8}};
  t.host().write(target, kBytes, 4);
  t.expect_error(backend.copy(s, {kHost, 0}, {}), ErrorCode::invalid_argument, "an empty batch");
  t.expect_error(backend.copy(s, {kHost, 0}, empty), ErrorCode::invalid_argument, "a copy of 0 bytes");
  t.expect_error(backend.copy(s, {kHost, 0}, no_source), ErrorCode::invalid_argument, "a copy from null");
  t.expect_error(backend.copy(s, {kHost, 0}, no_target), ErrorCode::invalid_argument, "a copy to null");
  t.expect_error(backend.fill(s, 0, nullptr, 8, 0), ErrorCode::invalid_argument, "a fill at null");
  t.expect_error(backend.fill(s, 0, a, 0, 0), ErrorCode::invalid_argument, "a fill of 0 bytes");
  t.expect_error(backend.copy(StreamId::none, {kHost, 0}, good), ErrorCode::not_found, "a copy on no stream");
  t.expect_error(backend.copy(StreamId{987'654}, {kHost, 0}, good), ErrorCode::not_found,
                 "a copy on an unknown stream");
  t.expect_error(backend.copy(s, {kHost, 77}, good), ErrorCode::not_found, "a copy to an unknown device");
  t.copy(s, {0, kHost}, target, a, kBytes);
  t.finish(s);
  t.expect(t.host().holds(target, kBytes, 3), "refused work left a trace");
}

std::vector<Law> copy_laws() {
  return {
      {"machine_is_described", machine_is_described},
      {"copies_arrive", copies_arrive},
      {"copies_arrive_on_every_link", copies_arrive_on_every_link},
      {"parts_of_a_segment_are_told_apart", parts_of_a_segment_are_told_apart},
      {"batches_arrive_whole", batches_arrive_whole},
      {"fills_set_their_bytes_and_no_others", fills_set_their_bytes_and_no_others},
      {"bad_work_is_refused", bad_work_is_refused},
  };
}

class RealHostMemory final : public HostMemory {
 public:
  std::byte* allocate(std::uint64_t bytes) override {
    return blocks_.emplace_back(std::make_unique<std::byte[]>(bytes)).get();
  }
  void write(std::byte* address, std::uint64_t bytes, std::uint64_t seed) override {
    for (std::uint64_t i = 0; i < bytes; i += 8) {
      const std::uint64_t word = word_of(seed, i / 8);
      std::memcpy(address + i, &word, std::min<std::uint64_t>(8, bytes - i));
    }
  }
  bool holds(const std::byte* address, std::uint64_t bytes, std::uint64_t seed,
             std::uint64_t offset_bytes) const override {
    for (std::uint64_t i = 0, step = 0; i < bytes; i += step) {
      const std::uint64_t at = offset_bytes + i;
      step = std::min(8 - at % 8, bytes - i);
      const std::uint64_t word = word_of(seed, at / 8);
      if (std::memcmp(address + i, reinterpret_cast<const std::byte*>(&word) + at % 8, step) != 0)
        return false;
    }
    return true;
  }
  bool is_filled(const std::byte* address, std::uint64_t bytes, std::uint8_t value) const override {
    return std::all_of(address, address + bytes, [&](std::byte b) { return b == std::byte{value}; });
  }

 private:
  static std::uint64_t word_of(std::uint64_t seed, std::uint64_t i) {
    std::uint64_t word = ((i + 1) * 0x9E37'79B9'7F4A'7C15ULL) ^ (seed * 0xD6E8'FEB8'6659'FD93ULL);
    word *= 0xBF58'476D'1CE4'E5B9ULL;
    return word ^ (word >> 29U);
  }
  std::vector<std::unique_ptr<std::byte[]>> blocks_;
};

}  // namespace

std::unique_ptr<HostMemory> make_host_memory() {
  return std::make_unique<RealHostMemory>();
}

std::span<const Law> backend_laws() {
  static const std::vector<Law> all = [] {
    std::vector<Law> laws;
    for (const auto& part : {copy_laws(), memory_laws(), order_laws()})
      laws.insert(laws.end(), part.begin(), part.end());
    return laws;
  }();
  return all;
}

std::vector<std::string> check(const Law& law, const SubjectFactory& make) {
  Trial trial(make());
  try {
    law.check(trial);
  } catch (const TrialOver&) {
  }
  return trial.take_findings();
}

}  // namespace harvest::test
