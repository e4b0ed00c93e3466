// SPDX-License-Identifier: Apache-2.0
#include "moe/slots.hpp"

#include <algorithm>
#include <limits>

#include "base/assert.hpp"

namespace harvest::moe {
namespace {

constexpr std::size_t kUsualStreams = 2;  // more allocate

}  // namespace

UseEvents::~UseEvents() {
  for (const Entry& entry : entries_)
    if (entry.references > 0) backend_.release_event(entry.event);
}

std::uint32_t UseEvents::add(EventId event) {
  if (free_.empty()) {
    free_.push_back(static_cast<std::uint32_t>(entries_.size()));
    entries_.emplace_back();
  }
  const std::uint32_t number = free_.back();
  free_.pop_back();
  entries_[number] = {event, 1};
  return number;
}

void UseEvents::hold(std::uint32_t number) {
  if (number != kNone) ++entries_[number].references;
}

void UseEvents::drop(std::uint32_t number) {
  if (number == kNone) return;
  if (--entries_[number].references > 0) return;
  backend_.release_event(entries_[number].event);
  free_.push_back(number);
}

SlotTable::SlotTable(std::uint32_t slots, std::uint32_t layers, double evenness)
    : evenness_(evenness), slots_(slots), layers_(layers) {
  free_.reserve(slots);
  for (std::uint32_t slot = slots; slot-- > 0;) free_.push_back(slot);
  for (Slot& slot : slots_) slot.uses.reserve(kUsualStreams);
}

void SlotTable::find_least(Layer& layer) const {
  layer.least = kNone;
  layer.known = true;
  for (const std::uint32_t slot : layer.slots)
    if (slots_[slot].steps == 0 && (layer.least == kNone || slots_[slot].value < slots_[layer.least].value))
      layer.least = slot;
}

std::uint32_t SlotTable::next_victim() {
  if (!free_.empty()) return free_.back();
  const Layer* victim = nullptr;
  const auto worth = [&](const Layer& layer) {
    return slots_[layer.least].value - evenness_ * static_cast<double>(layer.slots.size());
  };
  for (Layer& layer : layers_) {
    if (!layer.known) find_least(layer);
    if (layer.least != kNone && (victim == nullptr || worth(layer) < worth(*victim))) victim = &layer;
  }
  return victim == nullptr ? kNone : victim->least;
}

double SlotTable::value_of(std::uint32_t slot) const {
  return slots_[slot].expert == kNone ? -std::numeric_limits<double>::infinity() : slots_[slot].value;
}

void SlotTable::fill(std::uint32_t slot, std::uint32_t expert, std::uint32_t layer, double value) {
  HARVEST_ASSERT(!free_.empty() && slots_[slot].expert == kNone, "a slot that is taken is not filled");
  std::erase(free_, slot);
  Slot& filled = slots_[slot];
  filled.expert = expert;
  filled.guessed = filled.expendable = false;
  filled.guessed_bytes = 0;
  filled.value = value;
  restart(slot);
  layers_[layer].slots.push_back(slot);
  layers_[layer].known = false;
}

void SlotTable::restart(std::uint32_t slot) {
  Slot& fresh = slots_[slot];
  fresh.content = ++contents_;
  fresh.pieces = 0;
  fresh.from = Tier::none;
  fresh.earlier_flights = fresh.flights;
  fresh.head_flights = {};
  fresh.ready_lanes = 0;
  fresh.broken = fresh.delivered = false;
}

void SlotTable::empty(std::uint32_t slot, std::uint32_t layer) {
  HARVEST_ASSERT(slots_[slot].steps == 0, "a slot that a step uses is not emptied");
  slots_[slot].expert = kNone;
  free_.push_back(slot);
  std::erase(layers_[layer].slots, slot);
  layers_[layer].known = false;
}

void SlotTable::set_value(std::uint32_t slot, std::uint32_t layer, double value) {
  slots_[slot].value = value;
  layers_[layer].known = false;
}

void SlotTable::add_step(std::uint32_t slot, std::uint32_t layer) {
  ++slots_[slot].steps;
  layers_[layer].known = false;
}

void SlotTable::end_step(std::uint32_t slot, std::uint32_t layer) {
  HARVEST_ASSERT(slots_[slot].steps > 0, "more steps end than began");
  --slots_[slot].steps;
  layers_[layer].known = false;
}

}  // namespace harvest::moe
