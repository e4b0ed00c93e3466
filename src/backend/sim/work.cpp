// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/work.hpp"

#include <array>
#include <bit>
#include <cstring>

#include "backend/sim/mix.hpp"

namespace harvest::sim {
namespace {

constexpr int kPoison = 0xDB;
constexpr std::uint64_t kCorruption = 0xC0'44'00'97'00'00'00'00ULL;  // what a corrupt copy adds to a tag

/// A hash of real bytes, four words at a time: copies spend half their time here.
std::uint64_t digest(const std::byte* bytes, std::uint64_t count) {
  constexpr std::uint64_t kOdd = 0x9E37'79B9'7F4A'7C15ULL;
  std::array<std::uint64_t, 4> lanes{1, 2, 3, 4}, words{};
  std::uint64_t at = 0;
  for (; at + sizeof(words) <= count; at += sizeof(words)) {
    std::memcpy(words.data(), bytes + at, sizeof(words));
    for (std::size_t i = 0; i < lanes.size(); ++i) lanes[i] = std::rotl((lanes[i] ^ words[i]) * kOdd, 29);
  }
  words = {};
  std::memcpy(words.data(), bytes + at, count - at);
  for (std::size_t i = 0; i < lanes.size(); ++i) lanes[i] = mix(lanes[i], words[i]);
  return mix(mix(lanes[0], lanes[1]), mix(lanes[2], lanes[3]));
}

}  // namespace

void reset(Work& work) {
  std::vector<PlacedCopy> room = std::move(work.copies);
  room.clear();
  const std::uint64_t serial = work.serial + 1;
  work = Work{};
  work.copies = std::move(room);
  work.serial = serial;
}

void Effects::begin(Work& work) const {
  for (PlacedCopy& placed : work.copies) {
    const Copy& copy = placed.copy;
    if (work.kind == Work::Kind::fill) {
      if (contents_ != nullptr)
        contents_->write_poison(copy.destination, copy.bytes);
      else
        std::memset(copy.destination, kPoison, copy.bytes);
    } else if (contents_ != nullptr) {
      placed.digest = contents_->begin_copy(copy.destination, copy.source, copy.bytes);
    } else {
      placed.digest = digest(copy.source, copy.bytes);
      std::memset(copy.destination, kPoison, copy.bytes);
    }
  }
}

void Effects::finish(Work& work, bool succeeded) const {
  if (!succeeded) return;
  for (PlacedCopy& placed : work.copies) {
    const Copy& copy = placed.copy;
    if (work.kind == Work::Kind::fill) {
      if (contents_ != nullptr)
        contents_->fill(copy.destination, copy.bytes, work.value);
      else
        std::memset(copy.destination, work.value, copy.bytes);
    } else if (contents_ != nullptr) {
      contents_->finish_copy(copy.destination, copy.source, copy.bytes, placed.digest);
    } else if (digest(copy.source, copy.bytes) == placed.digest) {
      std::memcpy(copy.destination, copy.source, copy.bytes);
    }
  }
  if (!work.corrupts || work.copies.empty()) return;
  const Copy& first = work.copies.front().copy;
  if (contents_ != nullptr)
    contents_->write(first.destination, first.bytes, Content{kCorruption + work.serial, 0});
  else
    first.destination[first.bytes / 2] ^= std::byte{0x5A};
}

void Effects::let_go(Work& work) {
  for (PlacedCopy& placed : work.copies)
    for (Range* range : {placed.destination, placed.source})
      if (range != nullptr) range->unfinished_work.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace harvest::sim
