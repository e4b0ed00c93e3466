// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace harvest::transformer {

struct Request {
  std::uint32_t id = 0;
  TimeNs arrival_ns = 0;
  std::vector<std::uint32_t> prompt;
  std::uint32_t new_tokens = 0;  ///< how many it asks for
};

struct Answer {
  std::uint32_t id = 0;
  std::vector<std::uint32_t> tokens;
  std::vector<float> logits;  ///< that each token was chosen from, one behind the other
};

/// What differs between two sets of answers, to the last bit; empty if nothing does. `expected_how` is said
/// of the second: "with all experts resident".
[[nodiscard]] std::string compare(const std::vector<Answer>& answers, const std::vector<Answer>& expected,
                                  std::string_view expected_how);

}  // namespace harvest::transformer
