// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/copy_engine.hpp"

#include <fmt/format.h>

#include <atomic>
#include <utility>

#include "backend/cuda/batch_call.hpp"
#include "backend/cuda/copy_kernels.hpp"
#include "backend/cuda/copy_planner.hpp"
#include "backend/cuda/descriptor_pool.hpp"
#include "backend/cuda/error.hpp"
#include "backend/cuda/host_copies.hpp"
#include "base/assert.hpp"
#include "base/log.hpp"

namespace harvest::cuda {
namespace {

/// A way to copy that may turn out not to be there: once it is given up it stays so.
class Way {
 public:
  [[nodiscard]] bool is_open() const { return open_.load(std::memory_order_acquire); }
  [[nodiscard]] std::string why_not() const {
    const MutexLock lock(mutex_);
    return why_not_;
  }
  /// False if it was closed before.
  bool close(std::string why) {
    const MutexLock lock(mutex_);
    if (!open_.load(std::memory_order_relaxed)) return false;
    why_not_ = std::move(why);
    open_.store(false, std::memory_order_release);
    return true;
  }

 private:
  mutable Mutex mutex_;
  std::string why_not_ HARVEST_GUARDED_BY(mutex_);
  std::atomic<bool> open_{true};
};

struct Device {
  int ordinal = 0;
  CopyCalibration calibration{};
  Way kernels{};
  DescriptorPool descriptors{};
};

/// The driver is older than the toolkit and does not have the call. Nothing was given then.
bool is_missing_call(cudaError_t error) {
  return error == cudaErrorNotSupported || error == cudaErrorCallRequiresNewerDriver;
}

/// The image has no code for this GPU, or the driver cannot make any. Nothing was given then.
bool is_missing_kernel(CUresult error) {
  switch (error) {
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_INVALID_IMAGE:
    case CUDA_ERROR_INVALID_PTX:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_JIT_COMPILER_NOT_FOUND:
    case CUDA_ERROR_JIT_COMPILATION_DISABLED:
    case CUDA_ERROR_NOT_SUPPORTED: return true;
    default: return false;
  }
}

/// 0 is the legacy stream in this library, which is not compiled for per-thread default streams; the
/// per-thread one is as good for batches as any (docs/cuda.md, rule 10; vllm#46379).
bool is_legacy(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy;
}

PlanScratch& scratch_of_this_thread() {
  thread_local PlanScratch scratch;
  return scratch;
}

class DriverCopyEngine final : public CopyEngine {
 public:
  DriverCopyEngine(const MemoryMap& map, const CopyEngineOptions& options);

  Status copy(const CopyJob& job, std::span<const Copy> copies) override;
  CopyWays ways(DeviceId device) const override {
    return {batches_.why_not(), device_at(device).kernels.why_not()};
  }

 private:
  Status run(const CopyJob& job, const CopyStep& step);
  Status run_singles(const CopyJob& job, std::span<const Copy> runs);
  Status run_peers(const CopyJob& job, std::span<const Copy> runs);
  Status run_batch(const CopyJob& job, std::span<const Copy> runs);
  Status run_kernel(const CopyJob& job, const CopyStep& step);
  /// Waits for what was given before a failure.
  Error settle(const CopyJob& job, Error error);

  [[nodiscard]] bool may_batch(const CopyJob& job) const {
    return batches_.is_open() && !job.capturing && !is_legacy(job.stream);
  }
  [[nodiscard]] Device& device_at(DeviceId device) const {
    HARVEST_ASSERT(device >= 0 && static_cast<std::size_t>(device) < devices_.size(), "a device not there");
    return *devices_[static_cast<std::size_t>(device)];
  }

