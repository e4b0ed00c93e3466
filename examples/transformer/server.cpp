// SPDX-License-Identifier: Apache-2.0
#include "transformer/server.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "transformer/math.hpp"
#include "transformer/random.hpp"

namespace harvest::transformer {
namespace {

constexpr int kMostAttempts = 200;  // of one step: only a machine on which nothing works needs as many

}  // namespace

std::uint32_t Server::Sequence::to_compute() const {
  return static_cast<std::uint32_t>(missing.size() + tokens.size()) - computed;
}

std::uint32_t Server::Sequence::next(std::uint32_t i) const {
  const auto holes = static_cast<std::uint32_t>(missing.size());
  return i < holes ? missing[i] : computed + i - holes;
}

void Server::Sequence::advance() {
  const auto filled = std::min<std::size_t>(planned, missing.size());
  missing.erase(missing.begin(), missing.begin() + static_cast<std::ptrdiff_t>(filled));
  computed += planned - static_cast<std::uint32_t>(filled);
}

Server::Server(const Model& model, Compute& compute, Experts& experts, KvMemory& kv, ServerLimits limits,
               Sampling sampling)
    : model_(model),
      compute_(compute),
      experts_(experts),
      kv_(kv),
      limits_(limits),
      sampling_(sampling),
      places_(limits.sequences) {}

bool Server::idle() const {
  return queue_.empty() && std::ranges::none_of(places_, [](const auto& place) { return place.has_value(); });
}

Status Server::step() {
  if (Status admitted = admit(); !admitted) return admitted;
  plan();
  if (rows_.empty()) return {};
  return compute_step();
}

/// In the order of the queue: who needs much room is not passed by who needs less.
Status Server::admit() {
  for (std::uint32_t place = 0; place < places_.size() && !queue_.empty(); ++place) {
    if (places_[place]) continue;
    bool entered = false;
    if (Status done = enter(place, entered); !done) return done;
    if (!entered) return {};
  }
  return {};
}

Status Server::enter(std::uint32_t place, bool& entered) {
  Request& request = queue_.front();
  const auto prompt_tokens = static_cast<std::uint32_t>(request.prompt.size());
  const auto known = kv_.enter(place, request.prompt, prompt_tokens + request.new_tokens);
  if (!known) return tl::unexpected(known.error());
  entered = known->has_value();
  if (!entered) return {};
  places_[place] = Sequence{.answer = {.id = request.id, .tokens = {}, .logits = {}},
                            .tokens = std::move(request.prompt),
                            .prompt_tokens = prompt_tokens,
                            .new_tokens = request.new_tokens,
                            .computed = **known,
                            .missing = {}};
  queue_.pop_front();
  return {};
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
      sequence->planned = std::min(sequence->to_compute(), room);
      for (std::uint32_t i = 0; i < sequence->planned; ++i) {
        const std::uint32_t position = sequence->next(i);
        rows_.push_back({place, position, sequence->tokens[position], phase});
      }
      if (sequence->planned == 0 || sequence->planned < sequence->to_compute()) continue;
      ends_.push_back(static_cast<std::uint32_t>(rows_.size() - 1));
      end_of_.push_back(place);
    }
}

Status Server::compute_step() {
  Status wrong;
  for (int attempt = 0; attempt < kMostAttempts; ++attempt) {
    const auto logits = forward();
    const Status confirmed = experts_.confirm();
    if (logits && confirmed) return take_over(*logits);
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
    if (Status there = kv_.order_behind(layer, rows_); !there) return tl::unexpected(there.error());
    if (Status given = compute_.attend(layer); !given) return tl::unexpected(given.error());
    const auto choices = compute_.route(layer);
    if (!choices) return tl::unexpected(choices.error());
    const auto likely = look_ahead(layer + 1);
    if (!likely) return tl::unexpected(likely.error());
    if (Status given = run_experts(layer, *choices); !given) return tl::unexpected(given.error());
    // Behind what this layer needs.
    experts_.expect(layer + 1, *likely);
    if (Status given = compute_.combine(); !given) return tl::unexpected(given.error());
  }
  return compute_.logits(ends_);
}

/// Behind the last layer comes a token that nobody knows yet.
Result<std::span<const Choice>> Server::look_ahead(std::uint32_t layer) {
  if (!experts_.looks_ahead() || layer == model_.shape().layers) return std::span<const Choice>();
  return compute_.look_ahead(layer);
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

Status Server::take_over(std::span<const float> logits) {
  ++stats_.steps;
  const auto decodes = [](const Row& row) { return row.phase == moe::Phase::decode; };
  const auto decoding = static_cast<std::uint64_t>(std::ranges::count_if(rows_, decodes));
  stats_.prompt_tokens += rows_.size() - decoding;
  if (decoding > 0 && decoding < rows_.size()) ++stats_.mixed_steps;
  note_missing();

  for (std::uint32_t place = 0; place < places_.size(); ++place) {
    auto& sequence = places_[place];
    if (!sequence || sequence->planned == 0) continue;
    sequence->advance();
    const std::uint32_t whole = sequence->missing.empty() ? sequence->computed : sequence->missing.front();
    if (Status kept = kv_.keep(place, std::span(sequence->tokens).first(whole)); !kept) return kept;
  }
  const std::uint32_t vocabulary = model_.shape().vocabulary;
  for (std::size_t i = 0; i < end_of_.size(); ++i)
    if (std::exchange(places_[end_of_[i]]->planned, 0) != 0)
      add_token(end_of_[i], logits.subspan(i * vocabulary, vocabulary));
  return {};
}

/// A sequence that saw what was not there has not got anywhere in this step.
void Server::note_missing() {
  for (const KvRange& range : kv_.confirm(rows_)) {
    Sequence& sequence = *places_[range.sequence];
    sequence.planned = 0;
    for (std::uint32_t i = 0; i < range.count; ++i) sequence.missing.push_back(range.first + i);
    stats_.missing_tokens += range.count;
  }
}

void Server::add_token(std::uint32_t place, std::span<const float> scores) {
  Sequence& sequence = *places_[place];
  const std::uint32_t token = choose(sequence, scores);
  sequence.tokens.push_back(token);
  sequence.answer.tokens.push_back(token);
  sequence.answer.logits.insert(sequence.answer.logits.end(), scores.begin(), scores.end());
  ++stats_.new_tokens;
  if (sequence.answer.tokens.size() < sequence.new_tokens) return;
  answers_.push_back(std::move(sequence.answer));
  places_[place].reset();
  kv_.leave(place);
}

/// Depends on the request and the position alone, not on who is served beside it.
std::uint32_t Server::choose(const Sequence& sequence, std::span<const float> scores) const {
  if (sampling_.temperature == 0) return largest(scores, 1).front();
  std::vector<float> shares(scores.begin(), scores.end());
  for (float& share : shares) share /= static_cast<float>(sampling_.temperature);
  softmax(shares);
  Random random(seed_of(seed_of(sampling_.seed, sequence.answer.id), sequence.tokens.size()));
  auto left = static_cast<float>(random.uniform());
  for (std::uint32_t token = 0; token + 1 < shares.size(); ++token)
    if ((left -= shares[token]) < 0) return token;
  return static_cast<std::uint32_t>(shares.size() - 1);
}

}  // namespace harvest::transformer
