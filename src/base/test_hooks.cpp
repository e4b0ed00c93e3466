// SPDX-License-Identifier: Apache-2.0
#include "base/test_hooks.hpp"

#include <array>
#include <atomic>
#include <random>

/// Only in the build for tests.
namespace harvest {
namespace {

using enum PlantedBug;

constexpr auto kPlantedBugs = std::to_array<PlantedBugInfo>({
    {lease_not_counted, "lease_not_counted", "I1", "memory is freed while leases still pin it"},
    {leased_work_forgotten, "leased_work_forgotten", "I1",
     "work given under a lease is not waited for once the lease is released"},
    {users_forgotten, "users_forgotten", "I1", "a copy that leaves asks no stream for the end of its reads"},
    {drain_not_waited_for, "drain_not_waited_for", "I1",
     "a slot counts as drained, and its segment as empty, while work still reads it"},
    {lease_holds_up_others, "lease_holds_up_others", "I1",
     "a segment that is leased keeps the segments after it from being unmapped"},
    {external_settled_early, "external_settled_early", "I1",
     "external_host memory is told to be settled while work still reads it"},

    {slot_readers_not_waited_for, "slot_readers_not_waited_for", "I2",
     "a slot is written while the work of its last readers still runs (write after read)"},
    {unfinished_write_forgotten, "unfinished_write_forgotten", "I2",
     "the slot of a copy that leaves is free while its own write still runs"},
    {capacity_ignored, "capacity_ignored", "I2",
     "a fetch writes over the end of a destination that is too small"},
    {generation_reused, "generation_reused", "I2", "one generation after another has the same number"},
    {moved_object_renamed, "moved_object_renamed", "I2",
     "an object that moves between peers gets another generation"},
    {failed_copy_taken_as_good, "failed_copy_taken_as_good", "I2",
     "fetch_and_wait says ok though its copy failed in flight"},
    {failed_write_copied_on, "failed_write_copied_on", "I2",
     "a copy of a copy is shown though the write of its source failed"},
    {host_reads_not_joined, "host_reads_not_joined", "I2",
     "the caller's stream does not wait for the reads of a fetch that run beside it"},
    {host_reads_start_early, "host_reads_start_early", "I2",
     "the reads of a fetch that run beside the caller's stream do not wait for the work before it"},

    {write_not_waited_for, "write_not_waited_for", "I3",
     "a fetch does not wait for the write of what it reads"},
    {write_shown_as_complete, "write_shown_as_complete", "I3",
     "a put shows its copy without the event that completes it"},
    {unwritten_source_copied, "unwritten_source_copied", "I3",
     "a promotion does not wait for the write of its source"},
    {promotion_shown_unfinished, "promotion_shown_unfinished", "I3",
     "a promoted copy is shown before it has arrived"},

    {unwritten_copy_vouches, "unwritten_copy_vouches", "I4",
     "a copy goes because of another one that is not written yet, and may fail"},
    {loss_not_told, "loss_not_told", "I4", "nobody hears of an object that is lost"},
    {loss_told_twice, "loss_told_twice", "I4", "the loss of an object is told twice"},
    {old_object_goes_first, "old_object_goes_first", "I4",
     "a put removes the old object before it knows that it can store the new one"},
    {sole_copy_evicted, "sole_copy_evicted", "I4",
     "the only copy of a spill object is evicted for another object"},
    {spill_not_moved, "spill_not_moved", "I4", "a reclaim drops spill objects like lossy ones"},

    {reclaim_credited_when_fenced, "reclaim_credited_when_fenced", "I5",
     "a reclaim counts a segment as returned when it is fenced, before it is unmapped"},
    {mapping_kept, "mapping_kept", "I5", "a segment counts as returned and is never unmapped"},

    {reserve_ignored, "reserve_ignored", "I6", "the peer's reserve is taken for the cache"},
    {growth_on_old_sample, "growth_on_old_sample", "I6",
     "a pool grows by what was free at the last sample, without asking again"},
    {pressure_ignored, "pressure_ignored", "I6",
     "the monitor sees that a peer needs its memory and does nothing"},
    {growth_while_owner_waits, "growth_while_owner_waits", "I6",
     "memory is taken on a peer whose owner waits for a reclaim"},

    {draining_slot_counted_twice, "draining_slot_counted_twice", "I7",
     "a draining slot that is used again counts as used and as draining"},
    {freed_slot_forgotten, "freed_slot_forgotten", "I7", "a slot that has drained is never used again"},

    {callback_under_lock, "callback_under_lock", "I8", "on_event is called under the control lock"},
    {callback_on_read_path, "callback_on_read_path", "I8", "acquire works like poll, and calls on_event"},

    {read_path_locks, "read_path_locks", "I9", "acquire takes the control lock"},
    {read_path_allocates, "read_path_allocates", "I9", "each fetch allocates its list of copies"},
    {read_waits_on_host, "read_waits_on_host", "I9",
     "a fetch waits on the host for the write of what it reads, instead of on the device"},

    {device_loss_not_noticed, "device_loss_not_noticed", "I10",
     "a peer whose device is lost stays in service"},
    {next_tier_not_asked, "next_tier_not_asked", "I10",
     "an item whose copy is refused is not served from the next tier"},
    {failed_path_in_service, "failed_path_in_service", "I10", "a peer whose copies fail stays in service"},

    {fenced_by_chance, "fenced_by_chance", "I11", "chance decides which segments a reclaim fences"},
    {promoted_by_chance, "promoted_by_chance", "I11", "chance decides which object is promoted next"},

    {wipe_skipped, "wipe_skipped", "I12", "bytes of a tenant stay in a slot that is freed"},
    {wipe_of_first_part, "wipe_of_first_part", "I12", "only the first half of a tenant's slot is wiped"},
    {wipe_not_waited_for, "wipe_not_waited_for", "I12",
     "a slot is used again, or unmapped, while its wipe still runs"},
    {wipe_before_last_read, "wipe_before_last_read", "I12", "a slot is wiped while work still reads it"},
    {refused_wipe_forgotten, "refused_wipe_forgotten", "I12",
     "a slot that the driver did not wipe now is used again, or unmapped"},
});

constexpr bool is_in_order() {
  for (std::size_t i = 0; i < kPlantedBugs.size(); ++i)
    if (static_cast<std::size_t>(kPlantedBugs[i].bug) != i + 1) return false;
  return kPlantedBugs.back().bug == refused_wipe_forgotten;
}
static_assert(is_in_order(), "each bug has its place in the registry");

std::atomic<PlantedBug> chosen{none};
std::atomic<PauseHandler> pause_handler{nullptr};

}  // namespace

std::span<const PlantedBugInfo> planted_bugs() {
  return kPlantedBugs;
}

bool choose_planted_bug(std::string_view name) {
  PlantedBug bug = none;
  for (const PlantedBugInfo& info : kPlantedBugs)
    if (info.name == name) bug = info.bug;
  if (bug == none && name != "none") return false;
  chosen.store(bug, std::memory_order_relaxed);
  return true;
}

bool planted_bug(PlantedBug bug) {
  return chosen.load(std::memory_order_relaxed) == bug;
}

std::uint64_t planted_chance(std::uint64_t limit) {
  static std::random_device device;
  return device() % limit;
}

void install_pause_handler(PauseHandler handler) {
  pause_handler.store(handler, std::memory_order_release);
}

void pause_point(PausePoint point) {
  if (const PauseHandler handler = pause_handler.load(std::memory_order_acquire)) handler(point);
}

}  // namespace harvest
