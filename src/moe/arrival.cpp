// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "moe/impl.hpp"

/// How experts come: which wire carries each piece, in which order, and what a slot waits for before it is
/// written.
namespace harvest::moe {
namespace {

/// For how long a peer whose copy failed is not read from. The PeerCache takes what does not work out of
/// service by itself; this bridges the time until it has seen it.
constexpr TimeNs kAvoidNs = 1'000'000'000;

/// What a flight should at least carry, in time on its wire.
constexpr TimeNs kFlightNs = 100'000;

/// Of a piece that two wires share: less is not worth a copy of its own.
constexpr std::uint64_t kLeastPartBytes = 256ULL << 10;

constexpr std::size_t place(Wire wire) {
  return static_cast<std::size_t>(wire);
}

}  // namespace

void ExpertCache::Impl::settle() {
  for (const Flight& flight : lanes_.settle()) {
    ++stats_.failed_arrivals;
    if (flight.source >= 0)
      avoid_until_ns_[static_cast<std::size_t>(flight.source)] = backend_.now_ns() + kAvoidNs;
    Slot& slot = slots_.at(flight.slot);
    const bool lies_there = slot.content == flight.content && slot.expert != kNone;
    // Of a content that has gone nobody remembers whether a step had it.
    if (!lies_there || slot.delivered) failed_expert_ = flight.expert;
    if (lies_there) slot.broken = true;
  }
  if (stalls_.any()) stalls_.look();
  if (lanes_.any_under_way()) return;
  for (TimeNs& until : busy_until_ns_) until = std::min(until, backend_.now_ns());
}

bool ExpertCache::Impl::is_here(const Slot& slot) const {
  return slot.pieces == experts_[slot.expert].pieces && !slot.broken && lanes_.ended(slot.flights);
}

bool ExpertCache::Impl::is_on_peers(const Piece& piece) const {
  const Tier tier = cache_.locate(piece.key);
  return tier == Tier::peer || tier == Tier::local;
}

TimeNs ExpertCache::Impl::wire_ns(Wire wire, std::uint64_t bytes) const {
  return piece_ns_[place(wire)] + static_cast<TimeNs>(static_cast<double>(bytes) * ns_per_byte_[place(wire)]);
}

void ExpertCache::Impl::vacate(std::uint32_t slot) {
  Slot& left = slots_.at(slot);
  if (left.expert == kNone) return;
  Expert& expert = experts_[left.expert];
  if (left.guessed) stats_.wasted_bytes += left.guessed_bytes;
  expert.slot = kNone;
  slots_.empty(slot, expert.layer);
}

void ExpertCache::Impl::occupy(std::uint32_t slot, std::uint32_t expert, double value) {
  vacate(slot);
  slots_.fill(slot, expert, experts_[expert].layer, value);
  experts_[expert].slot = slot;
}

/// Before the first copy into a slot on a lane: behind all work that reads or writes what lay there before.
Status ExpertCache::Impl::prepare(std::uint32_t number, std::size_t lane) {
  Slot& slot = slots_.at(number);
  if ((slot.ready_lanes >> lane & 1U) != 0) return {};
  for (Use& use : slot.uses) {
    if (Status status = find_end(use); !status) return status;
    if (use.event != kNone) lanes_.order(lanes_.stream(lane), uses_.event(use.event));
  }
  lanes_.order(lanes_.stream(lane), slot.earlier_flights, lane);
  slot.ready_lanes = static_cast<std::uint8_t>(slot.ready_lanes | 1U << lane);
  return {};
}

/// Of a use that has no event: the stream is asked for one now. A stream that is not known any more, or whose
/// device is lost, runs nothing.
Status ExpertCache::Impl::find_end(Use& use) {
  if (use.event != kNone || use.stream == StreamId::none) return {};
  const auto event = lanes_.record(use.stream);
  if (event) {
    use.event = uses_.add(*event);
    return {};
  }
  if (event.error().code == ErrorCode::not_found || event.error().code == ErrorCode::unavailable) {
    use.stream = StreamId::none;
    return {};
  }
  return fail(ErrorCode::unavailable,
              fmt::format("stream {} has no event to tell when it has read a slot: {}",
                          static_cast<std::uint32_t>(use.stream), event.error().message));
}

/// Streams of open steps that got what lies in the slot. Where that failed in flight and is written again,
/// what they compute from it is worth nothing, and `confirm` tells; but nobody reads what is being written.
std::vector<StreamId> ExpertCache::Impl::open_readers(std::uint32_t number) const {
  std::vector<StreamId> streams;
  for (const Step& step : steps_) {
    if (!step.open) continue;
    const auto taken = std::span(step.entries).first(step.next);
    if (std::any_of(taken.begin(), taken.end(),
                    [&](const Entry& entry) { return entry.slot == number && !entry.released; }))
      streams.push_back(step.stream);
  }
  return streams;
}

ExpertCache::Impl::Group& ExpertCache::Impl::group_for(std::size_t lane, DeviceId source, bool head) {
  for (std::size_t i = 0; i < groups_used_; ++i)
    if (groups_[i].lane == lane && groups_[i].source == source && groups_[i].head == head) return groups_[i];
  if (groups_used_ == groups_.size()) groups_.emplace_back();
  Group& group = groups_[groups_used_++];
  group.lane = lane;
  group.source = source;
  group.head = head;
  group.copies.clear();
  group.leases.clear();
  return group;
}

/// The caller's memory has pieces that follow each other as one run, as `cut` found it.
void ExpertCache::Impl::add_copy(Group& group, const Copy& copy) {
  if (group.source == kHost && !group.copies.empty()) {
    Copy& last = group.copies.back();
    if (last.source + last.bytes == copy.source && last.destination + last.bytes == copy.destination) {
      last.bytes += copy.bytes;
      return;
    }
  }
  group.copies.push_back(copy);
}

/// Chooses the way of one piece: of wires that could bring it the one that would be done with it first.
void ExpertCache::Impl::load(std::uint32_t number, const Piece& piece, std::size_t lane_of_peers,
                             std::optional<Wire> only) {
  Slot& slot = slots_.at(number);
  const TimeNs now = backend_.now_ns();
  for (TimeNs& until : busy_until_ns_) until = std::max(until, now);
  const TimeNs by_host = busy_until_ns_[place(Wire::host)] + wire_ns(Wire::host, piece.bytes);
  const TimeNs by_peers = busy_until_ns_[place(Wire::peers)] + wire_ns(Wire::peers, piece.bytes);
  const bool on_peers = is_on_peers(piece);
  const bool peers_first =
      only ? *only == Wire::peers : !wires_apart_ || by_peers <= by_host + reserved_host_ns_;

  Wire wire = Wire::host;
  DeviceId source = kHost;
  Copy copy{memory_ + number * slot_bytes_ + piece.offset, piece.source, piece.bytes};
  std::size_t lane = kLanes;
  Lease lease;
  if (on_peers && peers_first) {
    lane = lane_of_peers;
    lease = cache_.acquire(piece.key, lanes_.lease_stream());
    const bool good =
        lease && lease.tier() != Tier::host &&
        (lease.device() < 0 || avoid_until_ns_[static_cast<std::size_t>(lease.device())] <= now);
    if (good) {
      wire = Wire::peers;
      source = lease.device();
      copy.source = lease.data();
    } else {
      lease.release();
    }
  }
  if (wire == Wire::host) {
    lane = Lanes::host_lane();
    if (!on_peers) reserved_host_ns_ = std::max<TimeNs>(0, reserved_host_ns_ - wire_ns(wire, piece.bytes));
  }
  const Tier from = on_peers ? Tier::peer : Tier::host;
  if (slot.from == Tier::none || from > slot.from) slot.from = from;
  Group& group = group_for(lane, source, piece.offset < head_bytes_);
  busy_until_ns_[place(wire)] +=
      wire_ns(wire, piece.bytes) - (group.copies.empty() ? 0 : piece_ns_[place(wire)]);
  ready_ns_[number] = std::max(ready_ns_[number], busy_until_ns_[place(wire)]);
  add_copy(group, copy);
  if (lease) group.leases.push_back(std::move(lease));
}

void ExpertCache::Impl::load_parts(std::uint32_t number, const Piece& piece, std::size_t lane_of_peers,
                                   const Way& way) {
  const std::uint64_t head = std::min(piece.bytes, way.host_from - std::min(way.host_from, piece.offset));
  if (head > 0) load(number, {piece.key, piece.source, piece.offset, head}, lane_of_peers, way.wire);
  if (head < piece.bytes)
    load(number, {piece.key, piece.source + head, piece.offset + head, piece.bytes - head}, lane_of_peers,
         Wire::host);
}

/// Gives one group to its lane. What the peers' wire refuses comes over the host's.
Status ExpertCache::Impl::submit(std::uint32_t number, Group& group, Why why) {
  Slot& slot = slots_.at(number);
  const DeviceId consumer = cache_.config().consumer;
  if (Status status = prepare(number, group.lane); !status) {
    group.leases.clear();
    return status;
  }
  Status given = backend_.copy(lanes_.stream(group.lane), {group.source, consumer}, group.copies);
  if (!given && group.source != kHost) {
    if (group.source != consumer)
      avoid_until_ns_[static_cast<std::size_t>(group.source)] = backend_.now_ns() + kAvoidNs;
    group.leases.clear();
    const std::uint64_t slot_offset = number * slot_bytes_;
    for (Copy& copy : group.copies) {
      const auto offset = static_cast<std::uint64_t>(copy.destination - memory_) - slot_offset;
      const auto pieces = pieces_of(experts_[slot.expert]);
      copy.source = std::find_if(pieces.begin(), pieces.end(), [&](const Piece& piece) {
                      return piece.offset == offset;
                    })->source;
    }
    group.source = kHost;
    given = backend_.copy(lanes_.stream(group.lane), {kHost, consumer}, group.copies);
  }
  if (!given) return given;
  const Tier from = group.source == kHost ? Tier::host : group.source == consumer ? Tier::local : Tier::peer;
  auto& bytes = why == Why::demand ? stats_.demand_bytes : stats_.prefetched_bytes;
  for (const Copy& copy : group.copies) {
    bytes[static_cast<std::size_t>(from)] += copy.bytes;
    if (why == Why::guess) slot.guessed_bytes += copy.bytes;
  }

  Flight flight;
  flight.slot = number;
  flight.content = slot.content;
  flight.expert = slot.expert;
  flight.source = group.source;
  flight.guessed = why == Why::guess;
  if (const std::uint64_t departed = lanes_.depart(group.lane, flight, group.leases); departed != 0) {
    slot.flights[group.lane] = departed;
    if (group.head) slot.head_flights[group.lane] = departed;
    return {};
  }
  note_last_use(slot, lanes_.stream(group.lane), kNone);  // it still writes there
  return fail(ErrorCode::unavailable,
              fmt::format("device {} has no event to tell when a copy ends", consumer));
}

/// Over which of the peers' lanes an expert's pieces go. A large one goes over all, so that it is ready
/// before the next. Small ones take turns: a flight of too few bytes is idle for too large a part of its
/// time. Lanes that carry equal flights from the same moment on keep step, and then are idle together; so the
/// first expert on idle lanes is cut unevenly between two of them, and from then on one lane's pause falls
/// into the others' bytes.
ExpertCache::Impl::Spread ExpertCache::Impl::spread_over_lanes(std::uint32_t pieces) {
  constexpr std::size_t kAll = kLanesOfWire[place(Wire::peers)];
  const auto flights = static_cast<std::size_t>(wire_ns(Wire::peers, slot_bytes_) / kFlightNs);
  const bool idle = !lanes_.any_under_way(Wire::peers);
  if (flights <= 1 && idle && pieces > 1)
    return {lanes_.next_peer_lane(kAll) + 1, 2, std::max(1U, pieces / static_cast<std::uint32_t>(kAll))};
  const std::size_t lanes = std::min<std::size_t>(std::clamp<std::size_t>(flights, 1, kAll), pieces);
  return {lanes_.next_peer_lane(lanes), lanes, 0};
}

/// Gives the next pieces of a slot's expert, up to `pieces` of them all, to lanes.
Status ExpertCache::Impl::bring(std::uint32_t number, std::uint32_t pieces, Why why, const Way& way) {
  Slot& slot = slots_.at(number);
  const std::vector<StreamId> readers = slot.broken ? open_readers(number) : std::vector<StreamId>();
  for (const StreamId reader : readers) {
    const auto event = backend_.record_event(reader);
    const std::uint32_t use = event ? uses_.add(*event) : kNone;
    note_last_use(slot, reader, use);
    uses_.drop(use);
  }
  if (slot.broken) slots_.restart(number);
  const auto all = pieces_of(experts_[slot.expert]);
  groups_used_ = 0;
  const Spread spread = spread_over_lanes(pieces - slot.pieces);
  for (std::uint32_t i = slot.pieces, nth = 0; i < pieces; ++i, ++nth)
    load_parts(number, all[i], spread.lane_of(nth), way);
  Status status;
  for (Group& group : std::span(groups_).first(groups_used_)) {
    if (way.head_first && !group.head && Lanes::wire_of(group.lane) == Wire::peers) {
      // Of the peers' lanes, which share a wire; the host's is another.
      FlightNumbers heads = slot.head_flights;
      heads[Lanes::host_lane()] = 0;
      lanes_.order(lanes_.stream(group.lane), heads, group.lane);
    }
    if (Status given = submit(number, group, why); !given) status = given;
  }
  slot.pieces = pieces;
  if (!status) slot.broken = true;
  for (const StreamId reader : readers) order_behind_arrival(reader, slot);
  if (why == Why::demand)
    demand_until_ns_ = busy_until_ns_;
  else
    for (std::size_t i = 0; i < groups_used_; ++i) guessed_[place(Lanes::wire_of(groups_[i].lane))] = true;
  return status;
}

/// Splits what a step waits for between the wires, so that both are done at the same time: what can only come
/// from the host does, and of the rest it brings as much as it has time for, to the byte. It takes as much
/// from the end of each expert, so that the experts come one behind the other over both wires; or where that
/// is too little to be worth a copy each, all from the experts that come last, whole ones if it can. So it
/// does where peers do not have all, too: the ends of experts, seldom read there, would be the first to go.
void ExpertCache::Impl::split(std::span<Entry> coming) {
  if (!wires_apart_) return;
  const auto piece_range = [&](const Entry& entry) HARVEST_REQUIRES(mutex_) {
    const Slot& slot = slots_.at(entry.slot);
    return pieces_of(experts_[entry.expert]).subspan(slot.broken ? 0 : slot.pieces);
  };
  const TimeNs now = backend_.now_ns();
  const double ns_per_peer_byte = ns_per_byte_[place(Wire::peers)];
  const double ns_per_host_byte = ns_per_byte_[place(Wire::host)];
  const auto peers_free = static_cast<double>(std::max(now, busy_until_ns_[place(Wire::peers)]));
  const auto host_free =
      static_cast<double>(std::max(now, busy_until_ns_[place(Wire::host)]) + reserved_host_ns_);
  double peer_ns = 0;
  for (const Entry& entry : coming)
    for (const Piece& piece : piece_range(entry))
      if (is_on_peers(piece)) peer_ns += static_cast<double>(piece.bytes) * ns_per_peer_byte;
  // Of what the peers could bring by `peers_free + peer_ns` alone, x ns of theirs are y ns of the host's.
  const double behind = peers_free + peer_ns - host_free;
  double host_ns = behind * ns_per_host_byte / (ns_per_host_byte + ns_per_peer_byte);
  const double each_ns = host_ns / static_cast<double>(coming.size());
  const bool of_each = peers_have_all() && each_ns >= static_cast<double>(kFlightNs);
  const double most_ns = of_each ? each_ns : host_ns;
  for (std::size_t left = coming.size(); left > 0; --left) {
    Entry& entry = coming[left - 1];
    double share_ns = std::min(host_ns, most_ns);
    host_ns -= share_ns;
    const auto pieces = piece_range(entry);
    for (std::size_t ahead = pieces.size(); ahead > 0; --ahead) {
      const Piece& piece = pieces[ahead - 1];
      if (is_on_peers(piece)) {
        const auto bytes = static_cast<std::uint64_t>(std::max(0.0, share_ns) / ns_per_host_byte);
        if (bytes < piece.bytes) {
          if (bytes >= kLeastPartBytes)
            entry.host_from = piece.offset + round_up(piece.bytes - bytes, kPieceAlignment);
          if (!of_each) return;
          share_ns = 0;
          break;
        }
        share_ns -= static_cast<double>(piece.bytes) * ns_per_host_byte;
      }
      entry.host_from = piece.offset;
    }
    host_ns += share_ns;
    host_ns -= static_cast<double>(piece_ns_[place(Wire::host)]);
  }
}

/// Begins the copies of all entries of a step that have a slot and are not here: first those that are on
/// peers altogether, since the others wait for the slower wire anyway. Then sorts them by when they are
/// expected.
Status ExpertCache::Impl::bring_all(Step& step) {
  const auto coming = std::span(step.entries).subspan(step.here, step.waiting - step.here);
  const auto is_under_way = [&](const Entry& entry) HARVEST_REQUIRES(mutex_) {
    const Slot& slot = slots_.at(entry.slot);
    return !slot.broken && slot.pieces > 0;
  };
  const auto host_ns = [&](const Entry& entry) HARVEST_REQUIRES(mutex_) {
    TimeNs ns = 0;
    for (const Piece& piece :
         pieces_of(experts_[entry.expert]).subspan(is_under_way(entry) ? slots_.at(entry.slot).pieces : 0))
      if (!is_on_peers(piece)) ns += wire_ns(Wire::host, piece.bytes);
    return ns;
  };
  reserved_host_ns_ = 0;
  order_.clear();
  for (const Entry& entry : coming) {
    const TimeNs ns = host_ns(entry);
    reserved_host_ns_ += ns;
    order_.emplace_back(is_under_way(entry) ? -1 : ns, entry);
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (std::size_t i = 0; i < coming.size(); ++i) coming[i] = order_[i].second;

  split(coming);
  // The one that both wires bring is the last on either: of two that come at the same time at the end one is
  // computed behind the other, with nothing on its way.
  std::stable_partition(coming.begin(), coming.end(),
                        [](const Entry& entry) { return entry.host_from == 0; });
  for (const Entry& entry : coming) {
    const Slot& slot = slots_.at(entry.slot);
    if (!is_under_way(entry)) ready_ns_[entry.slot] = 0;
    const std::uint32_t pieces = experts_[entry.expert].pieces;
    if (slot.pieces == pieces && !slot.broken) continue;
    const std::optional<Wire> rest = wires_apart_ ? std::optional(Wire::peers) : std::nullopt;
    const bool last = &entry == &coming.back();
    if (Status status = bring(entry.slot, pieces, Why::demand, {rest, entry.host_from, last}); !status)
      return status;
  }
  std::stable_sort(coming.begin(), coming.end(),
                   [&](const Entry& a, const Entry& b)
                       HARVEST_REQUIRES(mutex_) { return ready_ns_[a.slot] < ready_ns_[b.slot]; });
  return {};
}

}  // namespace harvest::moe
