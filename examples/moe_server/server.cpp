// SPDX-License-Identifier: Apache-2.0
#include "moe_server/server.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "moe_server/math.hpp"
#include "moe_server/random.hpp"

namespace harvest::moe_server {
namespace {

constexpr int kMostAttempts = 200;  // of one step: only a machine on which nothing works needs as many

}  // namespace

std::uint32_t Server::Sequence::length() const {
  return static_cast<std::uint32_t>(request.prompt.size() + answer.tokens.size());
}

std::uint32_t Server::Sequence::token(std::uint32_t position) const {
  const auto prompt = static_cast<std::uint32_t>(request.prompt.size());
  return position < prompt ? request.prompt[position] : answer.tokens[position - prompt];
}

Server::Server(const Model& model, Compute& compute, Experts& experts, ServerLimits limits, Sampling sampling)
    : model_(model),
      compute_(compute),
      experts_(experts),
      limits_(limits),
      sampling_(sampling),
      places_(limits.sequences) {}

bool Server::idle() const {
  return queue_.empty() && std::ranges::none_of(places_, [](const auto& place) { return place.has_value(); });
}

Status Server::step() {
  admit();
  plan();
  if (rows_.empty()) return {};
  return compute_step();
}

void Server::admit() {
  for (auto& place : places_) {
    if (place || queue_.empty()) continue;
    place.emplace();
    place->request = std::move(queue_.front());
    place->answer.id = place->request.id;
    queue_.pop_front();
  }
}

/// Decoding sequences first: a long prompt does not hold them up, it takes more steps.
void Server::plan() {
  rows_.clear();
  ends_.clear();
  end_of_.clear();
  for (const moe::Phase phase : {moe::Phase::decode, moe::Phase::prefill})
    for (std::uint32_t place = 0; place < places_.size(); ++place) {
      auto& sequence = places_[place];
      if (!sequence || sequence->decodes() != (phase == moe::Phase::decode)) continue;
      const auto room = limits_.tokens_per_step - static_cast<std::uint32_t>(rows_.size());
      sequence->planned = std::min(sequence->length() - sequence->computed, room);
      for (std::uint32_t i = 0; i < sequence->planned; ++i) {
        const std::uint32_t position = sequence->computed + i;
        rows_.push_back({place, position, sequence->token(position), phase});
      }
      if (sequence->planned == 0 || sequence->computed + sequence->planned < sequence->length()) continue;
      ends_.push_back(static_cast<std::uint32_t>(rows_.size() - 1));
      end_of_.push_back(place);
    }
}

Status Server::compute_step() {
  Status wrong;
  for (int attempt = 0; attempt < kMostAttempts; ++attempt) {
    const auto logits = forward();
    const Status confirmed = experts_.confirm();
    if (logits && confirmed) {
      take_over(*logits);
      return {};
    }
    ++stats_.redone;
    if (logits) ++stats_.unconfirmed;
    wrong = confirmed ? tl::unexpected(logits.error()) : confirmed;
  }
  return fail(wrong.error().code,
              fmt::format("a step failed {} times, the last time: {}", kMostAttempts, wrong.error().message));
}

Result<std::span<const float>> Server::forward() {
  compute_.begin_step(rows_);
  for (std::uint32_t layer = 0; layer < model_.shape().layers; ++layer) {
    if (Status given = compute_.attend(layer); !given) return tl::unexpected(given.error());
    const auto choices = compute_.route(layer);
    if (!choices) return tl::unexpected(choices.error());
    if (Status given = run_experts(layer, *choices); !given) return tl::unexpected(given.error());
    if (Status given = compute_.combine(); !given) return tl::unexpected(given.error());
  }
  return compute_.logits(ends_);
}

/// What prompts alone need is asked for apart: it is no sign of what will be needed next.
Status Server::run_experts(std::uint32_t layer, std::span<const Choice> choices) {
  std::vector<bool> done(model_.shape().experts);
  for (const moe::Phase phase : {moe::Phase::decode, moe::Phase::prefill}) {
    std::vector<std::uint32_t> needed;
    for (std::size_t i = 0; i < choices.size(); ++i) {
      const std::uint32_t expert = choices[i].expert;
      if (rows_[i / model_.shape().top_k].phase != phase || done[expert]) continue;
      done[expert] = true;
      needed.push_back(expert);
    }
    if (needed.empty()) continue;
    const auto use = [&](std::uint32_t expert, const std::byte* weights) {
      return compute_.run_expert(expert, weights);
    };
    if (Status ran = experts_.run(layer, needed, phase, use); !ran) return ran;
  }
  return {};
}

void Server::take_over(std::span<const float> logits) {
  ++stats_.steps;
  const auto decodes = [](const Row& row) { return row.phase == moe::Phase::decode; };
  const auto decoding = static_cast<std::uint64_t>(std::ranges::count_if(rows_, decodes));
  stats_.prompt_tokens += rows_.size() - decoding;
  if (decoding > 0 && decoding < rows_.size()) ++stats_.mixed_steps;
  for (auto& place : places_)
    if (place) place->computed += std::exchange(place->planned, 0);

  const std::uint32_t vocabulary = model_.shape().vocabulary;
  for (std::size_t i = 0; i < end_of_.size(); ++i) {
    auto& place = places_[end_of_[i]];
    const auto scores = logits.subspan(i * vocabulary, vocabulary);
    const std::uint32_t token = choose(*place, scores);
    place->answer.tokens.push_back(token);
    place->answer.logits.insert(place->answer.logits.end(), scores.begin(), scores.end());
    ++stats_.new_tokens;
    if (place->answer.tokens.size() < place->request.new_tokens) continue;
    answers_.push_back(std::move(place->answer));
    place.reset();
  }
}

/// Depends on the request and the position alone, not on who is served beside it.
std::uint32_t Server::choose(const Sequence& sequence, std::span<const float> scores) const {
  if (sampling_.temperature == 0) return largest(scores, 1).front();
  std::vector<float> shares(scores.begin(), scores.end());
  for (float& share : shares) share /= static_cast<float>(sampling_.temperature);
  softmax(shares);
  Random random(seed_of(seed_of(sampling_.seed, sequence.request.id), sequence.length()));
  auto left = static_cast<float>(random.uniform());
  for (std::uint32_t token = 0; token + 1 < shares.size(); ++token)
    if ((left -= shares[token]) < 0) return token;
  return static_cast<std::uint32_t>(shares.size() - 1);
}

}  // namespace harvest::moe_server
