// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/cuda.hpp>

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/cuda/copy_engine.hpp"
#include "backend/cuda/discovery.hpp"
#include "backend/cuda/events.hpp"
#include "backend/cuda/gpus.hpp"
#include "backend/cuda/host_memory.hpp"
#include "backend/cuda/memory_map.hpp"
#include "backend/cuda/segments.hpp"
#include "backend/cuda/streams.hpp"
#include "base/annotated_mutex.hpp"

namespace harvest::cuda {

/// The contract of `Backend` on CUDA: it checks, finds the stream or device, makes that current, and hands
/// on. Nothing on the read path (`copy`, `record_event`, `stream_wait`, `query_event`) takes a lock for more
/// than one stream or one GPU, or allocates once its pools have grown.
class CudaBackend final : public Backend {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Backend>> make(const CudaOptions& options);
  ~CudaBackend() override;

  const BackendInfo& info() const override { return found_.info; }
  std::span<const DeviceInfo> devices() const override { return found_.devices; }
  std::span<const LinkInfo> links() const override { return found_.links; }

  Result<MemoryInfo> query_memory(DeviceId device) override;
  Result<std::byte*> map_segment(DeviceId device, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override;
  Status unmap_segment(std::byte* address) override;
  Status register_host(std::byte* address, std::uint64_t bytes) override;
  Status unregister_host(std::byte* address) override;

  Result<StreamId> create_stream(DeviceId device) override;
  Result<StreamId> wrap_stream(DeviceId device, void* native) override;
  Status destroy_stream(StreamId stream) override;
  Result<DeviceId> stream_device(StreamId stream) const override;
  bool is_capturing(StreamId stream) const override;

  Result<EventId> record_event(StreamId stream) override;
  void release_event(EventId event) override;
  EventState query_event(EventId event) override;
  Status stream_wait(StreamId stream, EventId event) override;
  EventState wait_event(EventId event, TimeNs deadline_ns) override;

  Status copy(StreamId stream, Route route, std::span<const Copy> copies) override;
  Status fill(StreamId stream, DeviceId device, std::byte* address, std::uint64_t bytes,
              std::uint8_t value) override;

  TimeNs now_ns() const override;
  void sleep_until(TimeNs until_ns) override;

 private:
  CudaBackend(std::unique_ptr<Gpus> gpus, Discovery found, const CudaOptions& options,
              std::vector<CopyCalibration> calibrations);

  [[nodiscard]] const LinkInfo* link(Route route) const;
  [[nodiscard]] std::size_t row(DeviceId device) const {
    return static_cast<std::size_t>(std::ptrdiff_t{device} + 1);
  }
  [[nodiscard]] Status check_gpu(DeviceId device) const;
  [[nodiscard]] Status check_route(Route route) const;
  /// The first GPU that is not lost: host memory needs one, whichever it is. Errors: unavailable.
  [[nodiscard]] Result<DeviceId> any_gpu() const;
  [[nodiscard]] Result<std::vector<DeviceId>> reachable(DeviceId device,
                                                        std::span<const DeviceId> readers) const;

  /// `work(Stream&)` on a stream that stays open, its GPU current, nobody else giving it work.
  /// Errors: not_found, unavailable, and those of `work`.
  template <typename Work>
  auto on_stream(StreamId id, Work work) -> decltype(work(std::declval<Stream&>()));
  /// `work()` with some GPU current. Errors: unavailable, and those of `work`.
  template <typename Work>
  auto on_any_gpu(Work work) -> decltype(work());

  [[nodiscard]] EventPool& pool_of(EventId event) const;
  [[nodiscard]] bool captures(const Stream& stream) const;
  Status fill_directly(const Stream& stream, DeviceId device, std::byte* address, std::uint64_t bytes,
                       std::uint8_t value);
  /// The GPU that does copies for a stream of `gpu`: that one if it reaches all of their memory.
  [[nodiscard]] DeviceId worker_for(DeviceId gpu, Route route, std::span<const Copy> copies) const;
  /// `work(StreamId)` on a stream of `device`, after the work of `stream` so far and before what follows on
  /// it.
  template <typename Work>
  Status on_helper(StreamId stream, DeviceId device, Work work);
  Result<StreamId> helper_stream(DeviceId device) HARVEST_EXCLUDES(helpers_mutex_);
  bool drain();

  const std::unique_ptr<Gpus> gpus_;
  Discovery found_;
  std::vector<std::optional<std::size_t>> link_at_;  ///< by row(from) * rows + row(to)
  MemoryMap map_;
  std::unique_ptr<Segments> segments_;
  std::unique_ptr<HostMemory> host_;
  Streams streams_;
  std::vector<std::unique_ptr<EventPool>> events_;  ///< by GPU
  std::unique_ptr<CopyEngine> engine_;

  /// A stream of each GPU, for work on memory that the caller's stream cannot reach.
  Mutex helpers_mutex_;
  std::vector<StreamId> helpers_ HARVEST_GUARDED_BY(helpers_mutex_);
};

}  // namespace harvest::cuda
