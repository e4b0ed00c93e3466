// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

/// The copy kernel's work: what goes to the GPU and who copies which byte. It is plain C++, so that a CPU
/// runs the very same logic: under test for every alignment and size, and in place of the GPU where there is
/// none.
#if defined(__CUDACC__)
#define HARVEST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HARVEST_HOST_DEVICE inline
#endif

namespace harvest::cuda {

/// The kernel: `extern "C" __global__ void harvest_copy_runs(const __grid_constant__ RunBatch batch)`,
/// launched with blocks of `kThreadsPerBlock` threads, any number of them, no shared memory.
inline constexpr const char* kCopyKernelName = "harvest_copy_runs";

inline constexpr std::uint32_t kThreadsPerWarp = 32;
inline constexpr std::uint32_t kThreadsPerBlock = 512;
inline constexpr std::uint32_t kWarpsPerBlock = kThreadsPerBlock / kThreadsPerWarp;

/// What one thread has under way before it stores the first of it. With 16 blocks that is 1 MiB in flight:
/// several times what the fastest link (GB200: 746 GB/s) holds in its latency (about 1 us).
inline constexpr std::uint32_t kUnitsInFlight = 8;

/// A warp's piece of work: each of its threads moves eight units of 16 bytes. Small, so that the warps share
/// batches of runs of different sizes evenly.
inline constexpr std::uint32_t kTileBytes = kThreadsPerWarp * kUnitsInFlight * 16;

/// Longer runs are cut: a run's bytes are kept in 32 bits, and whole batches' tiles too.
inline constexpr std::uint64_t kMaxKernelRunBytes = std::uint64_t{1} << 30;

/// As many as the 4 KiB of parameters hold that every driver and every GPU takes.
inline constexpr std::uint32_t kRunsPerLaunch = 170;

/// The kernel's one parameter. It is given by value: a launch keeps its own copy, so nothing has to outlive
/// the call, in a captured graph neither.
///
/// Invariant: `count <= kRunsPerLaunch`; runs [0, count) have 1 to `kMaxKernelRunBytes` bytes each;
/// `first_tile[i]` is the number of tiles of the runs before i, and `tiles` that of all.
struct RunBatch {
  std::uint64_t destination[kRunsPerLaunch];  ///< addresses that the GPU can use
  std::uint64_t source[kRunsPerLaunch];
  std::uint32_t bytes[kRunsPerLaunch];
  std::uint32_t first_tile[kRunsPerLaunch];
  std::uint32_t tiles;
  std::uint32_t count;
};
static_assert(sizeof(RunBatch) <= 4096, "kernel parameters of more than 4 KiB are not legal everywhere");

/// Part of one run: at most `kTileBytes` bytes that one warp copies.
struct Tile {
  unsigned char* destination;
  const unsigned char* source;
  std::uint32_t bytes;
};

/// The tiles of a run begin at multiples of `kTileBytes` counted from the 16-byte boundary at or before its
/// destination: so all but the first begin at a boundary, and only the first has a head to copy bytewise.
HARVEST_HOST_DEVICE std::uint32_t head_room(std::uint64_t destination) {
  return static_cast<std::uint32_t>(destination & 15);
}

HARVEST_HOST_DEVICE std::uint32_t tiles_of(std::uint64_t destination, std::uint32_t bytes) {
  return (head_room(destination) + bytes + kTileBytes - 1) / kTileBytes;
}

/// Adds a run. Returns false if the batch is full. Requires: 1 to `kMaxKernelRunBytes` bytes.
HARVEST_HOST_DEVICE bool add_run(RunBatch& batch, std::uint64_t destination, std::uint64_t source,
                                 std::uint32_t bytes) {
  if (batch.count >= kRunsPerLaunch) return false;
  batch.destination[batch.count] = destination;
  batch.source[batch.count] = source;
  batch.bytes[batch.count] = bytes;
  batch.first_tile[batch.count] = batch.tiles;
  batch.tiles += tiles_of(destination, bytes);
  ++batch.count;
  return true;
}

/// The run that `tile` belongs to: the last one that begins at or before it. Requires: `tile < batch.tiles`.
HARVEST_HOST_DEVICE std::uint32_t run_of(const RunBatch& batch, std::uint32_t tile) {
  std::uint32_t low = 0;
  std::uint32_t high = batch.count;
  while (high - low > 1) {
    const std::uint32_t middle = (low + high) / 2;
    if (batch.first_tile[middle] <= tile)
      low = middle;
    else
      high = middle;
  }
  return low;
}

HARVEST_HOST_DEVICE Tile tile_at(const RunBatch& batch, std::uint32_t tile) {
  const std::uint32_t run = run_of(batch, tile);
  const std::uint32_t room = head_room(batch.destination[run]);
  const std::uint32_t index = tile - batch.first_tile[run];
  // Counted from the boundary: the tile is [index * kTileBytes, + kTileBytes) cut to [room, room + bytes).
  const std::uint32_t begin = index == 0 ? room : index * kTileBytes;
  const std::uint32_t run_end = room + batch.bytes[run];
  const std::uint32_t tile_end = (index + 1) * kTileBytes;
  const std::uint32_t end = tile_end < run_end ? tile_end : run_end;
  Tile result;
  result.destination =
      reinterpret_cast<unsigned char*>(static_cast<std::uintptr_t>(batch.destination[run])) + (begin - room);
  result.source =
      reinterpret_cast<const unsigned char*>(static_cast<std::uintptr_t>(batch.source[run])) + (begin - room);
  result.bytes = end - begin;
  return result;
}

/// What one access moves.
struct alignas(16) Unit16 {
  std::uint64_t low;
  std::uint64_t high;
};

/// How the kernel touches memory. The test's own also checks each access's alignment and bounds.
struct DirectMemory {
  template <typename Unit>
  static HARVEST_HOST_DEVICE Unit load(const unsigned char* address) {
#if defined(__CUDA_ARCH__)
    return *reinterpret_cast<const Unit*>(address);
#else
    Unit unit;
    __builtin_memcpy(&unit, address, sizeof unit);
    return unit;
#endif
  }
  template <typename Unit>
  static HARVEST_HOST_DEVICE void store(unsigned char* address, const Unit& unit) {
#if defined(__CUDA_ARCH__)
    *reinterpret_cast<Unit*>(address) = unit;
#else
    __builtin_memcpy(address, &unit, sizeof unit);
#endif
  }
};

/// One of the `lanes` that copy a tile together.
struct Lane {
  std::uint32_t index;
  std::uint32_t lanes;
};

/// This lane's share of `bytes / sizeof(Unit)` units. Loads go first, all of them, so that they are under way
/// together; a load that waited for the store before it would leave a link mostly idle.
template <typename Unit, typename Memory>
HARVEST_HOST_DEVICE void copy_units(const Tile& tile, std::uint32_t begin, std::uint32_t units, Lane lane) {
  const unsigned char* source = tile.source + begin;
  unsigned char* destination = tile.destination + begin;
  constexpr std::uint32_t kSize = sizeof(Unit);
  for (std::uint32_t first = lane.index; first < units; first += lane.lanes * kUnitsInFlight) {
    Unit held[kUnitsInFlight];
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (std::uint32_t k = 0; k < kUnitsInFlight; ++k) {
      const std::uint32_t unit = first + k * lane.lanes;
      if (unit < units) held[k] = Memory::template load<Unit>(source + unit * kSize);
    }
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (std::uint32_t k = 0; k < kUnitsInFlight; ++k) {
      const std::uint32_t unit = first + k * lane.lanes;
      if (unit < units) Memory::template store<Unit>(destination + unit * kSize, held[k]);
    }
  }
}

/// Head and tail bytewise, the body in units. Requires: both addresses have the same place within a unit.
template <typename Unit, typename Memory>
HARVEST_HOST_DEVICE void copy_aligned(const Tile& tile, Lane lane) {
  constexpr std::uint32_t kSize = sizeof(Unit);
  const auto place = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(tile.destination) % kSize);
  const std::uint32_t to_boundary = (kSize - place) % kSize;
  const std::uint32_t head = to_boundary < tile.bytes ? to_boundary : tile.bytes;
  const std::uint32_t units = (tile.bytes - head) / kSize;
  const std::uint32_t tail_begin = head + units * kSize;
  if (head != 0) copy_units<std::uint8_t, Memory>(tile, 0, head, lane);
  copy_units<Unit, Memory>(tile, head, units, lane);
  if (tail_begin != tile.bytes)
    copy_units<std::uint8_t, Memory>(tile, tail_begin, tile.bytes - tail_begin, lane);
}

