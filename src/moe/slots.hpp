// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/expert_cache.hpp>

#include <cstdint>
#include <vector>

#include "moe/lanes.hpp"

/// The slots of local memory: what lies in each, who uses it, and which goes next.
namespace harvest::moe {

inline constexpr std::uint32_t kNone = UINT32_MAX;

/// The ends of layer steps, each shared by the slots that the step used. Numbers are places in a pool.
class UseEvents {
 public:
  explicit UseEvents(Backend& backend) : backend_(backend) {}
  ~UseEvents();
  UseEvents(const UseEvents&) = delete;
  UseEvents& operator=(const UseEvents&) = delete;

  /// With one reference.
  [[nodiscard]] std::uint32_t add(EventId event);
  /// `kNone` is held and dropped without effect.
  void hold(std::uint32_t number);
  void drop(std::uint32_t number);
  [[nodiscard]] EventId event(std::uint32_t number) const { return entries_[number].event; }

 private:
  struct Entry {
    EventId event = EventId::none;
    std::uint32_t references = 0;
  };
  Backend& backend_;
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> free_;
};

/// The last use of a slot on one stream: a step's, or a lane's that has no event for what it writes there.
/// Where the driver had no event for it, however often it was asked, there is none yet: who writes the slot
/// next asks again, and waits for more than it would have to.
struct Use {
  StreamId stream = StreamId::none;
  std::uint32_t event = kNone;
};

struct Slot {
  std::uint32_t expert = kNone;
  std::uint64_t content = 0;        ///< numbers what was put into slots
  std::uint32_t pieces = 0;         ///< of the expert's, given to lanes so far
  std::uint32_t steps = 0;          ///< open ones that use it
  Tier from = Tier::none;           ///< the slowest tier that a piece was in
  FlightNumbers flights{};          ///< that write it
  FlightNumbers head_flights{};     ///< of those, that bring the first tensors
  FlightNumbers earlier_flights{};  ///< that wrote what lay there before
  std::uint8_t ready_lanes = 0;     ///< bit by lane: ordered behind all that went before
  bool broken = false;              ///< a copy into it failed
  bool delivered = false;           ///< to a step
  bool guessed = false;             ///< came by a guess, and no step has needed it yet
  std::uint64_t guessed_bytes = 0;  ///< that came by it
  bool expendable = false;          ///< a wrong guess, or came for prefill: goes first
  double value = 0;                 ///< since its layer passed
  std::vector<Use> uses{};          ///< one of each stream whose work may not be over
};

class SlotTable {
 public:
  /// Between layers an expert counts `evenness` less for each that its layer has in slots.
  SlotTable(std::uint32_t slots, std::uint32_t layers, double evenness = 0);

  [[nodiscard]] std::uint32_t size() const { return static_cast<std::uint32_t>(slots_.size()); }
  [[nodiscard]] std::uint32_t used() const { return size() - static_cast<std::uint32_t>(free_.size()); }
  [[nodiscard]] Slot& at(std::uint32_t slot) { return slots_[slot]; }
  [[nodiscard]] const std::vector<std::uint32_t>& of_layer(std::uint32_t layer) const {
    return layers_[layer].slots;
  }

  /// A slot that is free, or the one whose content is worth least and that no step uses.
  [[nodiscard]] std::uint32_t next_victim();
  /// What that slot holds is worth; -infinity if it is free.
  [[nodiscard]] double value_of(std::uint32_t slot) const;

  /// `slot` gets an expert of `layer`. Requires: it is free.
  void fill(std::uint32_t slot, std::uint32_t expert, std::uint32_t layer, double value);
  /// What a copy broke comes anew, into the same slot.
  void restart(std::uint32_t slot);
  /// The content is forgotten. What still writes or reads it stays known.
  void empty(std::uint32_t slot, std::uint32_t layer);
  void set_value(std::uint32_t slot, std::uint32_t layer, double value);
  void add_step(std::uint32_t slot, std::uint32_t layer);
  void end_step(std::uint32_t slot, std::uint32_t layer);

 private:
  struct Layer {
    std::vector<std::uint32_t> slots;
    std::uint32_t least = kNone;  ///< of those that no step uses
    bool known = true;            ///< `least` is
  };
  void find_least(Layer& layer) const;

  double evenness_;
  std::vector<Slot> slots_;
  std::vector<Layer> layers_;
  std::vector<std::uint32_t> free_;
  std::uint64_t contents_ = 0;
};

}  // namespace harvest::moe
