// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/host_memory.hpp"

#include <cuda_runtime_api.h>
#include <gmock/gmock.h>

#include <fstream>

#include "backend/cuda/discovery.hpp"
#include "cuda/fake_machine.hpp"

namespace harvest::test {
namespace {

using cuda::HostFiles;
using cuda::HostMemory;
using cuda::KnownRange;
using cuda::MemoryMap;

std::string write_file(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "harvest_" + std::to_string(::getpid()) + "_" + name;
  std::ofstream(path) << text;
  return path;
}

HostFiles files(const std::string& available_kib, const std::string& limit = "max",
                const std::string& used = "0") {
  return {
      write_file("meminfo", "MemTotal:  8000000 kB\nMemFree: 1 kB\nMemAvailable: " + available_kib + " kB\n"),
      write_file("limit", limit), write_file("used", used)};
}

class HostMemoryTest : public testing::Test {
 protected:
  HostMemory memory(HostFiles from = {}, std::uint64_t piece_bytes = HostMemory::kPieceBytesMax) {
    return {map_, 0b11, 0, std::move(from), piece_bytes};
  }
  FakeMachine machine_{machine_of(2)};
  MemoryMap map_;
};

TEST_F(HostMemoryTest, IsCountedInTheLimitOfTheGroup) {
  const auto free = cuda::count_host_memory(files("1000"));
  ASSERT_TRUE(free);
  EXPECT_EQ(free->total_bytes, 8'000'000ULL << 10);
  EXPECT_EQ(free->available_bytes, 1000ULL << 10);
  const auto limited = cuda::count_host_memory(files("1000000", "500000000", "499000000"));
  ASSERT_TRUE(limited);
  EXPECT_EQ(limited->total_bytes, 500'000'000U);
  EXPECT_EQ(limited->available_bytes, 1'000'000U);
  const auto over = cuda::count_host_memory(files("1000000", "500000000", "600000000"));
  ASSERT_TRUE(over);
  EXPECT_EQ(over->available_bytes, 0U);
  EXPECT_EQ(code_of(cuda::count_host_memory({"/no/such/file", "", ""})), ErrorCode::unavailable);
  EXPECT_EQ(code_of(cuda::count_host_memory({write_file("odd", "Mem: none"), "", ""})),
            ErrorCode::unavailable);
}

TEST_F(HostMemoryTest, IsPinnedInPieces) {
  HostMemory host = memory({}, 4 * kMiB);
  std::byte* segment = host.map(10 * kMiB).value();
  EXPECT_EQ(fake::leaks().registrations, 3U);
  for (const auto& [at, end] : {std::pair{0, 4}, {4, 8}, {8, 10}}) {
    const auto range = map_.find(segment + static_cast<std::uint64_t>(at) * kMiB + 1);
    ASSERT_TRUE(range);
    EXPECT_EQ(range->begin, segment + static_cast<std::uint64_t>(at) * kMiB);
    EXPECT_EQ(range->end(), segment + static_cast<std::uint64_t>(end) * kMiB);
    EXPECT_TRUE(range->is_accessible_by(0) && range->is_accessible_by(1) && !range->is_accessible_by(2));
  }
  EXPECT_TRUE(host.unmap(segment));
  EXPECT_EQ(fake::leaks().registrations, 0U);
  EXPECT_FALSE(map_.find(segment));
  EXPECT_EQ(code_of(host.unmap(segment)), ErrorCode::invalid_argument);
}

/// Pieces end at pages wherever the caller's memory begins, and cover all of it.
TEST_F(HostMemoryTest, OfTheCallerIsPinnedInPieces) {
  HostMemory host = memory({}, kMiB);
  std::vector<std::byte> own(3 * kMiB);
  std::byte* begin = own.data() + 777;
  ASSERT_TRUE(host.register_range(begin, 2 * kMiB));
  std::byte* at = begin;
  int pieces = 0;
  for (; at < begin + 2 * kMiB; ++pieces) {
    const auto range = map_.find(at);
    ASSERT_TRUE(range);
    EXPECT_EQ(range->begin, at);
    EXPECT_TRUE(pieces == 0 || reinterpret_cast<std::uintptr_t>(at) % 4096 == 0);
    at += range->bytes;
  }
  EXPECT_EQ(at, begin + 2 * kMiB);
  EXPECT_EQ(pieces, 3);
  EXPECT_EQ(code_of(host.register_range(own.data(), own.size())), ErrorCode::invalid_argument) << "overlap";
  EXPECT_TRUE(host.unregister_range(begin));
  EXPECT_EQ(code_of(host.unregister_range(begin)), ErrorCode::invalid_argument);
  EXPECT_EQ(fake::leaks().registrations, 0U);
}

TEST_F(HostMemoryTest, APieceThatFailsUndoesThoseBeforeIt) {
  HostMemory host = memory({}, kMiB);
  const std::uint64_t before = host.query().free_bytes;
  for (std::uint64_t nth = 1; nth <= 4; ++nth) {
    fake::fail_call("cudaHostRegister", nth, cudaErrorMemoryAllocation);
    EXPECT_EQ(code_of(host.map(4 * kMiB)), ErrorCode::out_of_memory);
    fake::fail_call("cudaHostRegister", nth, cudaErrorMemoryAllocation);
    std::vector<std::byte> own(5 * kMiB);
    auto* page =
        reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(own.data()) + 4095) / 4096 * 4096);
    EXPECT_EQ(code_of(host.register_range(page, 4 * kMiB)), ErrorCode::out_of_memory);
    EXPECT_EQ(fake::leaks().registrations, 0U);
    EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
    EXPECT_FALSE(map_.overlaps(page, 4 * kMiB));
  }
  EXPECT_EQ(host.query().free_bytes, before);
}

