// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/descriptor_pool.hpp"

#include "backend/cuda/relaxed_capture.hpp"

namespace harvest::cuda {
namespace {

bool is_over(cudaEvent_t event) {
  const cudaError_t state = cudaEventQuery(event);
  if (state != cudaSuccess)
    static_cast<void>(cudaGetLastError());  // "not ready" is remembered as an error too
  return state == cudaSuccess;
}

}  // namespace

void BatchDescriptors::write(std::span<const Copy> runs) {
  count = runs.size();
  for (std::size_t i = 0; i < count; ++i) {
    destinations[i] = runs[i].destination;
    sources[i] = runs[i].source;
    bytes[i] = runs[i].bytes;
  }
}

DescriptorPool::DescriptorPool() {
  const MutexLock lock(mutex_);
  all_.reserve(kMostDescriptors);
  free_.reserve(kMostDescriptors);
  in_flight_.reserve(kMostDescriptors);
}

DescriptorPool::~DescriptorPool() {
  const MutexLock lock(mutex_);
  const RelaxedCapture relaxed;
  // Errors: a lost device reads nothing any more.
  for (const BatchDescriptors* descriptors : in_flight_)
    static_cast<void>(cudaEventSynchronize(descriptors->over));
  for (const auto& descriptors : all_) static_cast<void>(cudaEventDestroy(descriptors->over));
  static_cast<void>(cudaGetLastError());
}

/// Streams finish in any order, so all are asked.
void DescriptorPool::collect() {
  std::size_t kept = 0;
  for (BatchDescriptors* descriptors : in_flight_)
    if (is_over(descriptors->over))
      free_.push_back(descriptors);
    else
      in_flight_[kept++] = descriptors;
  in_flight_.resize(kept);
}

BatchDescriptors* DescriptorPool::take() {
  const MutexLock lock(mutex_);
  const RelaxedCapture relaxed;
  if (free_.empty()) collect();
  if (!free_.empty()) {
    BatchDescriptors* descriptors = free_.back();
    free_.pop_back();
    return descriptors;
  }
  if (all_.size() == kMostDescriptors) return nullptr;
  auto descriptors = std::make_unique<BatchDescriptors>();
  if (cudaEventCreateWithFlags(&descriptors->over, cudaEventDisableTiming) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  all_.push_back(std::move(descriptors));
  return all_.back().get();
}

cudaError_t DescriptorPool::put_in_flight(BatchDescriptors* descriptors, cudaStream_t stream) {
  if (cudaEventRecord(descriptors->over, stream) == cudaSuccess) {
    const MutexLock lock(mutex_);
    in_flight_.push_back(descriptors);
    return cudaSuccess;
  }
  static_cast<void>(cudaGetLastError());
  const cudaError_t error = cudaStreamSynchronize(stream);
  if (error == cudaSuccess) give_back(descriptors);
  return error;
}

void DescriptorPool::give_back(BatchDescriptors* descriptors) {
  const MutexLock lock(mutex_);
  free_.push_back(descriptors);
}

}  // namespace harvest::cuda
