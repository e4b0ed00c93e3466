// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/segments.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/device_guard.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/error.hpp"

namespace harvest::cuda {
namespace {

/// What cudaMalloc takes from a device at a time.
constexpr std::uint64_t kPlainGranularityBytes = 2U << 20U;
/// Without a switch between them (docs/cuda.md, rule 7).
constexpr int kPeersMax = 8;

CUdeviceptr number(const std::byte* address) {
  return reinterpret_cast<CUdeviceptr>(address);
}

/// Addresses behind each segment that nothing is mapped at: what runs past its end faults instead of writing
/// into the next one, and runs that touch lie in one segment.
std::uint64_t with_gap(std::uint64_t bytes) {
  return bytes + kPlainGranularityBytes;
}

/// Undoes a step of a mapping unless all steps were taken.
template <typename Undo>
class Step {
 public:
  explicit Step(Undo undo) : undo_(std::move(undo)) {}
  ~Step() {
    if (!kept_) undo_();
  }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;
  void keep() { kept_ = true; }

 private:
  Undo undo_;
  bool kept_ = false;
};

}  // namespace

Segments::Segments(Gpus& gpus, MemoryMap& map, bool use_virtual_memory)
    : gpus_(gpus), map_(map), granularity_(gpus.size()) {
  if (!use_virtual_memory || !driver().has_virtual_memory()) return;
  for (std::size_t gpu = 0; gpu < gpus.size(); ++gpu) {
    const CUmemAllocationProp prop = properties(static_cast<DeviceId>(gpu));
    std::size_t bytes = 0;
    const CUresult error =
        driver().get_allocation_granularity(&bytes, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    if (error == CUDA_SUCCESS) granularity_[gpu] = bytes;
  }
}

Segments::~Segments() {
  const MutexLock lock(mutex_);
  for (const auto& [address, segment] : segments_) static_cast<void>(release(address, segment));
}

CUmemAllocationProp Segments::properties(DeviceId device) const {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location = {CU_MEM_LOCATION_TYPE_DEVICE, gpus_.ordinal(device)};
  return prop;
}

std::uint64_t Segments::granularity_bytes(DeviceId gpu) const {
  return is_virtual(gpu) ? granularity_[index(gpu)] : kPlainGranularityBytes;
}

Result<std::byte*> Segments::map(DeviceId device, std::uint64_t bytes, std::span<const DeviceId> readers) {
  const DeviceGuard guard(gpus_.ordinal(device));
  if (guard.error() != cudaSuccess) return gpus_.fail_call(guard.error(), device, "cudaSetDevice");
  Segment segment{device, bytes, is_virtual(device), 0};
  const Result<std::byte*> address =
      segment.is_virtual ? map_virtual(segment, readers) : allocate(segment, readers);
  if (!address) return address;
  KnownRange range{*address, bytes, device, std::uint64_t{1} << device};
  for (const DeviceId reader : readers) range.accessible_by |= std::uint64_t{1} << reader;
  map_.add(range);
  const MutexLock lock(mutex_);
  segments_.emplace(*address, segment);
  return address;
}

Status Segments::unmap(std::byte* address) {
  Segment segment;
  {
    const MutexLock lock(mutex_);
    const auto found = segments_.find(address);
    if (found == segments_.end())
      return fail(ErrorCode::invalid_argument,
                  fmt::format("{} is not the address of a segment", fmt::ptr(address)));
    segment = found->second;
    segments_.erase(found);
  }
  map_.remove(address);
  return release(address, segment);
}

Status Segments::release(std::byte* address, const Segment& segment) {
  if (gpus_.is_lost(segment.device))
    return fail(ErrorCode::unavailable,
                fmt::format("device {} is lost; its segment is forgotten", segment.device));
  if (segment.is_virtual) return unmap_virtual(address, segment);
  const DeviceGuard guard(gpus_.ordinal(segment.device));
  const cudaError_t error = guard.error() == cudaSuccess ? cudaFree(address) : guard.error();
  if (error != cudaSuccess) return gpus_.fail_call(error, segment.device, "cudaFree of a segment");
  return {};
}

// --- the driver's virtual memory -----------------------------------------------------------------------

Result<std::byte*> Segments::map_virtual(Segment& segment, std::span<const DeviceId> readers) {
  const Driver& cu = driver();
  const auto failed = [&](CUresult error, const char* call) {
    return gpus_.fail_call(error, segment.device,
                           fmt::format("{} of {} bytes on device {}", call, segment.bytes, segment.device));
  };
  const CUmemAllocationProp prop = properties(segment.device);
  if (const CUresult error = cu.create(&segment.handle, segment.bytes, &prop, 0); error != CUDA_SUCCESS)
    return failed(error, "cuMemCreate");
  Step created([&] { static_cast<void>(cu.release(segment.handle)); });

  CUdeviceptr address = 0;
  if (const CUresult error = cu.reserve(&address, with_gap(segment.bytes), 0, 0, 0); error != CUDA_SUCCESS)
    return failed(error, "cuMemAddressReserve");
  Step reserved([&] { static_cast<void>(cu.free_address(address, with_gap(segment.bytes))); });

  if (const CUresult error = cu.map(address, segment.bytes, 0, segment.handle, 0); error != CUDA_SUCCESS)
    return failed(error, "cuMemMap");
  Step mapped([&] { static_cast<void>(cu.unmap(address, segment.bytes)); });

  if (const Status status = set_access(address, segment, readers); !status)
    return tl::unexpected(status.error());
  mapped.keep();
  reserved.keep();
  created.keep();
  return reinterpret_cast<std::byte*>(address);
}

Status Segments::set_access(CUdeviceptr address, const Segment& segment, std::span<const DeviceId> readers) {
  std::vector<CUmemAccessDesc> access;
  const auto add = [&](DeviceId gpu) {
    access.push_back({{CU_MEM_LOCATION_TYPE_DEVICE, gpus_.ordinal(gpu)}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE});
  };
  add(segment.device);
  for (const DeviceId reader : readers) add(reader);
  const CUresult error = driver().set_access(address, segment.bytes, access.data(), access.size());
  if (error == CUDA_SUCCESS) return {};
  std::vector<DeviceId> concerned{segment.device};
  concerned.insert(concerned.end(), readers.begin(), readers.end());
  return gpus_.fail_call(error, concerned,
                         fmt::format("cuMemSetAccess of {} bytes of device {} for {} GPUs", segment.bytes,
                                     segment.device, access.size()));
}

/// All three steps, whatever the first ones answer: what can be given back is.
Status Segments::unmap_virtual(std::byte* address, const Segment& segment) {
  const Driver& cu = driver();
  const CUresult unmapped = cu.unmap(number(address), segment.bytes);
  const CUresult released = cu.release(segment.handle);
  const CUresult freed = cu.free_address(number(address), with_gap(segment.bytes));
  const std::pair<CUresult, const char*> steps[] = {
      {unmapped, "cuMemUnmap"}, {released, "cuMemRelease"}, {freed, "cuMemAddressFree"}};
  for (const auto& [error, call] : steps)
    if (error != CUDA_SUCCESS)
      return gpus_.fail_call(error, segment.device,
                             fmt::format("{} of a segment of device {}", call, segment.device));
  return {};
}

// --- cudaMalloc ----------------------------------------------------------------------------------------

Result<std::byte*> Segments::allocate(const Segment& segment, std::span<const DeviceId> readers) {
  for (const DeviceId reader : readers)
    if (const Status status = enable_peer_access(reader, segment.device); !status)
      return tl::unexpected(status.error());
  void* address = nullptr;
  if (const cudaError_t error = cudaMalloc(&address, segment.bytes); error != cudaSuccess)
    return gpus_.fail_call(error, segment.device,
                           fmt::format("cudaMalloc of {} bytes on device {}", segment.bytes, segment.device));
  return static_cast<std::byte*>(address);
}

Status Segments::enable_peer_access(DeviceId reader, DeviceId owner) {
  const std::pair pair{gpus_.ordinal(reader), gpus_.ordinal(owner)};
  const MutexLock lock(peers_mutex_);
  if (peers_.contains(pair)) return {};
  const DeviceGuard guard(pair.first);
  const cudaError_t error =
      guard.error() == cudaSuccess ? cudaDeviceEnablePeerAccess(pair.second, 0) : guard.error();
  if (error == cudaErrorTooManyPeers) {
    static_cast<void>(cudaGetLastError());
    return fail(ErrorCode::unavailable,
                fmt::format("device {} cannot read device {}: it reads {} peers already, the most that a GPU "
                            "without a switch can (cudaErrorTooManyPeers)",
                            reader, owner, kPeersMax));
  }
  if (error == cudaErrorPeerAccessAlreadyEnabled)
    static_cast<void>(cudaGetLastError());  // by the caller's own code: as good as ours
  else if (error != cudaSuccess)
    return gpus_.fail_call(
        error, reader, fmt::format("cudaDeviceEnablePeerAccess of device {} for device {}", owner, reader));
  peers_.insert(pair);
  return {};
}

}  // namespace harvest::cuda
