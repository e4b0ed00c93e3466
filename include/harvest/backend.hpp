// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

/// The one seam to hardware. Everything above it (memory, core, caches) asks a `Backend` for memory,
/// copies, events and the time, and for nothing else; so the same code runs on GPUs, on a simulated
/// machine in virtual time, and under test doubles that fail on purpose.
namespace harvest {

/// One GPU, or the host (`id == kHost`, always present, listed last).
struct DeviceInfo {
  DeviceId id = kHost;
  std::string name;
  std::uint64_t total_bytes = 0;
  std::uint64_t segment_granularity_bytes = 0;  ///< sizes of segments are multiples of this
  std::uint32_t copy_engines = 0;               ///< copies that can run at once; more wait their turn
  std::int32_t numa_node = -1;                  ///< the host memory near it, -1 if not known
  std::string uuid{};  ///< the GPU's own, "GPU-...", the same in every process; empty if it has none
};

enum class LinkKind : std::uint8_t { same_device, nvlink, nvswitch, c2c, pcie };
[[nodiscard]] std::string_view to_string(LinkKind kind);

/// The way from one device to another, in one direction. A copy of n bytes alone on it takes about
/// `issue + latency + n / bandwidth`; in a batch every copy but the first costs `issue_batched`.
struct LinkInfo {
  DeviceId from = kHost;
  DeviceId to = kHost;
  LinkKind kind = LinkKind::pcie;
  bool peer_access = false;  ///< `to` and `from` can address each other's memory (a claim, not a proof)
  double bandwidth_bytes_per_s = 0;
  TimeNs latency_ns = 0;
  TimeNs issue_ns = 0;
  TimeNs issue_batched_ns = 0;
  std::string source;  ///< where the figures come from: a measurement, a reference, an estimate
};

/// What kind of machine answers. Reports say `simulated` wherever this says so.
struct BackendInfo {
  std::string name;           ///< "simulated", "cuda", ...
  std::string system;         ///< the machine: a preset's name, or what the driver calls it
  bool simulated = false;     ///< figures of this backend are the model's, not a measurement's
  bool virtual_time = false;  ///< the clock moves only when somebody waits
  bool loopback = false;      ///< the peer is the consumer's own GPU: no figure of it is NVLink's
  bool holds_bytes = true;    ///< false: memory has a size and an identity but no content to dereference
  std::string driver{};       ///< its version, "13.0"; empty if there is none
  std::string no_kernels{};   ///< why copies cannot go by a kernel of ours; empty: they can, or nobody knows
  std::string no_batches{};   ///< the same of many copies in one call of the driver
};

/// An answer to "how much is free?". It was true when it was taken and is no promise.
struct MemoryInfo {
  std::uint64_t free_bytes = 0;
  std::uint64_t total_bytes = 0;
  TimeNs query_cost_ns = 0;  ///< what asking cost; who asks often backs off where this is high
};

/// From where to where a batch of copies goes.
struct Route {
  DeviceId from = kHost;
  DeviceId to = kHost;
  friend bool operator==(const Route&, const Route&) = default;
};

/// One contiguous run of a batch, inside of one allocation at either end. A backend may merge runs that
/// follow each other; who gives them may not, as neighbours can be of two allocations, over whose seam no
/// copy may go.
struct Copy {
  std::byte* destination = nullptr;
  const std::byte* source = nullptr;
  std::uint64_t bytes = 0;
};

enum class EventState : std::uint8_t {
  pending,
  complete,
  failed,  ///< complete, but work between it and the event before it on its stream failed: nothing
           ///< that this work wrote may be trusted. The stream goes on; later events are their own.
};

/// A machine. All functions may be called from any thread. None blocks unless it says so, none calls
/// back. Memory is named by address in one unified space; only host memory may be dereferenced, and
/// only where `info().holds_bytes`.
///
/// Order: work on one stream runs in the order in which it was given; work on two streams is
/// unordered but for events. Nothing else orders anything: who needs a copy's bytes waits for an
/// event recorded after it, and who reuses a copy's source or destination does too.
class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  // --- the machine -----------------------------------------------------------------------------

  [[nodiscard]] virtual const BackendInfo& info() const = 0;

  /// GPUs with ids 0..n-1 in order, then the host. Fixed for the backend's life.
  [[nodiscard]] virtual std::span<const DeviceInfo> devices() const = 0;

  /// Every ordered pair that copies can use, host links and each device to itself included.
  [[nodiscard]] virtual std::span<const LinkInfo> links() const = 0;

  // --- memory ----------------------------------------------------------------------------------

  /// Free and total bytes of `device` now, as its driver tells it.
  /// Errors: not_found (no such device), unavailable (the device is lost).
  [[nodiscard]] virtual Result<MemoryInfo> query_memory(DeviceId device) = 0;

