// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

/// A CUDA runtime and an NVML for machines without a GPU. The shared library has the soname and the symbols
/// of the real runtime, so the unchanged CUDA backend runs on it; it holds real bytes, runs streams on
/// threads, and enforces CUDA's rules, more strictly than GPUs do: what CUDA leaves to chance fails here, or
/// comes out either way.
///
///  1  memory that is unmapped or freed under running or queued work is an illegal access, which poisons the
///  context 2  physical memory returns with its last mapping, reference and exported descriptor, whoever has
///  that 3  the virtual memory's granularity, offset 0, whole mappings, access anew after each map 7  the
///  number of peers, one-directional access, no link of a device to itself 8  paths that corrupt silently,
///  where the test wants it; copies without access are staged through the host
/// 10  batches: their streams, their source access order, no order inside
/// 11  no batch in a capture; and CUDA's other rules of captures
/// 12  a batch's arrays are read when it runs
/// 13  event and stream of a record are of one device
/// 14  host functions call no CUDA function, and do not run after an error
/// 20  MIG instances: no peers, nothing for other processes
///
/// Besides: copies stay within one allocation or registration and go only where the device may, handles are
/// valid, sticky errors stay, and who leaks is told so.
///
/// A program gets it with `harvest_use_fake_cuda(target)` of this folder's CMakeLists.txt. The machine comes
/// from `reset`, or at the first CUDA call from the environment:
///
///   HARVEST_FAKE_CUDA_MACHINE=file   a machine as JSON, see `parse_machine`
///   HARVEST_FAKE_CUDA_DEVICES=n      n equal GPUs, each with access to all others (none of both: 2)
///   HARVEST_FAKE_CUDA_BYTES=n        their memory (default 1 GiB)
///   HARVEST_FAKE_CUDA_SEED=n         of delays, of the order in a batch, of corruption (default 1)
///   HARVEST_FAKE_CUDA_DELAY_US=n     the longest delay before a piece of work (default 100; 0: none)
///   HARVEST_FAKE_CUDA_SHARED=file    counts the devices' memory in this file, with all processes that do
///   HARVEST_FAKE_CUDA_FAULTS=plan    see `plan_faults`
///   HARVEST_FAKE_CUDA_LEAKS=fail     a program that leaks ends with status 23 (else it is only told)
///   HARVEST_FAKE_CUDA_VERBOSE=1      says on stderr why a device was lost or a call refused
///   HARVEST_FAKE_CUDA_TSAN=self      lets the thread sanitizer look at the fake's own locks. Without it the
///                                    sanitizer sees CUDA's edges alone (stream order, events, waits), so
///                                    that a missing one is a reported race even where the fake's timing hid
///                                    it.
///
/// Device addresses may not be dereferenced by the host: it crashes, as with a GPU. `read` and `write` may.
namespace harvest::fake_cuda {

inline constexpr int kHost = -1;
inline constexpr int kSwitch = -2;

/// `count` NVLinks from a device to another one or to a switch.
struct NvLinks {
  int to = kSwitch;
  int count = 0;
};

struct DeviceDescription {
  std::string name = "Fake GPU";
  std::uint64_t total_bytes = std::uint64_t{1} << 30;
  int numa_node = 0;
  std::string pci_bus_id{};  ///< "0000:1b:00.0"; empty: one is made up
  int compute_major = 9;
  int compute_minor = 0;
  int copy_engines = 3;
  bool virtual_memory = true;
  bool mig = false;  ///< a MIG instance: no peer access, no handles for other processes (rule 20)
  int nvlink_version = 4;
  std::vector<NvLinks> nvlinks{};
  int pcie_generation = 5;
  int pcie_width = 16;
};

struct MachineDescription {
  std::vector<DeviceDescription> devices{};
  /// `peer_access[a][b]`: device a can be given access to device b's memory. Empty: every pair.
  std::vector<std::vector<bool>> peer_access{};
  bool nvswitch = false;  ///< with it a device can have any number of peers
  int max_peers = 8;
  std::uint64_t granularity_bytes = std::uint64_t{2} << 20;
  std::uint64_t host_register_limit_bytes = std::uint64_t{512}
                                            << 30;    ///< one registration of this size fails
  int driver_version = 0;                             ///< 0: the toolkit's
  std::string driver_version_text = "580.00 (fake)";  ///< what NVML answers
  bool has_nvml = true;  ///< false: nvmlInit_v2 fails, as where the driver does not answer
  /// cudaFree "may perform implicit synchronization": true makes it. Without, freeing under work is an error.
  bool free_waits = false;
  /// Reads a batch's arrays when the batch runs, and treats them as lost where they have changed (rule 12).
  bool late_descriptors = true;
  std::uint64_t seed = 1;
  std::uint32_t max_delay_us = 100;
};

/// Equal devices with access to each other; linked by 6 NVLinks each way where there are two, by a switch
/// where there are more.
[[nodiscard]] MachineDescription uniform_machine(int devices,
                                                 std::uint64_t bytes_each = std::uint64_t{1} << 30);

/// A machine from JSON text: the members of `MachineDescription` by name, `devices` as a list whose entries
/// have the members of `DeviceDescription` and may have a `count`; NVLinks as {"to": 1, "count": 6} or
/// {"to": "switch", "count": 18}; `peer_access` as rows of 0 and 1. Throws std::invalid_argument, which says
/// why.
[[nodiscard]] MachineDescription parse_machine(std::string_view json);

/// Ends all work and forgets everything: memory, streams, faults, counts. Handles from before are invalid,
/// other threads must not be in a call. Without a description the machine comes from the environment again.
void reset(const MachineDescription& machine);
void reset();

// --- faults ------------------------------------------------------------------------------------------------

/// `times` calls of `function`, beginning with the `nth` from now on (1: the next), return `error` and do
/// nothing else. An error that poisons a context poisons the current device's.
void fail_call(std::string function, std::uint64_t nth, int error, std::uint64_t times = 1);

/// The `nth` allocation from now on is out of memory, whichever of CUDA's functions makes it.
void fail_allocation(std::uint64_t nth, std::uint64_t times = 1);

/// The error of a lost device where none is named: cudaErrorLaunchFailure.
inline constexpr int kLostDeviceError = 719;

/// Poisons the device's context: now, at its `nth` call, or while its `nth` piece of work from now on runs.
void lose_device(int device, int error = kLostDeviceError);
void lose_device_at_call(int device, std::uint64_t nth, int error = kLostDeviceError);
void lose_device_at_work(int device, std::uint64_t nth, int error = kLostDeviceError);

/// Copies from one device (or `kHost`) to another arrive with a wrong byte, without any error, where they go
/// directly. What is staged through the host for want of peer access is right (rules 8 and 9).
void corrupt_path(int from, int to, bool corrupt = true);

/// Every memory query takes this long; every copy this much longer.
void slow_memory_queries(std::uint32_t us);
void slow_copies(std::uint32_t us);

/// Faults as text, for whole programs: items separated by `;`.
///   oom@N  fail:FUNCTION@N=ERROR  lose:DEVICE  lose:DEVICE@call:N  lose:DEVICE@work:N
///   corrupt:FROM-TO (`host` is one)  slow_query:US  slow_copy:US
/// Throws std::invalid_argument.
void plan_faults(std::string_view plan);

// --- what happened -----------------------------------------------------------------------------------------

/// What a program has not given back. Nothing of a device whose context is poisoned is counted: that cannot
/// be given back.
struct Leaks {
  std::uint64_t streams = 0;
  std::uint64_t events = 0;
  std::uint64_t graphs = 0;         ///< graphs and their executable forms
  std::uint64_t allocations = 0;    ///< of cudaMalloc and of pinned memory
  std::uint64_t registrations = 0;  ///< of host memory
  std::uint64_t handles = 0;        ///< of physical memory
  std::uint64_t mappings = 0;
  std::uint64_t reservations = 0;
  std::uint64_t libraries = 0;  ///< of kernels; not told of at exit, since who ends may keep them

