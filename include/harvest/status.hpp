// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

/// Outcomes and operating errors are values. No public function of Harvest throws; a programmer's
/// error (a broken precondition) stops the process at an assertion instead.
namespace harvest {

enum class ErrorCode : std::uint8_t {
  ok,                ///< no error
  invalid_argument,  ///< the call cannot be meant: the message names the value and the limit
  not_found,         ///< no such key, device, policy, system or file
  out_of_memory,     ///< the device, the pool or its budget has no room for it
  unavailable,       ///< the device or path is out of service, or may not be used
  copy_failed,       ///< a copy did not arrive; the destination's content is undefined
  timed_out,         ///< the deadline passed first; what was begun goes on
  busy,              ///< held by somebody: a lease, a copy in flight
  not_supported,     ///< this backend or build cannot do it
  malformed,         ///< input that is not of its format: the message names file and line
};

[[nodiscard]] std::string_view to_string(ErrorCode code);

/// What went wrong: a code for programs and a sentence for people.
struct Error {
  ErrorCode code = ErrorCode::ok;
  std::string message;
};

/// A value, or the error that stands in its place.
template <typename T>
using Result = tl::expected<T, Error>;

/// Success, or an error.
using Status = Result<void>;

/// `return fail(ErrorCode::not_found, fmt::format("no device {}", id));`
[[nodiscard]] inline tl::unexpected<Error> fail(ErrorCode code, std::string message) {
  return tl::unexpected<Error>(Error{code, std::move(message)});
}

}  // namespace harvest
