// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "fake_cuda/call.hpp"
#include "fake_cuda/capture.hpp"
#include "fake_cuda/copies.hpp"

/// cudaMemcpyBatchAsync (rules 10, 11 and 12).
#if CUDART_VERSION >= 12080
namespace harvest::fake_cuda::internal {
namespace {

struct Batch {
  const void* const* to;
  const void* const* from;
  const std::size_t* bytes;
  std::size_t count;
  const cudaMemcpyAttributes* attributes;
  const std::size_t* attribute_begins;
  std::size_t attribute_count;
};

std::uint64_t number(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}

class BatchWork : public Work {
 public:
  BatchWork(std::vector<CopyRun> runs, const Batch& batch) : runs_(std::move(runs)), batch_(batch) {}

  cudaError_t run(Lock& lock) const override {
    if (state().machine.late_descriptors && !has_its_arrays()) {
      return state().refuse(cudaErrorIllegalAddress, "the arrays of a batch changed before it ran (rule 12)");
    }
    std::vector<const CopyRun*> order;
    for (const auto& run : runs_) order.push_back(&run);
    std::shuffle(order.begin(), order.end(), state().random);
    for (const auto* run : order) {
      if (const auto error = run_copy(lock, *run); error != cudaSuccess) return error;
    }
    ++state().counters.batches;
    return cudaSuccess;
  }

 private:
  /// The user's arrays say what they said when the batch was given. They are the user's bytes: a sanitizer
  /// that knows better says so here.
  [[nodiscard]] bool has_its_arrays() const {
    const Outside outside;
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      if (number(batch_.to[i]) != runs_[i].to.address || number(batch_.from[i]) != runs_[i].from.address ||
          batch_.bytes[i] != runs_[i].bytes) {
        return false;
      }
    }
    return true;
  }

  std::vector<CopyRun> runs_;
  Batch batch_;
};

/// The attributes' own rules.
cudaError_t check_attributes(const Batch& batch) {
  if (batch.attributes == nullptr || batch.attribute_begins == nullptr || batch.attribute_count == 0 ||
      batch.attribute_count > batch.count || batch.attribute_begins[0] != 0) {
    return state().refuse(cudaErrorInvalidValue, "a batch needs attributes, the first for its copy 0");
  }
  for (std::size_t i = 0; i < batch.attribute_count; ++i) {
    if (batch.attribute_begins[i] >= batch.count ||
        (i > 0 && batch.attribute_begins[i] <= batch.attribute_begins[i - 1])) {
      return state().refuse(cudaErrorInvalidValue,
                            "a batch's attributes must rise, and end before its count");
    }
    const auto order = batch.attributes[i].srcAccessOrder;
    if (order != cudaMemcpySrcAccessOrderStream && order != cudaMemcpySrcAccessOrderDuringApiCall &&
        order != cudaMemcpySrcAccessOrderAny) {
      return state().refuse(cudaErrorInvalidValue, "a batch must say how its sources are accessed (rule 10)");
    }
  }
  return cudaSuccess;
}

cudaError_t plan_batch(Lock& lock, const Batch& batch, int device, std::vector<CopyRun>& runs,
                       std::size_t& failed) {
  std::size_t attribute = 0;
  for (std::size_t i = 0; i < batch.count; ++i) {
    failed = i;
    if (attribute + 1 < batch.attribute_count && batch.attribute_begins[attribute + 1] == i) ++attribute;
    if (batch.bytes[i] == 0) return state().refuse(cudaErrorInvalidValue, "a copy of 0 bytes in a batch");
    auto& run = runs.emplace_back();
    auto error =
        plan_copy(number(batch.to[i]), number(batch.from[i]), batch.bytes[i], device, CopyRules::stream, run);
    // Any other order lets the source be read before the stream's turn comes: then it is, always.
    if (error == cudaSuccess &&
        batch.attributes[attribute].srcAccessOrder != cudaMemcpySrcAccessOrderStream) {
      error = read_early(lock, run);
    }
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t give_batch(Lock& lock, const Batch& batch, cudaStream_t handle, std::size_t& failed) {
  failed = batch.count;  // CUDA's way to say that it is none in particular
  if (handle == nullptr || handle == cudaStreamLegacy) {
    return state().refuse(cudaErrorInvalidValue, "a batch on the legacy default stream (rule 10)");
  }
  const auto stream = state().find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (const auto error = health(stream->device); error != cudaSuccess) return error;
  if (stream->capturing.capture != nullptr) {
    return state().refuse(cudaErrorStreamCaptureUnsupported, "a batch cannot be captured (rule 11)");
  }
  if (batch.to == nullptr || batch.from == nullptr || batch.bytes == nullptr || batch.count == 0) {
    return cudaErrorInvalidValue;
  }
  if (const auto error = check_attributes(batch); error != cudaSuccess) return error;
  std::vector<CopyRun> runs;
  if (const auto error = plan_batch(lock, batch, stream->device, runs, failed); error != cudaSuccess)
    return error;
  const bool to_pageable =
      std::any_of(runs.begin(), runs.end(), [](const CopyRun& run) { return run.to.range_id == 0; });
  if (const auto error = state().submit(stream, std::make_shared<BatchWork>(std::move(runs), batch));
      error != cudaSuccess) {
    return error;
  }
  if (!to_pageable) return cudaSuccess;
  state().wait_on_host(lock, stream->tail);
  return health(stream->device);
}

}  // namespace
}  // namespace harvest::fake_cuda::internal

using namespace harvest::fake_cuda::internal;  // NOLINT: the function below is CUDA's, in no namespace

#if CUDART_VERSION >= 13000
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const std::size_t* bytes,
                                 std::size_t count, cudaMemcpyAttributes* attributes,
                                 std::size_t* attribute_begins, std::size_t attribute_count,
                                 cudaStream_t stream) {
  return runtime_call("cudaMemcpyBatchAsync", kContext, [&](Lock& lock) {
    std::size_t failed = 0;
    return give_batch(lock, {to, from, bytes, count, attributes, attribute_begins, attribute_count}, stream,
                      failed);
  });
}
#else
cudaError_t cudaMemcpyBatchAsync(void** to, void** from, std::size_t* bytes, std::size_t count,
                                 cudaMemcpyAttributes* attributes, std::size_t* attribute_begins,
                                 std::size_t attribute_count, std::size_t* failed, cudaStream_t stream) {
  return runtime_call("cudaMemcpyBatchAsync", kContext, [&](Lock& lock) {
    std::size_t ignored = 0;
    return give_batch(lock, {to, from, bytes, count, attributes, attribute_begins, attribute_count}, stream,
                      failed == nullptr ? ignored : *failed);
  });
}
#endif
#endif
