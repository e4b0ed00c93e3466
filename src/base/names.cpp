// SPDX-License-Identifier: Apache-2.0
#include <harvest/status.hpp>
#include <harvest/types.hpp>

namespace harvest {

std::string_view to_string(Tier tier) {
  switch (tier) {
    case Tier::local: return "local";
    case Tier::peer: return "peer";
    case Tier::host: return "host";
    case Tier::none: return "none";
  }
  return "?";
}

std::string_view to_string(Backing backing) {
  switch (backing) {
    case Backing::external_host: return "external_host";
    case Backing::managed_host: return "managed_host";
    case Backing::spill: return "spill";
    case Backing::lossy: return "lossy";
  }
  return "?";
}

std::string_view to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::ok: return "ok";
    case ErrorCode::invalid_argument: return "invalid_argument";
    case ErrorCode::not_found: return "not_found";
    case ErrorCode::out_of_memory: return "out_of_memory";
    case ErrorCode::unavailable: return "unavailable";
    case ErrorCode::copy_failed: return "copy_failed";
    case ErrorCode::timed_out: return "timed_out";
    case ErrorCode::busy: return "busy";
    case ErrorCode::not_supported: return "not_supported";
    case ErrorCode::malformed: return "malformed";
  }
  return "?";
}

}  // namespace harvest
