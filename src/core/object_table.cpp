// SPDX-License-Identifier: Apache-2.0
#include "core/object_table.hpp"

#include <bit>
#include <new>

#include "base/assert.hpp"
#include "base/test_hooks.hpp"

namespace harvest::core {
namespace {

std::uint64_t hash_of(const Key& key) {
  std::uint64_t h = (key.low ^ std::rotl(key.high, 32)) * 0x9E3779B97F4A7C15ULL;
  h ^= h >> 32;
  return h * 0xD6E8FEB86659FD93ULL;
}

// Acquire, as are all loads of a walk: who sees what came after an unlink also sees the version that it
// changed, and looks again.
bool holds_key(const Object& object, const Key& key) {
  return object.key_low.load(std::memory_order_acquire) == key.low &&
         object.key_high.load(std::memory_order_acquire) == key.high;
}

std::uint64_t visible_bits(TierSet tiers) {
  return static_cast<std::uint64_t>(tiers) << 48;
}

Tier first_visible(std::uint64_t meta, TierSet allowed) {
  const std::uint64_t seen = (meta & visible_bits(allowed)) >> 48;
  return static_cast<Tier>(std::countr_zero(seen | (1ULL << kTiers)));  // 3 is Tier::none
}

}  // namespace

void Copy::become(CopyState to) {
  HARVEST_ASSERT(is_legal(kCopyTransitions, state_, to), "a copy's state only changes as the table says");
  state_ = to;
}

void Copy::clear() {
  if (state_ != CopyState::none) become(CopyState::none);
  *this = Copy{};
}

ObjectTable::ObjectTable(std::uint32_t max_objects)
    : max_objects_(max_objects),
      heads_(std::bit_ceil<std::size_t>(std::size_t{max_objects} * 2)),
      bucket_mask_(heads_.size() - 1) {
  const std::size_t bytes = (std::size_t{max_objects_} + 1) * sizeof(Object);
  objects_ = static_cast<Object*>(::operator new (bytes, std::align_val_t{alignof(Object)}));
}

ObjectTable::~ObjectTable() {
  for (std::uint32_t i = 1; i <= constructed_; ++i) objects_[i].~Object();
  ::operator delete (objects_, std::align_val_t{alignof(Object)});
}

std::size_t ObjectTable::bucket_of(const Key& key) const {
  return (hash_of(key) >> 24) & bucket_mask_;
}

Pinned ObjectTable::find_and_pin(const Key& key, TierSet allowed) const {
  const std::size_t bucket = bucket_of(key);
  const std::atomic<std::uint64_t>& version = versions_[bucket % kVersionStripes].value;
  while (true) {
    const std::uint64_t before = version.load(std::memory_order_acquire);
    std::uint32_t index = heads_[bucket].load(std::memory_order_acquire);
    while (index != 0) {
      Object& object = objects_[index];
      if (holds_key(object, key)) {
        const Tier tier = first_visible(object.meta.load(std::memory_order_acquire), allowed);
        if (tier != Tier::none) {
          pause_point(PausePoint::between_look_up_and_pin);
          const std::uint64_t meta = object.meta.fetch_add(one_pin(tier), std::memory_order_acquire);
          pause_point(PausePoint::between_pin_and_recheck);
          const bool seen = (meta & visible_bit(tier)) != 0;
          if (seen && holds_key(object, key) && pins_of(meta, tier) < kMaxPins) [[likely]]
            return {&object, tier, (meta & pending_bit(tier)) != 0, false};
          unpin(object, tier);
          if (seen && pins_of(meta, tier) >= kMaxPins) return {nullptr, tier, false, true};
          index = heads_[bucket].load(std::memory_order_acquire);  // it moved under us: look again
          continue;
        }
      }
      index = object.next.load(std::memory_order_acquire);
    }
    if (version.load(std::memory_order_acquire) == before) return {};
  }
}

Tier ObjectTable::peek(const Key& key) const {
  const Pinned pinned = find_and_pin(key, kAllTiers);
  if (pinned.object != nullptr) unpin(*pinned.object, pinned.tier);
  return pinned.tier;
}

Object* ObjectTable::create(const Key& key, Generation generation) {
  std::uint32_t index = 0;
  if (!recycled_.empty()) {
    index = recycled_.back();
    recycled_.pop_back();
  } else if (constructed_ < max_objects_) {
    index = ++constructed_;
    new (&objects_[index]) Object{};
    objects_[index].index.store(index, std::memory_order_relaxed);
  } else {
    return nullptr;
  }
  // The key is in place before anything of the object is shown: a reader who comes by a stale index and
  // pins a visible copy compares the key after, and must see the new one.
  Object& object = objects_[index];
  object.key = key;
  object.key_high.store(key.high, std::memory_order_release);
  object.key_low.store(key.low, std::memory_order_release);
  object.generation.store(generation, std::memory_order_relaxed);
  return &object;
}

void ObjectTable::recycle(Object& object) {
  HARVEST_ASSERT(!object.linked, "a linked object cannot be recycled");
  for (Copy& copy : object.copies) {
    HARVEST_ASSERT(copy.state() == CopyState::none, "an object with copies cannot be recycled");
    copy.clear();
  }
  object.used_by.store(0, std::memory_order_relaxed);
  object.key = Key{};
  object.tenant = 0;
  object.evictable = false;
  object.wished = 0;
  object.recompute_cost_ns = 0;
  object.heat = 0;
  object.parent.reset();
  object.generation.store(0, std::memory_order_relaxed);
  recycled_.push_back(object.index.load(std::memory_order_relaxed));
}

void ObjectTable::link(Object& object) {
  std::atomic<std::uint32_t>& head = heads_[bucket_of(object.key)];
  object.next.store(head.load(std::memory_order_relaxed), std::memory_order_release);
  head.store(object.index.load(std::memory_order_relaxed), std::memory_order_release);
  object.linked = true;
  ++linked_;
}

void ObjectTable::unlink(Object& object) {
  const std::size_t bucket = bucket_of(object.key);
  const std::uint32_t index = object.index.load(std::memory_order_relaxed);
  std::atomic<std::uint32_t>* link = &heads_[bucket];
  while (link->load(std::memory_order_relaxed) != index) {
    HARVEST_ASSERT(link->load(std::memory_order_relaxed) != 0, "a linked object is in its chain");
    link = &objects_[link->load(std::memory_order_relaxed)].next;
  }
  link->store(object.next.load(std::memory_order_relaxed), std::memory_order_release);
  object.linked = false;
  --linked_;
  versions_[bucket % kVersionStripes].value.fetch_add(1, std::memory_order_release);
}

Object* ObjectTable::find(const Key& key) const {
  std::uint32_t index = heads_[bucket_of(key)].load(std::memory_order_relaxed);
  while (index != 0) {
    Object& object = objects_[index];
    if (object.key == key) return &object;
    index = object.next.load(std::memory_order_relaxed);
  }
  return nullptr;
}

void ObjectTable::for_each(const std::function<void(Object&)>& visit) const {
  for (std::uint32_t i = 1; i <= constructed_; ++i)
    if (objects_[i].generation.load(std::memory_order_relaxed) != 0) visit(objects_[i]);
}

void ObjectTable::show(Object& object, Tier tier, bool pending) {
  const Copy& copy = object.copy(tier);
  const auto i = static_cast<std::size_t>(tier);
  object.address[i].store(copy.slot.address, std::memory_order_relaxed);
  object.device[i].store(copy.device, std::memory_order_relaxed);
  object.ready[i].store(copy.ready, std::memory_order_relaxed);
  object.meta.fetch_or(visible_bit(tier) | (pending ? pending_bit(tier) : 0), std::memory_order_release);
}

void ObjectTable::hide(Object& object, Tier tier) {
  object.meta.fetch_and(~(visible_bit(tier) | pending_bit(tier)), std::memory_order_acq_rel);
}

void ObjectTable::clear_pending(Object& object, Tier tier) {
  object.meta.fetch_and(~pending_bit(tier), std::memory_order_acq_rel);
}

}  // namespace harvest::core
