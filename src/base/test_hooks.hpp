// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

/// Hooks for tests, in the code that they try: in `memory` and `core`, which are built a second time for
/// tests, with HARVEST_TEST_HOOKS (tests/hooked). In the library that people use the hooks are nothing at
/// all.
///
/// - A *planted bug* is a mistake that a process can choose to make, by name: what is said to find bugs is
///   tried on them.
/// - A *pause point* names a moment between two steps in which other threads may do anything. A test holds a
///   thread there for as long as it likes, instead of hoping to meet it.
namespace harvest {

/// What is wrong with each stands in the registry, test_hooks.cpp. In the order of the invariants that they
/// break.
enum class PlantedBug : std::uint8_t {
  none,
  // I1
  lease_not_counted,
  leased_work_forgotten,
  users_forgotten,
  drain_not_waited_for,
  lease_holds_up_others,
  external_settled_early,
  // I2
  slot_readers_not_waited_for,
  unfinished_write_forgotten,
  capacity_ignored,
  generation_reused,
  moved_object_renamed,
  failed_copy_taken_as_good,
  failed_write_copied_on,
  host_reads_not_joined,
  host_reads_start_early,
  // I3
  write_not_waited_for,
  write_shown_as_complete,
  unwritten_source_copied,
  promotion_shown_unfinished,
  // I4
  unwritten_copy_vouches,
  loss_not_told,
  loss_told_twice,
  old_object_goes_first,
  sole_copy_evicted,
  spill_not_moved,
  // I5
  reclaim_credited_when_fenced,
  mapping_kept,
  // I6
  reserve_ignored,
  growth_on_old_sample,
  pressure_ignored,
  growth_while_owner_waits,
  // I7
  draining_slot_counted_twice,
  freed_slot_forgotten,
  // I8
  callback_under_lock,
  callback_on_read_path,
  // I9
  read_path_locks,
  read_path_allocates,
  read_waits_on_host,
  // I10
  device_loss_not_noticed,
  next_tier_not_asked,
  failed_path_in_service,
  // I11
  fenced_by_chance,
  promoted_by_chance,
  // I12
  wipe_skipped,
  wipe_of_first_part,
  wipe_not_waited_for,
  wipe_before_last_read,
  refused_wipe_forgotten,
};

/// Moments in which a thread may be overtaken by others.
enum class PausePoint : std::uint8_t {
  between_look_up_and_pin,
  between_pin_and_recheck,
  between_pin_and_wait_for_write,
  between_copy_and_watch,
  between_record_and_join,
  between_submit_and_unpin,
  between_unpin_and_end_of_release,
  between_write_and_wait,
  between_link_and_unlink,
  between_hide_and_look_at_pins,
  between_events_and_free_slot,
  between_end_of_fill_and_reveal,
  between_unmap_and_credit,
};

#if defined(HARVEST_TEST_HOOKS)

struct PlantedBugInfo {
  PlantedBug bug;
  std::string_view name;       ///< as in the enum
  std::string_view invariant;  ///< that it breaks: "I1" to "I12"
  std::string_view what_is_wrong;
};

/// All but `none`, in the order of the enum.
[[nodiscard]] std::span<const PlantedBugInfo> planted_bugs();

/// From now on this process makes that mistake and no other; with "none", no mistake. False if there is no
/// bug of this name.
[[nodiscard]] bool choose_planted_bug(std::string_view name);

/// Whether this process makes the mistake.
[[nodiscard]] bool planted_bug(PlantedBug bug);

/// What no seed decides: another number in every call and every process, below `limit`.
[[nodiscard]] std::uint64_t planted_chance(std::uint64_t limit);

/// Called by each thread that comes to a pause point; null: nobody is held. It may be called by many threads
/// at once, and while another one is being installed.
using PauseHandler = void (*)(PausePoint);
void install_pause_handler(PauseHandler handler);
void pause_point(PausePoint point);

#else

constexpr bool planted_bug(PlantedBug) {
  return false;
}
constexpr std::uint64_t planted_chance(std::uint64_t) {
  return 0;
}
constexpr void pause_point(PausePoint) {}

#endif

}  // namespace harvest