/// By the widest access that fits both ends, which their distance alone decides.
template <typename Memory>
HARVEST_HOST_DEVICE void copy_tile(const Tile& tile, Lane lane) {
  const std::uintptr_t distance =
      reinterpret_cast<std::uintptr_t>(tile.destination) - reinterpret_cast<std::uintptr_t>(tile.source);
  if (distance % 16 == 0)
    copy_aligned<Unit16, Memory>(tile, lane);
  else if (distance % 8 == 0)
    copy_aligned<std::uint64_t, Memory>(tile, lane);
  else if (distance % 4 == 0)
    copy_aligned<std::uint32_t, Memory>(tile, lane);
  else if (distance % 2 == 0)
    copy_aligned<std::uint16_t, Memory>(tile, lane);
  else
    copy_aligned<std::uint8_t, Memory>(tile, lane);
}

/// What lane `lane` of warp `warp` of `warps` does of a batch. All lanes of all warps together copy each byte
/// once; `copy_runs(batch, 0, 1, {0, 1})` is the whole of it on one CPU thread.
template <typename Memory = DirectMemory>
HARVEST_HOST_DEVICE void copy_runs(const RunBatch& batch, std::uint32_t warp, std::uint32_t warps,
                                   Lane lane) {
  for (std::uint32_t tile = warp; tile < batch.tiles; tile += warps)
    copy_tile<Memory>(tile_at(batch, tile), lane);
}

}  // namespace harvest::cuda
