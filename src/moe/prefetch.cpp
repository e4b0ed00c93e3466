// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "moe/impl.hpp"

/// Guesses: what is brought before it is needed, into slots whose content is worth less, on wires that nobody
/// waits for.
namespace harvest::moe {
namespace {

constexpr std::size_t kMostRequests = 4096;
constexpr double kLeastWindowNs = 1e4;
constexpr double kMostWindowNs = 1e8;
constexpr double kTooMany = 0.95;
constexpr double kTooFew = 1.02;
constexpr double kUnused = 1.001;

}  // namespace

Result<PrefetchId> ExpertCache::Impl::prefetch(std::uint32_t layer, std::span<const std::uint32_t> experts,
                                               double probability, TimeNs deadline_ns) {
  MutexLock lock(mutex_);
  if (!(probability >= 0 && probability <= 1))
    return fail(ErrorCode::invalid_argument,
                fmt::format("probability is {}, the limits are 0 and 1", probability));
  for (const std::uint32_t expert : experts) {
    if (Status status = check_expert(layer, expert); !status) return tl::unexpected(status.error());
    if (experts_[index_of(layer, expert)].pieces == 0)
      return fail(ErrorCode::not_found, fmt::format("expert {} of layer {} was not added", expert, layer));
  }
  if (requests_.size() + experts.size() > kMostRequests)
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} experts are asked for ahead of time, the limit is {}",
                            requests_.size() + experts.size(), kMostRequests));
  const auto id = static_cast<PrefetchId>(next_request_++);
  for (const std::uint32_t expert : experts) ask_for({id, index_of(layer, expert), probability, deadline_ns});
  settle();
  pump();
  return id;
}

Status ExpertCache::Impl::cancel(PrefetchId id) {
  MutexLock lock(mutex_);
  const auto gone = id == PrefetchId::none
                        ? 0
                        : std::erase_if(requests_, [&](const Request& request) { return request.id == id; });
  if (gone > 0) return {};
  return fail(ErrorCode::not_found, fmt::format("prefetch {} is done, was cancelled, or was never asked for",
                                                static_cast<std::uint64_t>(id)));
}

void ExpertCache::Impl::set_predictor(std::unique_ptr<Predictor> predictor) {
  MutexLock lock(mutex_);
  std::erase_if(requests_, [](const Request& request) { return request.id == PrefetchId::none; });
  predictor_ = std::move(predictor);
}

/// What was guessed for layers that have come by now is replaced by new guesses.
void ExpertCache::Impl::ask_predictor(std::uint32_t layer, std::span<const Entry> experts) {
  if (predictor_ == nullptr) return;
  observed_.clear();
  for (const Entry& entry : experts) observed_.push_back(experts_[entry.expert].number);
  predictor_->observe(layer, observed_);
  std::erase_if(requests_, [](const Request& request) { return request.id == PrefetchId::none; });
  const std::uint32_t ahead = std::min(config_.prefetch_layers, config_.model.layers - 1);
  for (std::uint32_t i = 1; i <= ahead; ++i) {
    const std::uint32_t next = (layer + i) % config_.model.layers;
    guesses_.clear();
    predictor_->predict(next, guesses_);
    for (const Guess& guess : guesses_) {
      if (guess.expert >= config_.model.experts || !(guess.probability >= config_.prefetch_probability))
        continue;
      const Expert& expert = experts_[index_of(next, guess.expert)];
      const bool absent = expert.slot == kNone || slots_.at(expert.slot).pieces < expert.pieces;
      if (absent && expert.pieces > 0 && requests_.size() < kMostRequests)
        ask_for({PrefetchId::none, index_of(next, guess.expert), guess.probability});
    }
  }
}

/// When a guess is right the expert is needed as if its layer had just passed and it had been used.
double ExpertCache::Impl::value_of_guess(const Expert& expert, double probability) const {
  const std::uint32_t layers = config_.model.layers;
  const std::uint64_t comes = std::max(layer_step_[expert.layer] + layers, step_clock_ + 1);
  return slot_value_({.layers = layers,
                      .step = comes - std::min<std::uint64_t>(comes, layers),
                      .last_use_step = step_clock_,
                      .passes_since_use = 0,
                      .frequency = std::max(frequency_of(expert), probability)});
}