  /// Allocates `bytes` (a multiple of the device's granularity, not 0) of physical memory on `device`,
  /// mapped for `device` itself and for every device in `readers` that can reach it: one whose link with
  /// `device` has no peer access, or that is lost, is left out, and copies between the two go through the
  /// host. Pinned memory, which every GPU reaches, if `device` is the host.
  /// Its content is undefined. May block for as long as the driver's allocation takes.
  /// Errors: invalid_argument (size), not_found (no such device or reader), out_of_memory, unavailable (the
  /// device is lost, or the driver refuses a reader that should reach it).
  [[nodiscard]] virtual Result<std::byte*> map_segment(DeviceId device, std::uint64_t bytes,
                                                       std::span<const DeviceId> readers) = 0;

  /// Returns a segment's physical memory: afterwards the device's free count shows it and another
  /// process can have it. Requires: all work that touches it is complete (this is not checked by the
  /// driver; the `checked` backend does). Errors: invalid_argument (not a segment's address),
  /// unavailable (the device is lost; the segment is forgotten all the same).
  [[nodiscard]] virtual Status unmap_segment(std::byte* address) = 0;

  /// Makes the caller's own host memory fit for asynchronous copies. Without it copies from that
  /// memory still work, slower. Errors: invalid_argument (null, 0 bytes, overlaps), out_of_memory.
  [[nodiscard]] virtual Status register_host(std::byte* address, std::uint64_t bytes) = 0;
  [[nodiscard]] virtual Status unregister_host(std::byte* address) = 0;

  // --- streams and events ------------------------------------------------------------------------

  /// A new stream of `device` (a GPU). Errors: not_found, unavailable, out_of_memory.
  [[nodiscard]] virtual Result<StreamId> create_stream(DeviceId device) = 0;

  /// A name for the caller's own stream (`native` is a cudaStream_t on the CUDA backend; the simulated
  /// backend has no native streams and answers not_supported). The caller keeps owning it.
  [[nodiscard]] virtual Result<StreamId> wrap_stream(DeviceId device, void* native) = 0;

  /// Forgets a stream. Work given before still runs. Ids are not used again.
  virtual Status destroy_stream(StreamId stream) = 0;

  /// The device of a stream, or not_found.
  [[nodiscard]] virtual Result<DeviceId> stream_device(StreamId stream) const = 0;

  /// True while the work given to a stream is recorded into a graph instead of being run. Work that is
  /// captured may be replayed at any time later, so an address in it must stay good for as long as the graph.
  /// While it is true `record_event` answers not_supported. False for streams that are not known.
  [[nodiscard]] virtual bool is_capturing(StreamId stream) const = 0;

  /// An event that completes when all work given to `stream` so far has; `failed` if any of it since
  /// the event recorded before on this stream failed. Events of one stream complete in order.
  /// Errors: not_found, unavailable, out_of_memory, not_supported (the stream is being captured).
  [[nodiscard]] virtual Result<EventId> record_event(StreamId stream) = 0;

  /// Gives an event back; waits that were already given to streams still hold.
  virtual void release_event(EventId event) = 0;

  /// Does not block. An event that does not exist is a broken precondition.
  [[nodiscard]] virtual EventState query_event(EventId event) = 0;

  /// Work given to `stream` from now on starts after `event`. Devices may differ. A failed event
  /// lets the stream go on. Errors: not_found, unavailable, not_supported (the stream is being captured).
  virtual Status stream_wait(StreamId stream, EventId event) = 0;

  /// Blocks until `event` is no longer pending or the clock reaches `deadline_ns`; moves virtual time.
  /// Returns the event's state then. In virtual time it returns `pending` at once where nothing under
  /// way can complete the event and there is no deadline.
  virtual EventState wait_event(EventId event, TimeNs deadline_ns) = 0;

  // --- work --------------------------------------------------------------------------------------

  /// Gives `stream` a batch of copies, all on one route, in no order among themselves; the batch is
  /// one piece of work of the stream. `copies` is not read after the call returns. A stream may drive
  /// copies between any two devices; the host may be either end.
  /// Errors: invalid_argument (null, 0 bytes, empty batch), not_found (stream, or no link on the route),
  /// unavailable (link down, device lost), copy_failed. After an error nothing of it is under way. What is
  /// wrong with the arguments is found before anything is given; after an error of the driver's in the middle
  /// of a batch some destinations may have been written, and the call may have waited for that. A copy may
  /// also fail in flight: then the next event recorded on the stream is `failed`, and the destination's
  /// content is undefined.
  [[nodiscard]] virtual Status copy(StreamId stream, Route route, std::span<const Copy> copies) = 0;

  /// Gives `stream` the work of setting `bytes` bytes at `address` on `device` to `value`.
  [[nodiscard]] virtual Status fill(StreamId stream, DeviceId device, std::byte* address, std::uint64_t bytes,
                                    std::uint8_t value) = 0;

  // --- time --------------------------------------------------------------------------------------

  /// Never goes backwards.
  [[nodiscard]] virtual TimeNs now_ns() const = 0;

  /// Blocks until the clock reaches `until_ns`; moves virtual time.
  virtual void sleep_until(TimeNs until_ns) = 0;
};

}  // namespace harvest
