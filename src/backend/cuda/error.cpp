// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/error.hpp"

#include <fmt/format.h>

#include "backend/cuda/driver.hpp"

namespace harvest::cuda {
namespace {

/// The numbers of runtime and driver are the same from 100 on. By number, since older toolkits lack names.
bool is_sticky_number(int error) {
  switch (error) {
    case 214:  // ECC uncorrectable
    case 220:  // NVLink uncorrectable
    case 226:  // contained (from CUDA 12.8 on)
    case 700:  // illegal address
    case 702:  // launch timeout
    case 709:  // context is destroyed
    case 710:  // assert
    case 714:  // hardware stack error
    case 715:  // illegal instruction
    case 716:  // misaligned address
    case 717:  // invalid address space
    case 718:  // invalid program counter
    case 719:  // launch failure
    case 721:  // tensor memory leak (from CUDA 12.8 on)
    case 810:  // MPS client terminated
      return true;
    default: return false;
  }
}

ErrorCode code_of(cudaError_t error) {
  if (is_sticky(error)) return ErrorCode::unavailable;
  switch (error) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidDevicePointer:
    case cudaErrorInvalidMemcpyDirection:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorHostMemoryNotRegistered: return ErrorCode::invalid_argument;
    case cudaErrorMemoryAllocation: return ErrorCode::out_of_memory;
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidResourceHandle: return ErrorCode::not_found;
    case cudaErrorNotSupported:
    case cudaErrorCallRequiresNewerDriver:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureMerge:
    case cudaErrorStreamCaptureUnmatched:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorCapturedEvent:
    case cudaErrorStreamCaptureWrongThread: return ErrorCode::not_supported;
    default: return ErrorCode::unavailable;
  }
}

Error make_error(ErrorCode code, std::string_view what, const char* name, const char* text) {
  return {code, fmt::format("{}: {} ({})", what, name, text)};
}

}  // namespace

bool is_sticky(cudaError_t error) {
  return is_sticky_number(static_cast<int>(error));
}
bool is_sticky(CUresult error) {
  return is_sticky_number(static_cast<int>(error));
}

Error to_error(cudaError_t error, std::string_view what) {
  return make_error(code_of(error), what, cudaGetErrorName(error), cudaGetErrorString(error));
}

Error to_error(CUresult error, std::string_view what) {
  const char* name = nullptr;
  const char* text = nullptr;
  if (driver().error_name != nullptr) {
    static_cast<void>(driver().error_name(error, &name));
    static_cast<void>(driver().error_string(error, &text));
  }
  // Below 100 the driver's numbers and the runtime's are the same where both have them: 1, 2, 3, 4.
  const ErrorCode code = code_of(static_cast<cudaError_t>(error));
  return make_error(code, what, name != nullptr ? name : fmt::format("CUresult {}", int{error}).c_str(),
                    text != nullptr ? text : "an error that this driver does not name");
}

Status check(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return {};
  static_cast<void>(cudaGetLastError());
  return tl::unexpected(to_error(error, what));
}

Status check(CUresult error, std::string_view what) {
  if (error == CUDA_SUCCESS) return {};
  return tl::unexpected(to_error(error, what));
}

}  // namespace harvest::cuda
