// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>
#include <harvest/peer_cache.hpp>

#include "cli/files.hpp"
#include "cuda/fake_machine.hpp"
#include "wrong_input/backend_rows.hpp"
#include "wrong_input/table.hpp"

/// What CUDA's part answers to wrong input, on the fake.
namespace harvest::test {
namespace {

using harvest::testing::Outcome;
using harvest::testing::Table;

constexpr std::uint64_t kBytes = 4096;

Outcome make_on(int gpus, int fails = cudaSuccess) {
  const FakeMachine machine(machine_of(gpus, 64 * kMiB));
  if (fails != cudaSuccess) fake::fail_call("cudaGetDeviceCount", 1, fails);
  return make_cuda_backend(plain_options());
}

/// CUDA does not outlive a fork, so what stops the process runs in a new one.
class CudaWrongInput : public ::testing::Test {
 protected:
  CudaWrongInput() { ::testing::FLAGS_gtest_death_test_style = "threadsafe"; }
};

template <typename Change>
Outcome make_with(Change change) {
  const FakeMachine machine(machine_of(2));
  CudaOptions options = plain_options();
  change(options);
  return make_cuda_backend(options);
}

TEST_F(CudaWrongInput, MakeCudaBackend) {
  Table table("`make_cuda_backend`");
  const harvest::testing::TemporaryFolder folder;
  const std::string none = folder.file("calibration.json", "hello");
  table.waives("a build without CUDA");
  table.shows("no driver", make_on(2, cudaErrorInsufficientDriver));
  table.shows("no GPU", make_on(2, cudaErrorNoDevice));
  table.shows("`gpus` {-1}", make_with([](auto& options) { options.gpus = {-1}; }));
  table.shows("`gpus` {0, 2}", make_with([](auto& options) { options.gpus = {0, 2}; }));
  table.shows("`gpus` {1, 1}", make_with([](auto& options) { options.gpus = {1, 1}; }));
  table.shows("`gpus` empty, on a machine of 65", make_on(65));
  table.shows("`calibration_file` that is not there",
              make_with([](auto& options) { options.calibration_file = "/no/such/file"; }));
  table.shows("`calibration_file` that is a folder",
              make_with([](auto& options) { options.calibration_file = "/"; }));
  table.shows("`calibration_file` that is none",
              make_with([&](auto& options) { options.calibration_file = none; }));
  std::filesystem::create_directory(folder.path() / "harvest");
  std::filesystem::rename(none, folder.path() / "harvest" / "calibration.json");
  table.shows("the user's own calibration is none",
              make_with([&](auto&) { ::setenv("XDG_CACHE_HOME", folder.path().c_str(), 1); }));
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

TEST_F(CudaWrongInput, Backend) {
  const FakeMachine machine(machine_of(2));
  harvest::testing::show_backend_rows(*make_backend());
}

void show_memory(Table& table, Backend& backend) {
  std::vector<std::byte> own(kMiB);
  const StreamId stream = *backend.create_stream(0);
  ASSERT_EQ(cudaHostRegister(own.data(), own.size(), cudaHostRegisterDefault), cudaSuccess);
  table.shows("`register_host` of memory that somebody else has pinned",
              backend.register_host(own.data(), own.size()));
  ASSERT_EQ(cudaHostUnregister(own.data()), cudaSuccess);
  table.shows("`fill` of host memory that is not pinned",
              backend.fill(stream, kHost, own.data(), own.size(), 1));
}

void show_wrapping(Table& table, Backend& backend) {
  cudaStream_t native = nullptr;
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), cudaSuccess);
  table.shows("`wrap_stream` on device 9", backend.wrap_stream(9, native));
  table.shows("`wrap_stream` on the host", backend.wrap_stream(kHost, native));
  table.shows("`wrap_stream` of `cudaStreamPerThread`", backend.wrap_stream(0, cudaStreamPerThread));
  table.shows("`wrap_stream` of a stream of another GPU", backend.wrap_stream(0, native));
  ASSERT_EQ(cudaStreamDestroy(native), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
}

PeerCacheConfig cache_config() {
  PeerCacheConfig config;
  config.host_budget_bytes = 64 * kMiB;
  config.host_chunk_bytes = 4 * kMiB;
  config.pressure.reserve_bytes = 64 * kMiB;
  config.pressure.hysteresis_bytes = 2 * kMiB;
  config.max_objects = 64;
  return config;
}

/// Calls on a stream while the caller captures it.
void show_capture(Table& table, Backend& backend) {
  const auto cache = *PeerCache::create(backend, cache_config());
  const std::vector<std::byte> bytes(kBytes);
  std::byte* destination = *backend.map_segment(0, 2 * kMiB, {});
  ASSERT_TRUE(cache->put(1, bytes.data(), kBytes));
  FetchItem item;
  item.key = 1;
  item.destination = destination;
  item.capacity_bytes = kBytes;

  cudaStream_t native = nullptr;
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), cudaSuccess);
  const StreamId stream = *backend.wrap_stream(0, native);
  ASSERT_EQ(cudaStreamBeginCapture(native, cudaStreamCaptureModeGlobal), cudaSuccess);
  table.shows("`record_event` on a stream that is captured", backend.record_event(stream));
  table.shows("`fetch` on a stream that is captured", cache->fetch({&item, 1}, stream));
  table.shows("`fetch_and_wait` on a stream that is captured", cache->fetch_and_wait({&item, 1}, stream));
  table.shows("`put` on a stream that is captured", cache->put(2, bytes.data(), kBytes, {.stream = stream}));
  table.shows("`forget_stream` of a stream that is captured", cache->forget_stream(stream));
  ASSERT_EQ(cudaStreamEndCapture(native, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  ASSERT_TRUE(backend.destroy_stream(stream));
  ASSERT_EQ(cudaStreamDestroy(native), cudaSuccess);
  ASSERT_TRUE(backend.unmap_segment(destination));
}

/// A lease with a captured stream, released, while its graph may be launched at any time.
void end_under_a_capture() {
  fake::reset(machine_of(2));
  const auto backend = make_backend();
  auto cache = *PeerCache::create(*backend, cache_config());
  const std::vector<std::byte> bytes(kBytes);
  static_cast<void>(cache->put(1, bytes.data(), kBytes));
  cudaStream_t native = nullptr;
  cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking);
  const StreamId stream = *backend->wrap_stream(0, native);
  cudaStreamBeginCapture(native, cudaStreamCaptureModeRelaxed);
  cache->acquire(1, stream).release();
  cache.reset();
}

TEST_F(CudaWrongInput, TheCudaBackend) {
  Table table("The CUDA backend");
  {
    const FakeMachine machine(machine_of(2));
    const auto backend = make_backend();
    show_memory(table, *backend);
    show_wrapping(table, *backend);
    show_capture(table, *backend);
  }
  table.stops("the cache ends while a stream that read from it is captured", end_under_a_capture);
}

}  // namespace
}  // namespace harvest::test
