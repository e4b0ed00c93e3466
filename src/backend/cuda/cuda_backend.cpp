// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/cuda_backend.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "backend/cuda/calibration.hpp"
#include "backend/cuda/device_guard.hpp"
#include "backend/cuda/error.hpp"
#include "base/log.hpp"

namespace harvest {

bool has_cuda() {
  return true;
}

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions& options) {
  return cuda::CudaBackend::make(options);
}

namespace cuda {
namespace {

/// How long the end of a backend waits for its streams.
constexpr auto kDrainTime = std::chrono::seconds(5);

/// Bit i: kernels of GPU i may use registered memory by its address on the host. Copies may in any case.
std::uint64_t host_readers(const Gpus& gpus) {
  std::uint64_t readers = 0;
  for (std::size_t i = 0; i < gpus.size(); ++i) {
    int can = 0;
    const int ordinal = gpus.ordinal(static_cast<DeviceId>(i));
    if (check(cudaDeviceGetAttribute(&can, cudaDevAttrCanUseHostPointerForRegisteredMem, ordinal),
              "cudaDeviceGetAttribute") &&
        can != 0)
      readers |= std::uint64_t{1} << i;
  }
  return readers;
}

/// Descriptors and host copies are the work's, and that goes on although its backend ends.
void keep_until_exit(std::unique_ptr<CopyEngine> engine) {
  static Mutex mutex;
  static auto* const kept = new std::vector<std::unique_ptr<CopyEngine>>();
  const MutexLock lock(mutex);
  kept->push_back(std::move(engine));
}

/// The file that was named has to be there and good; the user's own need not, as it only makes copies faster.
Result<std::vector<CardCalibration>> calibrations_of(const std::string& asked) {
  const std::string path = asked.empty() ? cuda_calibration_file() : asked;
  if (path.empty()) return std::vector<CardCalibration>{};
  auto cards = read_calibrations(path);
  if (cards || !asked.empty()) return cards;
  if (cards.error().code != ErrorCode::not_found)
    log().warn("copies go by default thresholds: {}", cards.error().message);
  return std::vector<CardCalibration>{};
}

}  // namespace

template <typename Work>
auto CudaBackend::on_any_gpu(Work work) -> decltype(work()) {
  const Result<DeviceId> gpu = any_gpu();
  if (!gpu) return tl::unexpected(gpu.error());
  const DeviceGuard guard(gpus_->ordinal(*gpu));
  if (guard.error() != cudaSuccess) return gpus_->fail_call(guard.error(), *gpu, "cudaSetDevice");
  return work();
}

// --- making and ending ---------------------------------------------------------------------------------

Result<std::unique_ptr<Backend>> CudaBackend::make(const CudaOptions& options) {
  Result<std::vector<int>> ordinals = choose_gpus(options.gpus);
  if (!ordinals) return tl::unexpected(ordinals.error());
  const Result<std::vector<CardCalibration>> cards = calibrations_of(options.calibration_file);
  if (!cards) return tl::unexpected(cards.error());
  auto gpus = std::make_unique<Gpus>(std::move(*ordinals));
  Result<Discovery> found = discover(*gpus);
  if (!found) return tl::unexpected(found.error());
  std::vector<CopyCalibration> calibrations;
  for (const DeviceInfo& device : found->devices)
    calibrations.push_back(find_calibration(*cards, device.name, found->info.driver));
  return std::unique_ptr<Backend>(
      new CudaBackend(std::move(gpus), std::move(*found), options, std::move(calibrations)));
}

CudaBackend::CudaBackend(std::unique_ptr<Gpus> gpus, Discovery found, const CudaOptions& options,
                         std::vector<CopyCalibration> calibrations)
    : gpus_(std::move(gpus)),
      found_(std::move(found)),
      segments_(std::make_unique<Segments>(*gpus_, map_, options.use_virtual_memory)),
      host_(std::make_unique<HostMemory>(map_, host_readers(*gpus_), found_.devices.front().numa_node)),
      helpers_(gpus_->size(), StreamId::none) {
  CopyEngineOptions engine{.calibrations = std::move(calibrations),
                           .use_kernels = options.use_kernels,
                           .use_batches = options.use_batches};
  for (DeviceInfo& device : found_.devices) {
    device.segment_granularity_bytes = segments_->granularity_bytes(device.id);
    events_.push_back(std::make_unique<EventPool>(*gpus_, device.id));
    engine.ordinals.push_back(gpus_->ordinal(device.id));
  }
  DeviceInfo& host = found_.devices.emplace_back();
  host.name = "host";
  host.total_bytes = host_->query().total_bytes;
  host.segment_granularity_bytes = HostMemory::kGranularityBytes;
  host.copy_engines = found_.devices.front().copy_engines;
  host.numa_node = found_.devices.front().numa_node;

  const std::size_t rows = found_.devices.size();
  link_at_.resize(rows * rows);
  for (std::size_t i = 0; i < found_.links.size(); ++i)
    link_at_[row(found_.links[i].from) * rows + row(found_.links[i].to)] = i;
  engine_ = make_copy_engine(map_, engine);
  const CopyWays ways = engine_->ways(0);
  found_.info.no_kernels = ways.no_kernels;
  found_.info.no_batches = ways.no_batches;
}

CudaBackend::~CudaBackend() {
  const bool idle = drain();
  if (idle)
    engine_.reset();
  else
    keep_until_exit(std::move(engine_));
  for (const auto& stream : streams_.all()) {
    if (!stream->owned || gpus_->is_lost(stream->device)) continue;
    const DeviceGuard guard(gpus_->ordinal(stream->device));
    if (cudaStreamDestroy(stream->native) != cudaSuccess) static_cast<void>(cudaGetLastError());
  }
  if (idle) {
    static_cast<void>(on_any_gpu([&] {  // whichever GPU the caller has current may be lost
      host_.reset();
      return Status{};
    }));
    return;
  }
  // Unmapping under work poisons the context for the whole process (docs/cuda.md, rule 1): rather keep the
  // memory.
  log().error("the CUDA backend ends while work is under way on its streams; its memory stays allocated");
  segments_->abandon();
  host_->abandon();
}

/// Waits for the streams of this backend; false if one is not done in time.
bool CudaBackend::drain() {
  const auto deadline = std::chrono::steady_clock::now() + kDrainTime;
  for (const auto& stream : streams_.all()) {
    while (stream->owned && !gpus_->is_lost(stream->device)) {
      const DeviceGuard guard(gpus_->ordinal(stream->device));
      const cudaError_t error = cudaStreamQuery(stream->native);
      if (error == cudaSuccess) break;
      static_cast<void>(cudaGetLastError());
      if (error != cudaErrorNotReady) {
        static_cast<void>(gpus_->fail_call(error, stream->device, "cudaStreamQuery"));
        break;
      }
      if (std::chrono::steady_clock::now() >= deadline) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  return true;
}

// --- checks --------------------------------------------------------------------------------------------

const LinkInfo* CudaBackend::link(Route route) const {
  const auto is_device = [&](DeviceId device) { return device == kHost || gpus_->has(device); };
  if (!is_device(route.from) || !is_device(route.to)) return nullptr;
  const auto index = link_at_[row(route.from) * found_.devices.size() + row(route.to)];
  return index ? &found_.links[*index] : nullptr;
}

Status CudaBackend::check_gpu(DeviceId device) const {
  if (device == kHost) return fail(ErrorCode::not_found, "the host is not a GPU");
  return gpus_->check(device);
}

Status CudaBackend::check_route(Route route) const {
  if (link(route) == nullptr)
    return fail(ErrorCode::not_found,
                fmt::format("no link from device {} to device {}", route.from, route.to));
  if (Status status = gpus_->check(route.from); !status) return status;
  return gpus_->check(route.to);
}

Result<DeviceId> CudaBackend::any_gpu() const {
  for (std::size_t i = 0; i < gpus_->size(); ++i)
    if (!gpus_->is_lost(static_cast<DeviceId>(i))) return static_cast<DeviceId>(i);
  return fail(ErrorCode::unavailable, fmt::format("all {} GPUs are lost to this process", gpus_->size()));
}

/// Those of `readers` that a segment of `device` is mapped for.
Result<std::vector<DeviceId>> CudaBackend::reachable(DeviceId device,
                                                     std::span<const DeviceId> readers) const {
  std::vector<DeviceId> chosen;
  for (const DeviceId reader : readers) {
    if (reader == kHost) continue;
    if (!gpus_->has(reader))
      return fail(ErrorCode::not_found,
                  fmt::format("no device {} to read a segment of device {}", reader, device));
    const LinkInfo* const way = link({device, reader});
    const bool is_new = std::find(chosen.begin(), chosen.end(), reader) == chosen.end();
    if (reader != device && is_new && !gpus_->is_lost(reader) && way != nullptr && way->peer_access)
      chosen.push_back(reader);
  }
  return chosen;
}

// --- memory --------------------------------------------------------------------------------------------

Result<MemoryInfo> CudaBackend::query_memory(DeviceId device) {
  if (const Status status = gpus_->check(device); !status) return tl::unexpected(status.error());
  const TimeNs begin = now_ns();
  MemoryInfo memory;
  if (device == kHost) {
    memory = host_->query();
  } else {
    const DeviceGuard guard(gpus_->ordinal(device));
    std::size_t free_bytes = 0, total_bytes = 0;
    const cudaError_t error =
        guard.error() == cudaSuccess ? cudaMemGetInfo(&free_bytes, &total_bytes) : guard.error();
    if (error != cudaSuccess)
      return gpus_->fail_call(error, device, fmt::format("cudaMemGetInfo of device {}", device));
    memory = {free_bytes, total_bytes, 0};
  }
  memory.query_cost_ns = now_ns() - begin;
  return memory;
}

Result<std::byte*> CudaBackend::map_segment(DeviceId device, std::uint64_t bytes,
                                            std::span<const DeviceId> readers) {
  if (const Status status = gpus_->check(device); !status) return tl::unexpected(status.error());
  const DeviceInfo& info = device == kHost ? found_.devices.back() : found_.devices[row(device) - 1];
  const std::uint64_t step = info.segment_granularity_bytes;
  if (bytes == 0 || bytes % step != 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("a segment of {} bytes on device {}; it must be a multiple of {}, not 0", bytes,
                            device, step));
  const Result<std::vector<DeviceId>> chosen = reachable(device, readers);
  if (!chosen) return tl::unexpected(chosen.error());
  if (device == kHost) return on_any_gpu([&] { return host_->map(bytes); });
  return segments_->map(device, bytes, *chosen);
}

Status CudaBackend::unmap_segment(std::byte* address) {
  const auto range = map_.find(address);
  if (!range)
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} is not the address of a segment", fmt::ptr(address)));
  if (range->device != kHost) return segments_->unmap(address);
  // Without a GPU that works the memory goes all the same.
  return any_gpu() ? on_any_gpu([&] { return host_->unmap(address); }) : host_->unmap(address);
}

Status CudaBackend::register_host(std::byte* address, std::uint64_t bytes) {
  return on_any_gpu([&] { return host_->register_range(address, bytes); });
}

Status CudaBackend::unregister_host(std::byte* address) {
  return on_any_gpu([&] { return host_->unregister_range(address); });
}

}  // namespace cuda
}  // namespace harvest
