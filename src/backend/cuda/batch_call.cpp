// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/batch_call.hpp"

namespace harvest::cuda {

#if CUDART_VERSION >= 12080

namespace {

/// One set of attributes for all copies: never anything but stream order, since `Any` lets the source be read
/// before what the stream waits for has written it (docs/cuda.md, rule 10). Copy engines leave the
/// multiprocessors to the owner's kernels. Not const, as the call takes it, but nobody writes it.
cudaMemcpyAttributes& attributes() {
  static cudaMemcpyAttributes all = [] {
    cudaMemcpyAttributes made{};
    made.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    made.flags = cudaMemcpyFlagPreferOverlapWithCompute;
    return made;
  }();
  return all;
}

std::size_t& first_index() {
  static std::size_t zero = 0;
  return zero;
}

}  // namespace

cudaError_t call_batch(BatchDescriptors& descriptors, cudaStream_t stream) {
#if CUDART_VERSION >= 13000
  return cudaMemcpyBatchAsync(descriptors.destinations.data(), descriptors.sources.data(),
                              descriptors.bytes.data(), descriptors.count, &attributes(), &first_index(), 1,
                              stream);
#else
  // 12.8 and 12.9 have no const, and say which copy was wrong; the error's text is all that is told here.
  std::size_t failed = 0;
  return cudaMemcpyBatchAsync(descriptors.destinations.data(), const_cast<void**>(descriptors.sources.data()),
                              descriptors.bytes.data(), descriptors.count, &attributes(), &first_index(), 1,
                              &failed, stream);
#endif
}

#else

cudaError_t call_batch(BatchDescriptors&, cudaStream_t) {
  return cudaErrorNotSupported;
}

#endif

}  // namespace harvest::cuda
