// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/work.hpp"

#include <cstring>

namespace harvest::sim {
namespace {

constexpr int kPoison = 0xDB;
constexpr std::uint64_t kCorruption = 0xC0'44'00'97'00'00'00'00ULL;  // what a corrupt copy adds to a tag

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
      const std::uint64_t front = copy.bytes / 2;
      std::memcpy(copy.destination, copy.source, front);
      std::memset(copy.destination + front, kPoison, copy.bytes - front);
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
    } else {
      const std::uint64_t front = copy.bytes / 2;
      std::memcpy(copy.destination + front, copy.source + front, copy.bytes - front);
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
