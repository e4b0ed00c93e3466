// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/gpus.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "backend/cuda/device_guard.hpp"
#include "base/assert.hpp"
#include "base/log.hpp"

namespace harvest::cuda {
namespace {

/// What a device answers to a call that does nothing. A poisoned context answers its error to every call.
cudaError_t ask(int ordinal) {
  const DeviceGuard guard(ordinal);
  std::size_t free_bytes = 0, total_bytes = 0;
  const cudaError_t error =
      guard.error() == cudaSuccess ? cudaMemGetInfo(&free_bytes, &total_bytes) : guard.error();
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error;
}

}  // namespace

Gpus::Gpus(std::vector<int> ordinals) : ordinals_(std::move(ordinals)) {
  HARVEST_ASSERT(ordinals_.size() <= kMax, "the maker of the backend checks it");
}

Status Gpus::check(DeviceId device) const {
  if (device == kHost) return {};
  if (!has(device))
    return fail(ErrorCode::not_found, fmt::format("no device {}; there are {} GPUs and the host, {}", device,
                                                  ordinals_.size(), kHost));
  if (is_lost(device))
    return fail(ErrorCode::unavailable,
                fmt::format("device {} (CUDA's GPU {}) is lost to this process", device, ordinal(device)));
  return {};
}

void Gpus::lose(DeviceId device, std::string_view why) {
  if (!lost_[static_cast<std::size_t>(device)].exchange(true, std::memory_order_acq_rel))
    log().error("device {} (CUDA's GPU {}) is lost to this process: {}", device, ordinal(device), why);
}

bool Gpus::find_lost(std::span<const DeviceId> devices) {
  bool found = false;
  for (const DeviceId device : devices) {
    if (!has(device)) continue;
    if (!is_lost(device))
      if (const cudaError_t error = ask(ordinal(device)); error != cudaSuccess)
        lose(device, to_error(error, "it does not answer").message);
    found = found || is_lost(device);
  }
  return found;
}

tl::unexpected<Error> Gpus::judge(Error error, bool sticky, std::span<const DeviceId> devices) {
  if (error.code == ErrorCode::unavailable && !find_lost(devices) && sticky && !devices.empty() &&
      has(devices.front()))
    lose(devices.front(), error.message);
  return tl::unexpected(std::move(error));
}

}  // namespace harvest::cuda
