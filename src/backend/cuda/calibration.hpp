// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// Which copies go by which way: thresholds that were measured on a card, kept in a file, with defaults where
/// nothing was. Pure but for the file; no CUDA in it, so that every build has and tests it.
namespace harvest::cuda {

/// What lies between the two ends of a copy, as far as the choice of a way needs it.
enum class LinkClass : std::uint8_t { host_to_device, device_to_host, peer, same_device };
inline constexpr std::size_t kLinkClasses = 4;
[[nodiscard]] std::string_view to_string(LinkClass link);

/// The ways to copy.
enum class CopyMethod : std::uint8_t {
  single,  ///< a cudaMemcpyAsync for each run
  peer,    ///< a cudaMemcpyPeerAsync for each run: needs no access between the devices
  batch,   ///< a cudaMemcpyBatchAsync for many runs
  kernel,  ///< a launch of the copy kernel for many runs
};
[[nodiscard]] std::string_view to_string(CopyMethod method);

inline constexpr std::uint64_t kNoLimitBytes = std::numeric_limits<std::uint64_t>::max();
inline constexpr std::uint32_t kMaxKernelBlocks = 1024;

/// Runs of less than `kernel_below_bytes`, if a batch has at least `kernel_min_runs` of them, go by kernel.
/// Of the others those of less than `batch_below_bytes`, if there are at least `batch_min_runs`, go by batch.
/// The rest goes one by one.
///
/// Invariant: counts are at least 1, `kernel_blocks` at most `kMaxKernelBlocks`.
struct CopyThresholds {
  std::uint64_t kernel_below_bytes = 0;
  std::uint32_t kernel_min_runs = 1;
  std::uint32_t kernel_blocks = 1;  ///< each takes a multiprocessor from the owner's kernels while it runs
  std::uint64_t batch_below_bytes = kNoLimitBytes;
  std::uint32_t batch_min_runs = 1;

  [[nodiscard]] bool is_valid() const;
  friend bool operator==(const CopyThresholds&, const CopyThresholds&) = default;
};

/// For each class of link.
struct CopyCalibration {
  std::array<CopyThresholds, kLinkClasses> links{};

  [[nodiscard]] const CopyThresholds& operator[](LinkClass link) const {
    return links[static_cast<std::size_t>(link)];
  }
  [[nodiscard]] CopyThresholds& operator[](LinkClass link) { return links[static_cast<std::size_t>(link)]; }
  friend bool operator==(const CopyCalibration&, const CopyCalibration&) = default;
};

/// For a card that nobody has measured. Sources beside the figures.
[[nodiscard]] CopyCalibration default_calibration();

/// Whatever can go by `method` does: to measure it. `peer` is `single` here, since which of the two it is
/// follows from access and not from speed; `blocks` counts for `kernel` alone.
[[nodiscard]] CopyCalibration forced_calibration(CopyMethod method, std::uint32_t blocks);

// --- the file ------------------------------------------------------------------------------------

/// What was measured on one card with one driver: both change which way is fastest.
struct CardCalibration {
  std::string card;    ///< the device's name as CUDA gives it
  std::string driver;  ///< the driver's version as the backend gives it
  CopyCalibration thresholds{};
};

/// Errors: not_found (no such file, or it cannot be read), malformed: the message names file, field, value
/// and limit. Blocks on the disk.
[[nodiscard]] Result<std::vector<CardCalibration>> read_calibrations(const std::string& path);

/// Whether `write_calibration` could write there now; makes the folders. For who measures for minutes first.
/// Errors: as `write_calibration`.
[[nodiscard]] Status check_can_write(const std::string& path);

/// Puts `entry` into the file at `path`, in place of what is there for the same card and driver; other
/// entries stay. The file and its folders are made where there are none. A reader sees the old file or the
/// new one, never a part. Of two writers at once the later may undo the earlier.
/// Errors: invalid_argument (an empty name, thresholds that are not valid), malformed and not_found (what is
/// there cannot be read, or is a folder: it is left alone), unavailable (it cannot be written: the message is
/// the system's).
[[nodiscard]] Status write_calibration(const std::string& path, const CardCalibration& entry);

/// The entry of this card and driver, or the defaults.
[[nodiscard]] CopyCalibration find_calibration(std::span<const CardCalibration> cards, std::string_view card,
                                               std::string_view driver);

// --- from measurements ---------------------------------------------------------------------------

/// One point: `runs` runs of `run_bytes` bytes each, scattered, in one batch.
struct CopyMeasurement {
  LinkClass link = LinkClass::host_to_device;
  CopyMethod method = CopyMethod::single;
  std::uint32_t kernel_blocks = 0;  ///< of a kernel's row
  std::uint64_t run_bytes = 0;
  std::uint32_t runs = 0;
  double bytes_per_s = 0;
};

/// The thresholds that lose the least against the best way at each point measured. A kernel has to win by
/// more than `kKernelMargin`, since it takes multiprocessors and a copy engine none. A class without
/// measurements keeps its defaults, and so does a choice between two ways of which one was not measured.
/// Errors: invalid_argument (a row of 0 bytes, runs, or no finite speed above 0, or a kernel's of
/// 0 or too many blocks).
[[nodiscard]] Result<CopyCalibration> derive_calibration(std::span<const CopyMeasurement> rows);
inline constexpr double kKernelMargin = 0.05;

}  // namespace harvest::cuda