  CopyPlanner planner_;
  HostCopies host_copies_;
  std::vector<std::unique_ptr<Device>> devices_;
  Way batches_;
  CUkernel kernel_ = nullptr;
};

DriverCopyEngine::DriverCopyEngine(const MemoryMap& map, const CopyEngineOptions& options) : planner_(map) {
  HARVEST_ASSERT(options.ordinals.size() == options.calibrations.size(), "a calibration for each device");
  if (!options.use_batches)
    batches_.close("turned off");
  else if (!kHasBatchCall)
    batches_.close("built with a CUDA toolkit older than 12.8");
  std::string no_kernels = "turned off";
  if (options.use_kernels) {
    if (const Result<CUkernel> kernel = load_copy_kernel())
      kernel_ = *kernel;
    else
      no_kernels = kernel.error().message;
  }
  for (std::size_t i = 0; i < options.ordinals.size(); ++i) {
    auto device = std::make_unique<Device>();
    device->ordinal = options.ordinals[i];
    device->calibration = options.calibrations[i];
    if (kernel_ == nullptr) device->kernels.close(no_kernels);
    devices_.push_back(std::move(device));
  }
}

Status DriverCopyEngine::copy(const CopyJob& job, std::span<const Copy> copies) {
  const bool on_host = job.route.from == kHost && job.route.to == kHost;
  if (on_host && !job.capturing)
    return check(host_copies_.submit(job.stream, copies),
                 fmt::format("cudaLaunchHostFunc for {} copies from host to host", copies.size()));
  const Device& device = device_at(job.stream_device);
  const CopyRequest request{job.route, job.stream_device, job.capturing, is_legacy(job.stream)};
  const CopyCapabilities capabilities{batches_.is_open(), device.kernels.is_open()};
  for (const CopyStep& step :
       planner_.plan(request, copies, capabilities, device.calibration, scratch_of_this_thread()))
    if (const Status status = run(job, step); !status) return tl::unexpected(settle(job, status.error()));
  return {};
}

Status DriverCopyEngine::run(const CopyJob& job, const CopyStep& step) {
  switch (step.method) {
    case CopyMethod::single: return run_singles(job, step.runs);
    case CopyMethod::peer: return run_peers(job, step.runs);
    case CopyMethod::batch: return run_batch(job, step.runs);
    case CopyMethod::kernel: return run_kernel(job, step);
  }
  return {};
}

Status DriverCopyEngine::run_singles(const CopyJob& job, std::span<const Copy> runs) {
  for (const Copy& run : runs) {
    const cudaError_t error =
        cudaMemcpyAsync(run.destination, run.source, run.bytes, cudaMemcpyDefault, job.stream);
    if (error != cudaSuccess)
      return check(error, fmt::format("cudaMemcpyAsync of {} bytes from device {} to {}", run.bytes,
                                      job.route.from, job.route.to));
  }
  return {};
}

Status DriverCopyEngine::run_peers(const CopyJob& job, std::span<const Copy> runs) {
  const int from = device_at(job.route.from).ordinal;
  const int to = device_at(job.route.to).ordinal;
  for (const Copy& run : runs) {
    const cudaError_t error =
        cudaMemcpyPeerAsync(run.destination, to, run.source, from, run.bytes, job.stream);
    if (error != cudaSuccess)
      return check(error, fmt::format("cudaMemcpyPeerAsync of {} bytes from device {} to {}", run.bytes,
                                      job.route.from, job.route.to));
  }
  return {};
}

Status DriverCopyEngine::run_batch(const CopyJob& job, std::span<const Copy> runs) {
  DescriptorPool& pool = device_at(job.stream_device).descriptors;
  BatchDescriptors* descriptors = batches_.is_open() ? pool.take() : nullptr;
  if (descriptors == nullptr) return run_singles(job, runs);
  descriptors->write(runs);
  const cudaError_t error = call_batch(*descriptors, job.stream);
  if (error == cudaSuccess)
    return check(pool.put_in_flight(descriptors, job.stream), "waiting for a cudaMemcpyBatchAsync");
  const Status failure = check(error, fmt::format("cudaMemcpyBatchAsync of {} runs from device {} to {}",
                                                  runs.size(), job.route.from, job.route.to));
  if (is_missing_call(error)) {
    pool.give_back(descriptors);
    if (batches_.close(failure.error().message))
      log().info("copies go one by one: {}", failure.error().message);
    return run_singles(job, runs);
  }
  if (cudaStreamSynchronize(job.stream) == cudaSuccess) pool.give_back(descriptors);
  return failure;
}

Status DriverCopyEngine::run_kernel(const CopyJob& job, const CopyStep& step) {
  Way& kernels = device_at(job.stream_device).kernels;
  RunBatch batch;
  batch.count = 0;
  batch.tiles = 0;
  for (const Copy& run : step.runs) {
    const bool added =
        add_run(batch, reinterpret_cast<std::uintptr_t>(run.destination),
                reinterpret_cast<std::uintptr_t>(run.source), static_cast<std::uint32_t>(run.bytes));
    HARVEST_ASSERT(added, "a plan's kernel step is one launch");
  }
  const CUresult error = kernels.is_open()
                             ? launch_copy_kernel(kernel_, batch, step.kernel_blocks, job.stream)
                             : CUDA_ERROR_NOT_SUPPORTED;
  if (error == CUDA_SUCCESS) return {};
  if (!is_missing_kernel(error))
    return check(error, fmt::format("launch of the copy kernel with {} runs", step.runs.size()));
  const std::string why = to_error(error, "launch of the copy kernel").message;
  if (kernels.close(why)) log().info("device {}: copies go without a kernel: {}", job.stream_device, why);
  return may_batch(job) ? run_batch(job, step.runs) : run_singles(job, step.runs);
}

Error DriverCopyEngine::settle(const CopyJob& job, Error error) {
  if (job.capturing) return error;
  const cudaError_t waited = cudaStreamSynchronize(job.stream);  // at once, if the device is lost
  if (waited == cudaSuccess) return error;
  const Status failure = check(waited, fmt::format("waiting after: {}", error.message));
  return is_sticky(waited) ? failure.error() : error;
}

}  // namespace

std::unique_ptr<CopyEngine> make_copy_engine(const MemoryMap& map, const CopyEngineOptions& options) {
  return std::make_unique<DriverCopyEngine>(map, options);
}

}  // namespace harvest::cuda
