// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/moe/routing.hpp>

#include <algorithm>
#include <bitset>

#include "base/assert.hpp"

namespace harvest::moe {
namespace {

constexpr std::uint32_t kMostTokens = 1U << 24U;
constexpr std::size_t kMostSequences = 1U << 16U;
/// `ends_` count in 32 bits.
constexpr std::size_t kMostExpertsOfStep = UINT32_MAX;
/// What the limits of a shape allow.
constexpr std::size_t kMostExperts = 1024;

template <typename... Args>
tl::unexpected<Error> refuse(fmt::format_string<Args...> what, Args&&... args) {
  return fail(ErrorCode::invalid_argument, fmt::format(what, std::forward<Args>(args)...));
}

template <typename T>
bool same(std::span<const T> a, std::span<const T> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

}  // namespace

Status RoutingShape::validate() const {
  // A description's limits, asked of one that is well in all other things.
  return ModelDescription{
      .name = {}, .layers = layers, .experts = experts, .top_k = top_k, .tensors = {{"w", 1}}}
      .validate();
}

void RoutingStep::distinct_experts(std::uint32_t layer, std::vector<std::uint32_t>& out) const {
  std::bitset<kMostExperts> needed;
  for (const std::uint32_t expert : experts(layer)) needed.set(expert);
  out.clear();
  for (std::uint32_t expert = 0; expert < kMostExperts; ++expert)
    if (needed[expert]) out.push_back(expert);
}

RoutingTrace::RoutingTrace(const RoutingShape& shape) : shape_(shape) {
  const Status valid = shape.validate();
  HARVEST_ASSERT(valid, valid.error().message);
}

std::size_t RoutingTrace::lines_missing() const {
  if (steps_.empty()) return 0;
  const std::size_t batch = sequences_.size() - steps_.back().first_sequence;
  return batch * shape_.layers - (ends_.size() - steps_.back().first_end);
}

std::size_t RoutingTrace::size() const {
  return steps_.size() - (lines_missing() == 0 ? 0 : 1);
}

RoutingStep RoutingTrace::step(std::size_t index) const {
  HARVEST_ASSERT(index < size(), fmt::format("step {} of {}", index, size()));
  return view(index);
}

RoutingStep RoutingTrace::view(std::size_t index) const {
  const Step& step = steps_[index];
  const bool last = index + 1 == steps_.size();
  const auto part = [&](const auto& all, std::size_t Step::*first) {
    const std::size_t end = last ? all.size() : steps_[index + 1].*first;
    return std::span(all).subspan(step.*first, end - step.*first);
  };
  return {step.phase, part(sequences_, &Step::first_sequence), part(ends_, &Step::first_end),
          part(experts_, &Step::first_expert)};
}

Status RoutingTrace::whole() const {
  if (lines_missing() == 0) return {};
  const std::size_t batch = sequences_.size() - steps_.back().first_sequence;
  const std::size_t lines = ends_.size() - steps_.back().first_end;
  return refuse("step {} ends in layer {} after {} of {} sequences; the model has {} layers", last_step_,
                (lines - 1) / batch, (lines - 1) % batch + 1, batch, shape_.layers);
}

Status RoutingTrace::add(const RoutingLine& line) {
  if (Status good = check(line); !good) return good;
  if (steps_.empty() || line.step != last_step_) {
    steps_.push_back({line.phase, sequences_.size(), ends_.size(), experts_.size()});
    in_batch_.clear();
    last_step_ = line.step;
  }
  if (line.layer == 0) {
    sequences_.push_back({line.sequence, line.tokens});
    in_batch_.insert(line.sequence);
  }
  experts_.insert(experts_.end(), line.experts.begin(), line.experts.end());
  ends_.push_back(static_cast<std::uint32_t>(experts_.size() - steps_.back().first_expert));
  return {};
}

Status RoutingTrace::add(const RoutingStep& step) {
  if (step.layers() != shape_.layers)
    return refuse("the step has {} layers, the model {}", step.layers(), shape_.layers);
  const std::uint64_t number = steps_.empty() ? 0 : last_step_ + 1;
  RoutingTrace alone(shape_);  // all of the step is looked at before any of it is added
  for (RoutingTrace* trace : {&alone, this})
    for (std::uint32_t layer = 0; layer < step.layers(); ++layer)
      for (std::size_t i = 0; i < step.sequences().size(); ++i) {
        const auto [id, tokens] = step.sequences()[i];
        const Status added = trace->add({number, step.phase(), id, layer, tokens, step.experts(layer, i)});
        if (!added) return added;
      }
  return {};
}

Status RoutingTrace::check(const RoutingLine& line) const {
  if (line.layer >= shape_.layers) return refuse("layer is {}, the model has {}", line.layer, shape_.layers);
  if (line.tokens < 1 || line.tokens > kMostTokens)
    return refuse("tokens is {}, the limits are 1 and {}", line.tokens, kMostTokens);
  if (Status good = check_place(line); !good) return good;
  return check_experts(line);
}

/// After the line before it comes the same layer's next sequence, or the next layer, or the next step.
Status RoutingTrace::check_place(const RoutingLine& line) const {
  if (steps_.empty() || line.step > last_step_) {
    if (Status before = whole(); !before) return before;
    if (line.layer != 0) return refuse("step {} begins with layer {}, not 0", line.step, line.layer);
    return {};
  }
  if (line.step < last_step_) return refuse("step goes back from {} to {}", last_step_, line.step);
  const Step& step = steps_.back();
  const std::size_t batch = sequences_.size() - step.first_sequence;
  const std::size_t lines = ends_.size() - step.first_end;
  if (line.phase != step.phase)
    return refuse("phase is {}, the step began as {}", to_string(line.phase), to_string(step.phase));
  if (line.layer == 0 && lines == batch) {  // still in layer 0, which says who is in the batch
    if (in_batch_.contains(line.sequence)) return refuse("sequence {} is in the layer twice", line.sequence);
    if (batch == kMostSequences) return refuse("the step has more sequences than the limit of {}", batch);
    return {};
  }
  const auto layer = static_cast<std::uint32_t>(lines / batch);
  if (layer == shape_.layers) return refuse("step {} is whole already", line.step);
  if (line.layer != layer) return refuse("layer is {} where {} was to come", line.layer, layer);
  const BatchSequence& awaited = sequences_[step.first_sequence + lines % batch];
  if (line.sequence != awaited.id)
    return refuse("sequence is {} where {} was to come, as in layer 0", line.sequence, awaited.id);
  if (line.tokens != awaited.tokens)
    return refuse("tokens is {}, in layer 0 it was {}", line.tokens, awaited.tokens);
  return {};
}

Status RoutingTrace::check_experts(const RoutingLine& line) const {
  const std::uint64_t most =
      std::min<std::uint64_t>(shape_.experts, std::uint64_t{line.tokens} * shape_.top_k);
  if (line.experts.size() < shape_.top_k || line.experts.size() > most)
    return refuse("experts has {} of them, the limits for {} token{} are {} and {}", line.experts.size(),
                  line.tokens, line.tokens == 1 ? "" : "s", shape_.top_k, most);
  std::bitset<kMostExperts> seen;
  for (const std::uint32_t expert : line.experts) {
    if (expert >= shape_.experts) return refuse("experts has {}, the model has {}", expert, shape_.experts);
    if (seen[expert]) return refuse("experts has {} twice", expert);
    seen.set(expert);
  }
  const std::size_t of_step = steps_.empty() ? 0 : experts_.size() - steps_.back().first_expert;
  if (of_step + line.experts.size() > kMostExpertsOfStep)
    return refuse("the step has more experts than the limit of {}", kMostExpertsOfStep);
  return {};
}

bool operator==(const RoutingTrace& a, const RoutingTrace& b) {
  if (!(a.shape_ == b.shape_) || a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const RoutingStep x = a.view(i);
    const RoutingStep y = b.view(i);
    if (x.phase() != y.phase() || !same(x.sequences(), y.sequences())) return false;
    for (std::uint32_t layer = 0; layer < x.layers(); ++layer)
      for (std::size_t sequence = 0; sequence < x.sequences().size(); ++sequence)
        if (!same(x.experts(layer, sequence), y.experts(layer, sequence))) return false;
  }
  return true;
}

}  // namespace harvest::moe
