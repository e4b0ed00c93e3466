// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/calibration.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

namespace harvest::cuda {

std::string_view to_string(LinkClass link) {
  switch (link) {
    case LinkClass::host_to_device: return "host_to_device";
    case LinkClass::device_to_host: return "device_to_host";
    case LinkClass::peer: return "peer";
    case LinkClass::same_device: return "same_device";
  }
  return "?";
}

std::string_view to_string(CopyMethod method) {
  switch (method) {
    case CopyMethod::single: return "single";
    case CopyMethod::peer: return "peer";
    case CopyMethod::batch: return "batch";
    case CopyMethod::kernel: return "kernel";
  }
  return "?";
}

bool CopyThresholds::is_valid() const {
  return kernel_min_runs >= 1 && kernel_blocks >= 1 && kernel_blocks <= kMaxKernelBlocks &&
         batch_min_runs >= 1;
}

/// Figures marked [E] are estimates and wait for a calibration run. A launch costs about as much as one copy
/// call (2.3 to 3.6 us: FlexKV#193, torchcomms#2195), so a kernel pays from a few runs on. A batch pays from
/// two runs on: 2.30 us a copy against 3.55 us (torchcomms#2195).
CopyCalibration default_calibration() {
  CopyCalibration result;
  for (CopyThresholds& link : result.links) {
    link.kernel_min_runs = 4;  // [E]
    link.batch_min_runs = 2;
  }
  // Batches: 4 to 7 GB/s at 4 to 16 KiB and about 40 GB/s from 28 KiB (vllm#42212, #57555); a kernel reads
  // host memory at 35.2 GB/s (DGX H100, nvbandwidth#24).
  CopyThresholds& in = result[LinkClass::host_to_device];
  in.kernel_below_bytes = 28 * 1024;
  in.kernel_blocks = 8;  // [E] 512 KiB in flight against 55 GB/s x 2 us
  // A kernel writes host memory at 52.8 GB/s of 55 (nvbandwidth#24), so the submission of a batch, about
  // 0.5 us a run (vllm#48434), costs more than the kernel loses up to twice the size above. [E]
  CopyThresholds& out = result[LinkClass::device_to_host];
  out.kernel_below_bytes = 64 * 1024;
  out.kernel_blocks = 8;  // [E]
  // A run costs 2.3 us in a batch (torchcomms#2195), in which NVLink moves 860 KB (DGX H100: 376 GB/s); a
  // kernel reaches 0.85 of a copy engine (A100: 235 of 276 GB/s, nccl-tests#149). [E]
  CopyThresholds& peer = result[LinkClass::peer];
  peer.kernel_below_bytes = 512 * 1024;
  peer.kernel_blocks = 24;  // [E] 376 GB/s at 16 GB/s a block
  // A copy engine stays at about 100 GB/s inside one GPU (TensorRT-LLM#13978, nccl#2177).
  CopyThresholds& same = result[LinkClass::same_device];
  same.kernel_below_bytes = kNoLimitBytes;
  same.kernel_min_runs = 1;
  same.kernel_blocks = 32;  // [E]
  return result;
}

CopyCalibration forced_calibration(CopyMethod method, std::uint32_t blocks) {
  CopyCalibration result;
  for (CopyThresholds& link : result.links) {
    link.kernel_below_bytes = method == CopyMethod::kernel ? kNoLimitBytes : 0;
    link.kernel_blocks = std::clamp(blocks, std::uint32_t{1}, kMaxKernelBlocks);
    link.batch_below_bytes = method == CopyMethod::batch ? kNoLimitBytes : 0;
  }
  return result;
}

CopyCalibration find_calibration(std::span<const CardCalibration> cards, std::string_view card,
                                 std::string_view driver) {
  for (const CardCalibration& entry : cards)
    if (entry.card == card && entry.driver == driver) return entry.thresholds;
  return default_calibration();
}

// --- from measurements ---------------------------------------------------------------------------
namespace {

struct Point {
  std::uint64_t run_bytes;
  std::uint32_t runs;
  friend auto operator<=>(const Point&, const Point&) = default;
};

using Rates = std::map<Point, double>;  ///< bytes per second; the best where a point was measured twice

void add_rate(Rates& rates, const CopyMeasurement& row) {
  double& rate = rates[{row.run_bytes, row.runs}];
  rate = std::max(rate, row.bytes_per_s);
}

/// All rows of one class of link.
struct ClassRates {
  Rates single;
  Rates batch;
  std::map<std::uint32_t, Rates> kernel_by_blocks;
};

/// The fewest blocks that come within 3 % of the best number of them, on average over the points.
std::uint32_t choose_blocks(const std::map<std::uint32_t, Rates>& by_blocks) {
  constexpr double kEnough = 0.97;
  Rates best;
  for (const auto& [blocks, rates] : by_blocks)
    for (const auto& [point, rate] : rates) best[point] = std::max(best[point], rate);
  std::uint32_t most = 1;
  for (const auto& [blocks, rates] : by_blocks) {
    double loss = 0;
    for (const auto& [point, rate] : rates) loss += std::log(best[point] / rate);
    if (loss / static_cast<double>(rates.size()) <= -std::log(kEnough)) return blocks;
    most = blocks;
  }
  return most;
}

struct Limit {
  std::uint64_t below_bytes;
  std::uint32_t min_runs;
};

/// The limit within which to take `many`, else `other`, that loses the least over the points that both have,
/// as the sum of the logarithms of best / chosen. Of equals the one that takes `many` for fewer sizes.
/// `handicap` is what `many` has to win by. Requires: such points.
Limit choose_limit(const std::map<Point, std::pair<double, double>>& points, double handicap) {
  std::set<std::uint64_t> limits{0, kNoLimitBytes};
  std::set<std::uint32_t> counts;
  for (const auto& [point, rates] : points) {
    limits.insert(point.run_bytes);
    counts.insert(point.runs);
  }
  limits.erase(points.begin()->first.run_bytes);  // below the smallest: none, which 0 says
  Limit best{0, *counts.begin()};
  double best_loss = std::numeric_limits<double>::infinity();
  for (std::uint64_t below_bytes : limits)
    for (std::uint32_t min_runs : counts) {
      double loss = 0;
      for (const auto& [point, rates] : points) {
        const double many = rates.first * (1 - handicap);
        const bool takes_many = point.run_bytes < below_bytes && point.runs >= min_runs;
        loss += std::log(std::max(many, rates.second) / (takes_many ? many : rates.second));
      }
      constexpr double kRounding = 1e-9;
      if (loss >= best_loss - kRounding) continue;
      best_loss = loss;
      best = {below_bytes, min_runs};
    }
  return best;
}

std::map<Point, std::pair<double, double>> both(const Rates& many, const Rates& other) {
  std::map<Point, std::pair<double, double>> result;
  for (const auto& [point, rate] : many)
    if (const auto found = other.find(point); found != other.end()) result[point] = {rate, found->second};
  return result;
}

CopyThresholds derive_class(const ClassRates& rates, CopyThresholds thresholds) {
  if (const auto points = both(rates.batch, rates.single); !points.empty()) {
    const Limit limit = choose_limit(points, 0);
    thresholds.batch_below_bytes = limit.below_bytes;
    thresholds.batch_min_runs = limit.min_runs;
  }
  if (rates.kernel_by_blocks.empty()) return thresholds;
  thresholds.kernel_blocks = choose_blocks(rates.kernel_by_blocks);
  Rates engine = rates.single;
  for (const auto& [point, rate] : rates.batch) engine[point] = std::max(engine[point], rate);
  if (const auto points = both(rates.kernel_by_blocks.at(thresholds.kernel_blocks), engine);
      !points.empty()) {
    const Limit limit = choose_limit(points, kKernelMargin);
    thresholds.kernel_below_bytes = limit.below_bytes;
    thresholds.kernel_min_runs = limit.min_runs;
  }
  return thresholds;
}

Status check_row(const CopyMeasurement& row, std::size_t index) {
  if (row.run_bytes == 0 || row.runs == 0)
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("row {}: {} runs of {} bytes, both must be at least 1", index, row.runs, row.run_bytes));
  if (!std::isfinite(row.bytes_per_s) || row.bytes_per_s <= 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("row {}: {} bytes per second, it must be above 0", index, row.bytes_per_s));
  if (row.method == CopyMethod::kernel && (row.kernel_blocks == 0 || row.kernel_blocks > kMaxKernelBlocks))
    return fail(ErrorCode::invalid_argument,
                fmt::format("row {}: a kernel of {} blocks, they must be 1 to {}", index, row.kernel_blocks,
                            kMaxKernelBlocks));
  return {};
}

}  // namespace

Result<CopyCalibration> derive_calibration(std::span<const CopyMeasurement> rows) {
  std::array<ClassRates, kLinkClasses> classes;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const CopyMeasurement& row = rows[i];
    if (const Status status = check_row(row, i); !status) return tl::unexpected(status.error());
    ClassRates& rates = classes[static_cast<std::size_t>(row.link)];
    switch (row.method) {
      case CopyMethod::single:
      case CopyMethod::peer: add_rate(rates.single, row); break;
      case CopyMethod::batch: add_rate(rates.batch, row); break;
      case CopyMethod::kernel: add_rate(rates.kernel_by_blocks[row.kernel_blocks], row); break;
    }
  }
  CopyCalibration result = default_calibration();
  for (std::size_t i = 0; i < kLinkClasses; ++i) result.links[i] = derive_class(classes[i], result.links[i]);
  return result;
}

}  // namespace harvest::cuda
