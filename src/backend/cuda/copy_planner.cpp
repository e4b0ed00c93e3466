// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/copy_planner.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "backend/cuda/copy_kernel.hpp"

namespace harvest::cuda {
namespace {

/// Nothing between two places of the host is a GPU's link.
std::optional<LinkClass> class_of(Route route) {
  if (route.from == kHost && route.to == kHost) return std::nullopt;
  if (route.from == kHost) return LinkClass::host_to_device;
  if (route.to == kHost) return LinkClass::device_to_host;
  return route.from == route.to ? LinkClass::same_device : LinkClass::peer;
}

/// One end of a piece, as the stream's device sees it.
struct End {
  bool addressable;  ///< by copies of the stream's device
  bool by_kernel;    ///< and by its kernels
  bool pageable;     ///< host memory that may be: only cudaMemcpyAsync takes it as it is
};

End end_of(const MemoryExtent& extent, DeviceId device, DeviceId stream_device) {
  const bool known = extent.range.has_value();
  if (device == kHost) return {true, known && extent.range->is_accessible_by(stream_device), !known};
  const bool addressable = known ? extent.range->is_accessible_by(stream_device) : device == stream_device;
  return {addressable, addressable, false};
}

/// A kernel moves at least a word at a time, or a copy engine is better at it; inside one GPU the kernel is,
/// even bytewise. One that runs on a third GPU would move everything twice.
bool is_kernel_work(const Copy& copy, const CopyRequest& request) {
  const Route route = request.route;
  if (request.stream_device != route.from && request.stream_device != route.to) return false;
  const auto distance =
      reinterpret_cast<std::uintptr_t>(copy.destination) - reinterpret_cast<std::uintptr_t>(copy.source);
  return route.from == route.to || distance % 4 == 0;
}

/// The extent at an address, from the last one where that has it: runs of one batch are mostly neighbours.
const MemoryExtent& extent_at(const MemoryMap& map, const std::byte* address, MemoryExtent& last) {
  if (!last.contains(address)) last = map.extent(address);
  return last;
}

std::uint64_t bytes_between(const std::byte* from, const std::byte* to) {
  return reinterpret_cast<std::uintptr_t>(to) - reinterpret_cast<std::uintptr_t>(from);
}

}  // namespace

/// A new piece, or a longer last one.
void PlanScratch::add(const Piece& piece) {
  if (!pieces_.empty() && piece.source_range != nullptr && piece.destination_range != nullptr) {
    Piece& last = pieces_.back();
    if (last.source_range == piece.source_range && last.destination_range == piece.destination_range &&
        last.copy.source + last.copy.bytes == piece.copy.source &&
        last.copy.destination + last.copy.bytes == piece.copy.destination) {
      last.copy.bytes += piece.copy.bytes;
      return;
    }
  }
  pieces_.push_back(piece);
}

/// Few large and many small runs in one batch are two decisions: each way is taken for the runs that it is
/// for, if there are enough of those.
void PlanScratch::choose(const CopyThresholds& thresholds, bool only_kernels, bool batches) {
  const auto take = [&](CopyMethod method, std::uint32_t min_runs, auto fits) {
    if (std::count_if(pieces_.begin(), pieces_.end(), fits) < static_cast<std::ptrdiff_t>(min_runs)) return;
    for (Piece& piece : pieces_) {
      if (!fits(piece)) continue;
      piece.method = method;
      piece.has_choice = false;
    }
  };
  take(CopyMethod::kernel, only_kernels ? 1 : thresholds.kernel_min_runs, [&](const Piece& piece) {
    return piece.has_choice && piece.by_kernel &&
           (only_kernels || piece.copy.bytes < thresholds.kernel_below_bytes);
  });
  if (!batches) return;
  take(CopyMethod::batch, thresholds.batch_min_runs, [&](const Piece& piece) {
    return piece.has_choice && piece.copy.bytes < thresholds.batch_below_bytes;
  });
}

/// Requires: `runs_` has room for all that is still added, as steps point into it.
void PlanScratch::append_steps(CopyMethod method, std::uint32_t kernel_blocks) {
  const std::uint64_t longest = method == CopyMethod::kernel ? kMaxKernelRunBytes : kNoLimitBytes;
  const std::size_t begin = runs_.size();
  for (const Piece& piece : pieces_) {
    if (piece.method != method) continue;
    for (Copy rest = piece.copy; rest.bytes != 0;) {
      const std::uint64_t bytes = std::min(rest.bytes, longest);
      runs_.push_back({rest.destination, rest.source, bytes});
      rest = {rest.destination + bytes, rest.source + bytes, rest.bytes - bytes};
    }
  }
  std::span<const Copy> runs = std::span(runs_).subspan(begin);
  const std::size_t most = method == CopyMethod::batch    ? kRunsPerBatchCall
                           : method == CopyMethod::kernel ? kRunsPerLaunch
                                                          : std::max<std::size_t>(runs.size(), 1);
  for (std::size_t calls = (runs.size() + most - 1) / most; calls != 0; --calls) {
    const std::size_t count = (runs.size() + calls - 1) / calls;  // all calls about as long
    steps_.push_back({method, runs.first(count), method == CopyMethod::kernel ? kernel_blocks : 0});
    runs = runs.subspan(count);
  }
}

void CopyPlanner::cut(const CopyRequest& request, std::span<const Copy> copies, PlanScratch& scratch) const {
  const Route route = request.route;
  MemoryExtent last_source;
  MemoryExtent last_destination;
  for (Copy rest : copies) {
    while (rest.bytes != 0) {
      const MemoryExtent& source = extent_at(map_, rest.source, last_source);
      const MemoryExtent& destination = extent_at(map_, rest.destination, last_destination);
      const std::uint64_t bytes = std::min({rest.bytes, bytes_between(rest.source, source.end),
                                            bytes_between(rest.destination, destination.end)});
      PlanScratch::Piece piece;
      piece.copy = {rest.destination, rest.source, bytes};
      if (source.range) piece.source_range = source.begin;
      if (destination.range) piece.destination_range = destination.begin;
      const End from = end_of(source, route.from, request.stream_device);
      const End to = end_of(destination, route.to, request.stream_device);
      if (!from.addressable || !to.addressable) {
        // cudaMemcpyPeerAsync knows GPUs only; with the host at one end the driver finds its own way.
        if (route.from != kHost && route.to != kHost) piece.method = CopyMethod::peer;
      } else if (!from.pageable && !to.pageable) {
        piece.has_choice = true;
        piece.by_kernel = from.by_kernel && to.by_kernel && is_kernel_work(piece.copy, request);
      }
      scratch.add(piece);
      rest = {rest.destination + bytes, rest.source + bytes, rest.bytes - bytes};
    }
  }
}

std::span<const CopyStep> CopyPlanner::plan(const CopyRequest& request, std::span<const Copy> copies,
                                            const CopyCapabilities& capabilities,
                                            const CopyCalibration& calibration, PlanScratch& scratch) const {
  scratch.pieces_.clear();
  scratch.runs_.clear();
  scratch.steps_.clear();
  cut(request, copies, scratch);
  std::uint32_t kernel_blocks = 0;
  if (const std::optional<LinkClass> link = class_of(request.route)) {
    CopyThresholds thresholds = calibration[*link];
    if (!capabilities.kernels) thresholds.kernel_below_bytes = 0;
    kernel_blocks = thresholds.kernel_blocks;
    scratch.choose(thresholds, capabilities.kernels && *link == LinkClass::same_device,
                   capabilities.batches && !request.capturing && !request.legacy_stream);
  }
  std::size_t most_runs = 0;
  for (const PlanScratch::Piece& piece : scratch.pieces_)
    most_runs += piece.copy.bytes / kMaxKernelRunBytes + 1;
  scratch.runs_.reserve(most_runs);
  scratch.append_steps(CopyMethod::single, 0);
  scratch.append_steps(CopyMethod::peer, 0);
  scratch.append_steps(CopyMethod::batch, 0);
  scratch.append_steps(CopyMethod::kernel, kernel_blocks);
  return scratch.steps_;
}

}  // namespace harvest::cuda