/// A step begins, whose experts are marked. Where a guess for its layer that it does not need is still on a
/// wire, guesses were too many, since what it needs waits behind that; where none is on its way, there was
/// time for more. Where none were made the window opens slowly, for times that have changed.
void ExpertCache::Impl::adapt_windows(std::uint32_t layer) {
  const TimeNs now = backend_.now_ns();
  const auto is_wrong = [&](const Flight& flight) HARVEST_REQUIRES(mutex_) {
    const Expert& expert = experts_[flight.expert];
    return flight.guessed && expert.layer == layer && expert.mark != marks_;
  };
  for (const Wire wire : {Wire::peers, Wire::host}) {
    const auto number = static_cast<std::size_t>(wire);
    const double change = !guessed_[number]                      ? kUnused
                          : !lanes_.any_under_way(wire)          ? kTooFew
                          : lanes_.any_under_way(wire, is_wrong) ? kTooMany
                                                                 : 1;
    double& window = windows_ns_[waited_ ? 1 : 0][number];
    window = std::clamp(window * change, kLeastWindowNs, kMostWindowNs);
    guessed_[number] = false;
    demand_until_ns_[number] = std::max(now, demand_until_ns_[number]);
  }
}

/// The wire that can carry a piece of a guess before the next step is expected, if any.
std::optional<Wire> ExpertCache::Impl::wire_for_guess(const Piece& piece) const {
  const auto has_time = [&](Wire wire) HARVEST_REQUIRES(mutex_) {
    const auto number = static_cast<std::size_t>(wire);
    const double window = config_.prefetch_window_ns > 0 ? static_cast<double>(config_.prefetch_window_ns)
                                                         : windows_ns_[waited_ ? 1 : 0][number];
    const TimeNs free_from = std::max(backend_.now_ns(), demand_until_ns_[number]);
    const TimeNs done = std::max(busy_until_ns_[number], free_from) + wire_ns(wire, piece.bytes);
    return static_cast<double>(done - free_from) <= window;
  };
  if (is_on_peers(piece) && has_time(Wire::peers)) return Wire::peers;
  if (has_time(Wire::host)) return Wire::host;
  return std::nullopt;
}

/// Behind those that are as likely.
void ExpertCache::Impl::ask_for(const Request& request) {
  const auto at =
      std::upper_bound(requests_.begin(), requests_.end(), request,
                       [](const Request& a, const Request& b) { return a.probability > b.probability; });
  requests_.insert(at, request);
  first_deadline_ns_ = std::min(first_deadline_ns_, request.deadline_ns);
}

void ExpertCache::Impl::pump() {
  if (requests_.empty()) return;
  if (const TimeNs now = backend_.now_ns(); first_deadline_ns_ <= now) {
    std::erase_if(requests_, [&](const Request& request) { return request.deadline_ns <= now; });
    first_deadline_ns_ = kNever;
    for (const Request& request : requests_)
      first_deadline_ns_ = std::min(first_deadline_ns_, request.deadline_ns);
  }
  std::size_t done = 0;
  while (done < requests_.size() && follow(requests_[done])) ++done;
  requests_.erase(requests_.begin(), requests_.begin() + static_cast<std::ptrdiff_t>(done));
}

/// True if nothing more is to be done for the request; false if the wires have no time for it now.
bool ExpertCache::Impl::follow(const Request& request) {
  Expert& expert = experts_[request.expert];
  const std::uint32_t given = expert.slot == kNone ? 0 : slots_.at(expert.slot).pieces;
  if (given == expert.pieces) return true;
  if (!wire_for_guess(pieces_of(expert)[given])) return false;
  if (expert.slot == kNone) {
    const std::uint32_t victim = slots_.next_victim();
    if (victim == kNone) return false;
    const double value = value_of_guess(expert, request.probability);
    if (slots_.value_of(victim) >= value) return true;
    occupy(victim, request.expert, value);
    slots_.at(victim).guessed = true;
    ready_ns_[victim] = 0;
    ++stats_.guesses;
  }
  for (std::uint32_t piece = given; piece < expert.pieces; ++piece) {
    const auto wire = wire_for_guess(pieces_of(expert)[piece]);
    if (!wire) return false;
    if (bring(expert.slot, piece + 1, Why::guess, {.wire = *wire})) continue;
    if (slots_.at(expert.slot).steps == 0) vacate(expert.slot);
    return true;
  }
  return true;
}

}  // namespace harvest::moe