TEST_F(HostMemoryTest, IsRefusedWhereTheSystemHasNone) {
  const HostFiles from = files("8192");
  HostMemory host = memory(from);
  EXPECT_EQ(host.query().free_bytes, 8 * kMiB);
  std::byte* first = host.map(4 * kMiB).value();
  EXPECT_EQ(host.query().free_bytes, 4 * kMiB);
  EXPECT_EQ(code_of(host.map(6 * kMiB)), ErrorCode::out_of_memory) << "more than was there at the start";
  static_cast<void>(files("1024"));  // others took it since
  EXPECT_EQ(code_of(host.map(2 * kMiB)), ErrorCode::out_of_memory);
  EXPECT_EQ(host.query().free_bytes, 4 * kMiB);
  EXPECT_TRUE(host.unmap(first));
  EXPECT_EQ(host.query().free_bytes, 8 * kMiB);
  EXPECT_EQ(code_of(memory(files("99999999999999")).map(std::uint64_t{1} << 55)), ErrorCode::out_of_memory);
}

/// Large enough for several threads to touch it.
TEST_F(HostMemoryTest, IsThereToBeWritten) {
  HostMemory host = memory();
  constexpr std::uint64_t kBytes = 200 * kMiB;
  std::byte* segment = host.map(kBytes).value();
  for (std::uint64_t at = 0; at < kBytes; at += 4096) ASSERT_EQ(segment[at], std::byte{0});
  segment[kBytes - 1] = std::byte{1};
  EXPECT_TRUE(host.unmap(segment));
}

/// What is left at the end is given back.
TEST_F(HostMemoryTest, EndsClean) {
  std::vector<std::byte> own(kMiB);
  {
    HostMemory host = memory();
    ASSERT_TRUE(host.map(2 * kMiB));
    ASSERT_TRUE(host.register_range(own.data(), own.size()));
    EXPECT_EQ(fake::leaks().registrations, 2U);
  }
  EXPECT_EQ(fake::leaks().registrations, 0U);
}

TEST(NumaNode, IsWhatLinuxSays) {
  const std::string root = testing::TempDir() + "harvest_sysfs_" + std::to_string(::getpid());
  const std::string folder = root + "/bus/pci/devices/0000:1b:00.0";
  ASSERT_EQ(std::system(("mkdir -p '" + folder + "'").c_str()), 0);
  std::ofstream(folder + "/numa_node") << "1\n";
  EXPECT_EQ(cuda::numa_node_of("0000:1b:00.0", root), 1);
  EXPECT_EQ(cuda::numa_node_of("0000:1c:00.0", root), -1);
}

}  // namespace
}  // namespace harvest::test
