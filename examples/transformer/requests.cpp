// SPDX-License-Identifier: Apache-2.0
#include "transformer/requests.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdint>

namespace harvest::transformer {
namespace {

std::string compare(const Answer& answer, const Answer& expected, std::string_view expected_how) {
  const std::size_t tokens = std::min(answer.tokens.size(), expected.tokens.size());
  const std::size_t vocabulary =
      expected.tokens.empty() ? 0 : expected.logits.size() / expected.tokens.size();
  for (std::size_t token = 0; token < tokens; ++token) {
    const auto* left = answer.logits.data() + token * vocabulary;
    const auto* right = expected.logits.data() + token * vocabulary;
    for (std::size_t score = 0; score < vocabulary; ++score)
      if (std::bit_cast<std::uint32_t>(left[score]) != std::bit_cast<std::uint32_t>(right[score]))
        return fmt::format("request {}, new token {}: the score of {} is {}, {} it is {}", answer.id, token,
                           score, left[score], expected_how, right[score]);
    if (answer.tokens[token] != expected.tokens[token])
      return fmt::format("request {}: new token {} is {}, {} it is {}", answer.id, token,
                         answer.tokens[token], expected_how, expected.tokens[token]);
  }
  if (answer.tokens.size() == expected.tokens.size()) return {};
  return fmt::format("request {} has {} new tokens, expected are {}", answer.id, answer.tokens.size(),
                     expected.tokens.size());
}

}  // namespace

std::string compare(const std::vector<Answer>& answers, const std::vector<Answer>& expected,
                    std::string_view expected_how) {
  if (answers.size() != expected.size())
    return fmt::format("{} requests were answered, {} were expected", answers.size(), expected.size());
  for (std::size_t i = 0; i < answers.size(); ++i) {
    if (answers[i].id != expected[i].id) return fmt::format("request {} has no answer", expected[i].id);
    if (std::string difference = compare(answers[i], expected[i], expected_how); !difference.empty())
      return difference;
  }
  return {};
}

}  // namespace harvest::transformer
