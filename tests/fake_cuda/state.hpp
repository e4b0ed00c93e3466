// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "fake_cuda/accounts.hpp"
#include "fake_cuda/address_space.hpp"
#include "fake_cuda/fake_cuda.hpp"
#include "fake_cuda/faults.hpp"
#include "fake_cuda/sanitizer.hpp"

/// All of the fake's state, behind one lock. The lock is given up where bytes move, where time passes and
/// where the user's code runs.
namespace harvest::fake_cuda::internal {

using Lock = std::unique_lock<std::mutex>;
using Clock = std::chrono::steady_clock;

struct Stream;
struct Capture;

/// The end of a piece of work. `wakes`: streams that wait for it.
struct Completion {
  bool done = false;
  Clock::time_point when{};
  std::vector<std::weak_ptr<Stream>> wakes{};
};
using CompletionRef = std::shared_ptr<Completion>;

/// What a stream does. Immutable, since a graph runs it many times.
struct Work {
  virtual ~Work() = default;
  /// The device whose context an error poisons. Requires: the lock is held; may give it up in between.
  [[nodiscard]] virtual cudaError_t run(Lock& lock) const = 0;
  [[nodiscard]] virtual bool has_delay() const { return true; }
};
using WorkRef = std::shared_ptr<const Work>;

struct Queued {
  WorkRef work;  ///< null: a mark, of an event or a wait
  std::vector<CompletionRef> after;
  CompletionRef completion;
};

/// Where a stream's next node of a capture hangs.
struct CapturePlace {
  std::shared_ptr<Capture> capture{};
  std::vector<std::size_t> last{};  ///< the nodes that the next one follows
};

struct Stream : std::enable_shared_from_this<Stream> {
  std::uint64_t number = 0;  ///< its handle's; 0: a default stream
  int device = 0;
  unsigned flags = 0;
  int priority = 0;
  bool is_legacy = false;
  bool destroyed = false;
  bool stop = false;
  bool started = false;
  std::deque<Queued> queue{};
  CompletionRef tail{};  ///< of the work given last; null or done: idle
  CapturePlace capturing{};
  std::condition_variable wake{};
  std::thread worker{};
  std::mt19937_64 random{};

  [[nodiscard]] bool is_blocking() const { return !is_legacy && (flags & cudaStreamNonBlocking) == 0; }
  [[nodiscard]] bool is_idle() const { return tail == nullptr || tail->done; }
};
using StreamRef = std::shared_ptr<Stream>;

struct Event {
  int device = 0;
  unsigned flags = 0;
  CompletionRef record{};
  CapturePlace captured{};  ///< last recorded in this capture
};

struct Node {
  WorkRef work;
  int device = 0;
  std::vector<std::size_t> after;
};

struct Graph {
  std::vector<Node> nodes{};
};

struct Capture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread{};
  std::weak_ptr<Stream> origin{};
  bool invalidated = false;
  Graph graph{};
};

struct Device {
  DeviceDescription description{};
  std::string pci_bus_id{};
  bool has_context = false;
  cudaError_t sticky = cudaSuccess;
  std::set<int> peers{};  ///< whose memory its context was given access to
  StreamRef legacy{};
  std::map<std::thread::id, StreamRef> per_thread{};
};

class State {
 public:
  std::mutex mutex{};
  std::condition_variable host_wake{};  ///< for host threads that wait for a completion

  bool initialised = false;
  bool shut_down = false;
  MachineDescription machine{};
  std::vector<Device> devices{};
  AddressSpace addresses{};
  Accounts accounts{};
  Faults faults{};
  Counters counters{};
  std::string complaint{};

  std::mt19937_64 random{};  ///< of the order in batches

  std::uint64_t next_handle = 1;
  std::unordered_map<std::uint64_t, StreamRef> streams{};
  std::unordered_map<std::uint64_t, std::shared_ptr<Event>> events{};
  std::unordered_map<std::uint64_t, std::shared_ptr<Graph>> graphs{};
  std::unordered_map<std::uint64_t, std::shared_ptr<const Graph>> executables{};
  std::unordered_map<std::uint64_t, std::string> kernels{};  ///< their names
  std::unordered_map<std::uint64_t, std::vector<std::uint64_t>> libraries{};
  std::vector<std::shared_ptr<Capture>> captures{};  ///< under way
  std::vector<StreamRef> retired{};                  ///< destroyed; their workers end by themselves
  int workers = 0;                                   ///< threads that have not ended

  /// Reads the environment at the first call. Returns an error where that makes no sense.
  [[nodiscard]] cudaError_t initialise();
  void build(const MachineDescription& description);

  [[nodiscard]] bool is_device(int device) const {
    return device >= 0 && device < static_cast<int>(devices.size());
  }
  /// The device's context is lost with `error`, as CUDA's errors that cannot be undone do it.
  void poison(int device, cudaError_t error, std::string why);
  /// Notes why a call is refused, and returns the error.
  cudaError_t refuse(cudaError_t error, std::string why);

  // Streams.
  [[nodiscard]] StreamRef find_stream(cudaStream_t handle);
  /// Appends to the stream, or to the graph where it is being captured.
  [[nodiscard]] cudaError_t submit(const StreamRef& stream, WorkRef work);
  /// Appends, whatever is captured; the completion is that of the work.
  CompletionRef enqueue(const StreamRef& stream, WorkRef work, std::vector<CompletionRef> after = {});
  void wait_on_host(Lock& lock, CompletionRef completion);
  void synchronise_device(Lock& lock, int device);
  void for_each_stream(int device, const std::function<void(const StreamRef&)>& visit);
  /// Ends all workers, work or not. False where one did not end in time: it is in a host function of the
  /// user's.
  bool stop_all(Lock& lock, std::chrono::milliseconds patience);
  void reap();
  /// Gives back all that the device's context has.
  void reset_device(int device);
};

State& state();

/// Errors after which a context is of no use.
[[nodiscard]] bool poisons(cudaError_t error);

/// Each thread's.
struct ThreadState {
  int device = 0;
  bool has_context = false;
  bool in_host_function = false;
  cudaError_t last_error = cudaSuccess;
  cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
};
ThreadState& this_thread();

// --- handles: numbers that no pointer has, and that are never used again
// ------------------------------------

inline constexpr std::uint64_t kHandleBase = std::uint64_t{0x5fa} << 52;

template <typename Handle>
[[nodiscard]] Handle to_handle(std::uint64_t number) {
  return reinterpret_cast<Handle>(static_cast<std::uintptr_t>(kHandleBase + 16 * number));
}
template <typename Handle>
[[nodiscard]] std::uint64_t to_number(Handle handle) {
  return (static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(handle)) - kHandleBase) / 16;
}

}  // namespace harvest::fake_cuda::internal