  [[nodiscard]] std::uint64_t total() const {
    return streams + events + graphs + allocations + registrations + handles + mappings + reservations +
           libraries;
  }
};
[[nodiscard]] Leaks leaks();
[[nodiscard]] std::string to_string(const Leaks& leaks);

struct Counters {
  std::uint64_t copies = 0;         ///< single copies that ran, those of batches included
  std::uint64_t copied_bytes = 0;   ///< by all ways
  std::uint64_t staged_copies = 0;  ///< between devices, through the host
  std::uint64_t batches = 0;
  std::uint64_t kernels = 0;
  std::uint64_t kernel_runs = 0;
  std::uint64_t pageable_copies = 0;  ///< with an end in memory that is not pinned
};
[[nodiscard]] Counters counters();

/// How often a function was called since the last reset, by its name in the API.
[[nodiscard]] std::uint64_t calls(std::string_view function);

/// What is in use on a device, by all processes that share it.
[[nodiscard]] std::uint64_t used_bytes(int device);

/// Why the last context was poisoned or the last call refused; empty if none was.
[[nodiscard]] std::string last_complaint();

/// Device memory as it is now, past all streams. Returns false where the range is not one allocation's.
[[nodiscard]] bool read(const void* device_address, void* to, std::size_t bytes);
[[nodiscard]] bool write(void* device_address, const void* from, std::size_t bytes);

/// Mimics somebody else's process: takes memory of a device, or gives it back (negative).
[[nodiscard]] bool take_memory(int device, std::int64_t bytes);

/// The path of the library that these functions are in.
[[nodiscard]] std::string library_path();

}  // namespace harvest::fake_cuda
