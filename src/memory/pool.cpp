// SPDX-License-Identifier: Apache-2.0
#include "memory/pool.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "base/assert.hpp"
#include "base/test_hooks.hpp"

namespace harvest::memory {
namespace {

constexpr std::uint64_t kSmallestSlotBytes = 512;
constexpr std::uint64_t kClassesPerDoubling = 16;

std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

std::uint64_t slot_bytes_for(std::uint64_t object_bytes) {
  if (object_bytes <= kSmallestSlotBytes) return kSmallestSlotBytes;
  const std::uint64_t step = std::bit_floor(object_bytes) / kClassesPerDoubling;
  return round_up(object_bytes, step);
}

SegmentPlan plan_segment(std::uint64_t object_bytes, std::uint64_t min_bytes, std::uint64_t max_bytes,
                         std::uint64_t granularity_bytes) {
  const std::uint64_t slot = slot_bytes_for(object_bytes);
  if (slot > max_bytes) {
    const std::uint64_t alone = round_up(object_bytes, granularity_bytes);
    return {alone, alone, 1};
  }
  SegmentPlan best;
  double least_waste = 2;
  for (std::uint64_t bytes = round_up(std::max(min_bytes, slot), granularity_bytes); bytes <= max_bytes;
       bytes += granularity_bytes) {
    const std::uint64_t slots = bytes / slot;
    const double waste = 1.0 - static_cast<double>(slots * slot) / static_cast<double>(bytes);
    if (waste < least_waste - 1e-9) {
      least_waste = waste;
      best = {slot, bytes, static_cast<std::uint32_t>(slots)};
    }
  }
  if (best.slots == 0) {  // the slot fits but its rounded segment does not
    const std::uint64_t alone = round_up(object_bytes, granularity_bytes);
    best = {alone, alone, 1};
  }
  return best;
}

void Segment::become(SegmentState to) {
  HARVEST_ASSERT(is_legal(kSegmentTransitions, state_, to),
                 "a segment's state only changes as the table says");
  state_ = to;
}

bool Segment::is_valid() const {
  if (!mapped()) return used == 0 && draining == 0 && owners.empty();
  const auto owned =
      static_cast<std::uint32_t>(std::count_if(owners.begin(), owners.end(), [](auto o) { return o != 0; }));
  return owned == used && owners.size() == slots && used + draining + free_slots.size() == slots &&
         slot_bytes * slots <= bytes;
}

Pool::Pool(Backend& backend, PoolConfig config) : backend_(backend), config_(std::move(config)) {
  for (const DeviceInfo& device : backend_.devices())
    if (device.id == config_.device)
      granularity_bytes_ = std::max<std::uint64_t>(1, device.segment_granularity_bytes);
}

Pool::~Pool() {
  for (Draining& entry : draining_)
    for (const EventId event : entry.events) backend_.release_event(event);
  for (const Segment& segment : segments_)
    if (segment.mapped() && segment.used == 0) static_cast<void>(backend_.unmap_segment(segment.base));
}

void Pool::cut(std::uint32_t id, std::uint64_t slot_bytes, std::uint32_t slots) {
  Segment& segment = segments_[id];
  segment.slot_bytes = slot_bytes;
  segment.slots = slots;
  segment.owners.assign(slots, 0);
  segment.free_slots.resize(slots);
  // Taken from the back: the first slots first.
  for (std::uint32_t i = 0; i < slots; ++i) segment.free_slots[i] = slots - 1 - i;
}

void Pool::index(std::uint32_t id) {
  const Segment& segment = segments_[id];
  if (!segment.mapped() || segment.fenced()) return;
  if (!segment.free_slots.empty())
    by_class_[segment.slot_bytes].emplace(static_cast<std::uint32_t>(segment.free_slots.size()), id);
  if (segment.empty()) empty_.emplace(segment.bytes, id);
}

void Pool::unindex(std::uint32_t id) {
  const Segment& segment = segments_[id];
  if (const auto it = by_class_.find(segment.slot_bytes); it != by_class_.end()) {
    it->second.erase({static_cast<std::uint32_t>(segment.free_slots.size()), id});
    if (it->second.empty()) by_class_.erase(it);
  }
  empty_.erase({segment.bytes, id});
}

std::optional<std::uint32_t> Pool::find_empty(std::uint64_t slot_bytes) const {
  // The smallest that holds it, unless most of that would lie idle.
  const auto it = empty_.lower_bound({slot_bytes, 0});
  if (it == empty_.end()) return std::nullopt;
  const std::uint64_t bytes = it->first;
  if (bytes > config_.segment_max_bytes && bytes > slot_bytes + slot_bytes / 4) return std::nullopt;
  return it->second;
}

std::optional<std::uint32_t> Pool::find_segment(std::uint64_t object_bytes) const {
  for (const std::uint64_t slot_bytes :
       {slot_bytes_for(object_bytes), round_up(object_bytes, granularity_bytes_)}) {
    const auto it = by_class_.find(slot_bytes);
    if (it != by_class_.end()) return it->second.begin()->second;
  }
  return std::nullopt;
}

bool Pool::has_room(std::uint64_t object_bytes) const {
  if (find_segment(object_bytes) || find_empty(slot_bytes_for(object_bytes))) return true;
  return std::any_of(draining_.begin(), draining_.end(),
                     [&](const Draining& entry) { return is_room_for(entry, object_bytes); });
}

bool Pool::is_room_for(const Draining& entry, std::uint64_t object_bytes) const {
  const Segment& segment = segments_[entry.slot.segment];
  return !entry.to_wipe && !segment.fenced() && entry.slot.bytes >= object_bytes &&
         segment.slot_bytes <= slot_bytes_for(object_bytes);
}

Slot Pool::take(std::uint32_t id, std::uint32_t owner) {
  unindex(id);
  Segment& segment = segments_[id];
  const std::uint32_t slot_index = segment.free_slots.back();
  segment.free_slots.pop_back();
  segment.owners[slot_index] = owner;
  ++segment.used;
  index(id);
  const Slot slot{id, slot_index, segment.base + segment.slot_bytes * slot_index,
                  segment.bytes_of(slot_index)};
  used_bytes_ += slot.bytes;
  return slot;
}

std::optional<Allocation> Pool::allocate(std::uint64_t object_bytes, std::uint32_t owner) {
  HARVEST_ASSERT(owner != 0 && object_bytes != 0, "an owner and a size are needed");
  if (const auto segment = find_segment(object_bytes)) return Allocation{take(*segment, owner), {}};

  const std::uint64_t slot_bytes = slot_bytes_for(object_bytes);
  if (const auto segment = find_empty(slot_bytes)) {
    unindex(*segment);
    cut(*segment, slot_bytes, static_cast<std::uint32_t>(segments_[*segment].bytes / slot_bytes));
    index(*segment);
    return Allocation{take(*segment, owner), {}};
  }

  for (auto it = draining_.begin(); it != draining_.end(); ++it) {
    if (!is_room_for(*it, object_bytes)) continue;
    Segment& segment = segments_[it->slot.segment];
    Allocation taken{it->slot, std::move(it->events)};
    draining_.erase(it);
    --segment.draining;
    ++segment.used;
    segment.owners[taken.slot.index] = owner;
    if (!planted_bug(PlantedBug::draining_slot_counted_twice)) draining_bytes_ -= taken.slot.bytes;
    used_bytes_ += taken.slot.bytes;
    return taken;
  }
  return std::nullopt;
}

std::optional<SegmentPlan> Pool::growth(std::uint64_t object_bytes) const {
  const std::uint64_t left = config_.budget_bytes - std::min(config_.budget_bytes, mapped_bytes_);
  const std::uint64_t max_bytes =
      std::min(config_.segment_max_bytes, left / granularity_bytes_ * granularity_bytes_);
  const SegmentPlan plan = plan_segment(object_bytes, std::min(config_.segment_min_bytes, max_bytes),
                                        max_bytes, granularity_bytes_);
  if (plan.segment_bytes > left) return std::nullopt;
  return plan;
}

Status Pool::grow(std::uint64_t object_bytes) {
  const auto plan = growth(object_bytes);
  if (!plan) {
    return fail(
        ErrorCode::out_of_memory,
        fmt::format(
            "an object of {} bytes does not fit into the budget of device {}: {} of {} bytes are mapped",
            object_bytes, config_.device, mapped_bytes_, config_.budget_bytes));
  }
  auto base = backend_.map_segment(config_.device, plan->segment_bytes, config_.readers);
  if (!base) return tl::unexpected(base.error());

  std::uint32_t id = 0;
  if (holes_.empty()) {
    id = static_cast<std::uint32_t>(segments_.size());
    segments_.emplace_back();
  } else {
    id = holes_.back();
    holes_.pop_back();
  }
  segments_[id] = Segment{};
  segments_[id].become(SegmentState::active);
  segments_[id].base = *base;
  segments_[id].bytes = plan->segment_bytes;
  cut(id, plan->slot_bytes, plan->slots);
  mapped_bytes_ += plan->segment_bytes;
  index(id);
  return {};
}

void Pool::release(const Slot& slot, std::vector<EventId> events, bool to_wipe) {
  Segment& segment = segments_[slot.segment];
  HARVEST_ASSERT(segment.mapped() && segment.owners[slot.index] != 0, "only a used slot can be released");
  unindex(slot.segment);
  segment.owners[slot.index] = 0;
  --segment.used;
  used_bytes_ -= slot.bytes;
  Draining entry{slot, std::move(events), to_wipe};
  try_to_wipe(entry);
  if (entry.events.empty() && !entry.to_wipe) {
    segment.free_slots.push_back(slot.index);
  } else {
    ++segment.draining;
    draining_bytes_ += slot.bytes;
    draining_.push_back(std::move(entry));
  }
  index(slot.segment);
}

void Pool::try_to_wipe(Draining& entry) const {
  if (entry.to_wipe) entry.to_wipe = !config_.wipe(entry.slot, entry.events);
}

void Pool::collect() {
  for (auto it = draining_.begin(); it != draining_.end();) {
    std::erase_if(it->events, [&](EventId event) {
      const bool pending = backend_.query_event(event) == EventState::pending;
      if (pending && !planted_bug(PlantedBug::drain_not_waited_for)) return false;
      backend_.release_event(event);
      return true;
    });
    try_to_wipe(*it);
    if (!it->events.empty() || it->to_wipe) {
      ++it;
      continue;
    }
    Segment& segment = segments_[it->slot.segment];
    unindex(it->slot.segment);
    --segment.draining;
    draining_bytes_ -= it->slot.bytes;
    if (!planted_bug(PlantedBug::freed_slot_forgotten)) segment.free_slots.push_back(it->slot.index);
    index(it->slot.segment);
    it = draining_.erase(it);
  }
}

void Pool::fence(std::uint32_t id) {
  if (segments_[id].fenced()) return;
  unindex(id);
  segments_[id].become(SegmentState::fenced);
  fenced_bytes_ += segments_[id].bytes;
}

Status Pool::unmap(std::uint32_t id) {
  Segment& segment = segments_[id];
  HARVEST_ASSERT(segment.drained(), "only a drained segment goes back");
  const Status status =
      planted_bug(PlantedBug::mapping_kept) ? Status{} : backend_.unmap_segment(segment.base);
  mapped_bytes_ -= segment.bytes;
  fenced_bytes_ -= segment.bytes;
  segment.become(SegmentState::unmapped);
  segment = Segment{};
  holes_.push_back(id);
  return status;
}

EventId Pool::oldest_event() const {
  const auto first = std::find_if(draining_.begin(), draining_.end(),
                                  [](const Draining& entry) { return !entry.events.empty(); });
  return first == draining_.end() ? EventId::none : first->events.front();
}

bool Pool::is_valid() const {
  std::uint64_t mapped = 0;
  std::uint64_t used = 0;
  std::uint64_t free = 0;
  std::uint64_t fenced = 0;
  for (const Segment& segment : segments_) {
    if (!segment.is_valid()) return false;
    mapped += segment.bytes;
    if (segment.fenced()) fenced += segment.bytes;
    for (std::uint32_t i = 0; i < segment.slots; ++i)
      if (segment.owners[i] != 0) used += segment.bytes_of(i);
    for (const std::uint32_t i : segment.free_slots) free += segment.bytes_of(i);
  }
  std::uint64_t draining = 0;
  for (const Draining& entry : draining_) draining += entry.slot.bytes;
  return mapped == mapped_bytes_ && used == used_bytes_ && draining == draining_bytes_ &&
         free == free_bytes() && fenced == fenced_bytes_ && used + free + draining == mapped;
}

}  // namespace harvest::memory
