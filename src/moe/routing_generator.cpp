// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/moe/routing.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/random.hpp"
#include "moe/routing_picks.hpp"

namespace harvest::moe {
namespace {

constexpr std::uint32_t kMostBatch = 4096;
constexpr std::uint32_t kMostTokens = 1U << 20U;
constexpr std::uint64_t kMostOfStep = 1ULL << 28U;
constexpr double kMostSpread = 512;
constexpr std::uint64_t kModelSeed = 0x4d6f'4520'726f'7574;
/// Of a prompt at once.
constexpr std::uint32_t kChunkTokens = 16;

// --- what is asked for -----------------------------------------------------------------------------------

Status outside(std::string_view field, const std::string& value, const std::string& least,
               const std::string& most) {
  return fail(ErrorCode::invalid_argument,
              fmt::format("{} is {}, the limits are {} and {}", field, value, least, most));
}

Status check(const RoutingHabits& habits) {
  const auto within = [](std::string_view field, double value, double least, double most) -> Status {
    if (value >= least && value <= most) return {};
    return outside(field, fmt::format("{}", value), fmt::format("{}", least), fmt::format("{}", most));
  };
  for (const auto& [field, share] : {std::pair{"linked", habits.linked}, std::pair{"common", habits.common},
                                     std::pair{"subject_drift", habits.subject_drift},
                                     std::pair{"popularity_drift", habits.popularity_drift}})
    if (Status good = within(field, share, 0, 1); !good) return good;
  for (const auto& [field, spread] :
       {std::pair{"first_spread", habits.first_spread}, std::pair{"second_spread", habits.second_spread},
        std::pair{"last_spread", habits.last_spread}})
    if (Status good = within(field, spread, 1, kMostSpread); !good) return good;
  return {};
}

Status check(const TokenRange& range, std::string_view name) {
  for (const auto& [end, tokens] : {std::pair{"least", range.least}, std::pair{"most", range.most}})
    if (tokens < 1 || tokens > kMostTokens)
      return outside(fmt::format("{}.{}", name, end), fmt::format("{}", tokens), "1",
                     fmt::format("{}", kMostTokens));
  if (range.least <= range.most) return {};
  return fail(ErrorCode::invalid_argument,
              fmt::format("{}.least is {}, more than {}.most, {}", name, range.least, name, range.most));
}

Status check(const RoutingTraffic& traffic, const RoutingShape& shape) {
  if (traffic.batch < 1 || traffic.batch > kMostBatch)
    return outside("batch", fmt::format("{}", traffic.batch), "1", fmt::format("{}", kMostBatch));
  const std::uint64_t of_step = std::uint64_t{traffic.batch} * shape.layers * shape.experts;
  if (of_step > kMostOfStep)
    return outside("batch x layers x experts", fmt::format("{}", of_step), "1",
                   fmt::format("{}", kMostOfStep));
  if (Status good = check(traffic.prompt_tokens, "prompt_tokens"); !good) return good;
  return check(traffic.output_tokens, "output_tokens");
}

// --- a layer ---------------------------------------------------------------------------------------------

/// 1 is 65,536.
using Share = std::uint32_t;
constexpr Share kWhole = 1U << 16U;

std::int64_t fixed(double value, std::int64_t one) {
  return std::llround(value * static_cast<double>(one));
}

struct Layer {
  RankTable favourites;
  std::vector<std::uint32_t> experts;  ///< by slot
};

Layer make_layer(const RoutingHabits& habits, const RoutingShape& shape, std::uint32_t layer,
                 Random& random) {
  std::int64_t spread = fixed(habits.first_spread, 16);
  if (layer > 0) {
    const std::int64_t second = fixed(habits.second_spread, 16);
    const std::int64_t last = fixed(habits.last_spread, 16);
    spread = second + (last - second) * (layer - 1) / std::max(1U, shape.layers - 2);
  }
  Layer made{RankTable(shape.experts, static_cast<std::uint64_t>(spread), shape.top_k, kChunkTokens), {}};
  made.experts.resize(shape.experts);
  std::iota(made.experts.begin(), made.experts.end(), 0U);
  for (std::uint32_t i = shape.experts; i > 1; --i)
    std::swap(made.experts[i - 1], made.experts[random.next_below(i)]);
  return made;
}

struct Sequence {
  std::uint32_t id = 0;
  std::uint32_t prompt_tokens = 0;
  std::uint32_t steps_left = 0;  ///< of decode
  std::vector<Slot> favourites;  ///< all slots, the dearest first
  std::vector<Slot> picks;       ///< of the token and layer at hand
  std::vector<SlotSet> needed;   ///< by the prompt, of each layer
};

}  // namespace

class RoutingGenerator::Impl {
 public:
  Impl(const RoutingModel& model, const RoutingTraffic& traffic);
  RoutingStep next();

 private:
  void admit(Sequence& sequence);
  void endear(Sequence& sequence, std::uint32_t rank);
  void read_prompt(Sequence& sequence);
  void read_chunk(Sequence& sequence);
  void pick(Sequence& sequence, std::uint32_t layer);
  void add_experts(const Sequence& sequence, std::uint32_t layer, Phase phase);
  void drift(Sequence& sequence);
  void finish_step(Phase phase);
  Slot draw(const Sequence& sequence, const Layer& layer);
  Slot draw_other(const Sequence& sequence, const Layer& layer, SlotSet& taken);
  std::uint32_t draw(const TokenRange& range) {
    return range.least + random_.next_below(range.most - range.least + 1);
  }
  bool happens(Share share) { return (random_.next() & (kWhole - 1)) < share; }

  RoutingShape shape_;
  RoutingTraffic traffic_;
  Share linked_;
  Share common_;
  Share subject_drift_;
  Share popularity_drift_;
  Random random_;
  std::vector<Layer> layers_;
  std::vector<Slot> ranking_;  ///< all slots, what sequences like first
  RankTable liking_;           ///< draws from it
  std::uint32_t dearest_;      ///< how many favourites of a sequence change
  std::vector<Sequence> sequences_;
  std::uint32_t next_id_ = 0;
  bool prompts_wait_ = true;

  // The step that was given out last.
  std::vector<Sequence*> in_step_;
  std::vector<BatchSequence> batch_;
  std::vector<std::uint32_t> ends_;
  std::vector<std::uint32_t> experts_;
};

RoutingGenerator::Impl::Impl(const RoutingModel& model, const RoutingTraffic& traffic)
    : shape_(model.shape),
      traffic_(traffic),
      linked_(static_cast<Share>(fixed(model.habits.linked, kWhole))),
      common_(static_cast<Share>(fixed(model.habits.common, kWhole))),
      subject_drift_(static_cast<Share>(fixed(model.habits.subject_drift, kWhole))),
      popularity_drift_(static_cast<Share>(fixed(model.habits.popularity_drift, kWhole))),
      random_(traffic.seed),
      ranking_(model.shape.experts),
      liking_(model.shape.experts, std::max(16U, 2 * model.shape.experts), 1, 1),
      dearest_(std::max(1U, model.shape.experts / 8)),
      sequences_(traffic.batch) {
  Random of_model(kModelSeed);  // whoever asks, it is the same model
  for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
    layers_.push_back(make_layer(model.habits, shape_, layer, of_model));
  std::iota(ranking_.begin(), ranking_.end(), Slot{0});
  for (Sequence& sequence : sequences_) admit(sequence);
}

void RoutingGenerator::Impl::admit(Sequence& sequence) {
  sequence.id = next_id_++;
  sequence.prompt_tokens = draw(traffic_.prompt_tokens);
  sequence.steps_left = draw(traffic_.output_tokens) - 1;
  sequence.favourites.resize(shape_.experts);
  std::iota(sequence.favourites.begin(), sequence.favourites.end(), Slot{0});
  for (std::uint32_t i = shape_.experts; i > 1; --i)
    std::swap(sequence.favourites[i - 1], sequence.favourites[random_.next_below(i)]);
  for (std::uint32_t rank = 0; rank < dearest_; ++rank) endear(sequence, rank);
}

/// Gives the rank to another expert: to one that sequences like, or to any.
void RoutingGenerator::Impl::endear(Sequence& sequence, std::uint32_t rank) {
  std::vector<Slot>& favourites = sequence.favourites;
  const Slot slot = happens(common_) ? ranking_[liking_.rank(random_.next_bits())]
                                     : static_cast<Slot>(random_.next_below(shape_.experts));
  std::swap(favourites[rank], *std::find(favourites.begin(), favourites.end(), slot));
}

/// After a token.
void RoutingGenerator::Impl::drift(Sequence& sequence) {
  if (happens(subject_drift_)) endear(sequence, random_.next_below(dearest_));
}

/// One of the favourites.
Slot RoutingGenerator::Impl::draw(const Sequence& sequence, const Layer& layer) {
  return sequence.favourites[layer.favourites.rank(random_.next_bits())];
}

/// One that is not taken yet, and takes it. Requires: not all are.
Slot RoutingGenerator::Impl::draw_other(const Sequence& sequence, const Layer& layer, SlotSet& taken) {
  constexpr int kMostTries = 64;  // the rest may be so rare that they are never drawn
  for (int i = 0; i < kMostTries; ++i) {
    const Slot slot = draw(sequence, layer);
    if (taken.insert(slot)) return slot;
  }
  return *std::find_if(sequence.favourites.begin(), sequence.favourites.end(),
                       [&](Slot slot) { return taken.insert(slot); });
}

/// What one token needs of a layer. Requires: the layer before was picked for it just now.
void RoutingGenerator::Impl::pick(Sequence& sequence, std::uint32_t layer_index) {
  const Layer& layer = layers_[layer_index];
  const Share linked = layer_index == 0 ? 0 : linked_;
  SlotSet taken;
  sequence.picks.resize(shape_.top_k);
  for (Slot& slot : sequence.picks) {
    if (!happens(linked)) slot = draw(sequence, layer);
    if (!taken.insert(slot)) slot = draw_other(sequence, layer, taken);
  }
}

/// Several tokens at once: each favourite is needed or not, whatever the others are.
void RoutingGenerator::Impl::read_chunk(Sequence& sequence) {
  for (std::uint32_t i = 0; i < shape_.layers; ++i) {
    SlotSet& needed = sequence.needed[i];
    const std::uint32_t most = std::min(needed.size() + kChunkTokens * shape_.top_k, shape_.experts);
    for (std::uint32_t rank = 0; rank < shape_.experts && needed.size() < most; ++rank)
      if (!layers_[i].favourites.is_absent(rank, random_.next_bits()))
        needed.insert(sequence.favourites[rank]);
  }
  for (std::uint32_t token = 0; token < kChunkTokens; ++token) drift(sequence);
}

void RoutingGenerator::Impl::read_prompt(Sequence& sequence) {
  sequence.needed.assign(shape_.layers, {});
  std::uint32_t tokens = sequence.prompt_tokens;
  for (; tokens > kChunkTokens; tokens -= kChunkTokens) read_chunk(sequence);
  for (; tokens > 0; --tokens) {
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
      pick(sequence, layer);
      for (const Slot slot : sequence.picks) sequence.needed[layer].insert(slot);
    }
    drift(sequence);
  }
}

void RoutingGenerator::Impl::add_experts(const Sequence& sequence, std::uint32_t layer, Phase phase) {
  const std::vector<std::uint32_t>& experts = layers_[layer].experts;
  if (phase == Phase::prefill)
    sequence.needed[layer].for_each([&](Slot slot) { experts_.push_back(experts[slot]); });
  else
    for (const Slot slot : sequence.picks) experts_.push_back(experts[slot]);
  ends_.push_back(static_cast<std::uint32_t>(experts_.size()));
}

RoutingStep RoutingGenerator::Impl::next() {
  const Phase phase = prompts_wait_ ? Phase::prefill : Phase::decode;
  batch_.clear();
  ends_.clear();
  experts_.clear();
  in_step_.clear();
  for (Sequence& sequence : sequences_) {
    if (phase == Phase::prefill && sequence.prompt_tokens == 0) continue;
    in_step_.push_back(&sequence);
    batch_.push_back({sequence.id, phase == Phase::prefill ? sequence.prompt_tokens : 1});
    if (phase == Phase::prefill) read_prompt(sequence);
  }
  for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
    for (Sequence* const sequence : in_step_) {
      if (phase == Phase::decode) pick(*sequence, layer);
      add_experts(*sequence, layer, phase);
    }
  finish_step(phase);
  return {phase, batch_, ends_, experts_};
}

void RoutingGenerator::Impl::finish_step(Phase phase) {
  for (Sequence* const sequence : in_step_) {
    sequence->prompt_tokens = 0;
    if (phase == Phase::prefill) continue;
    --sequence->steps_left;
    drift(*sequence);
  }
  prompts_wait_ = false;
  for (Sequence& sequence : sequences_) {
    if (sequence.steps_left > 0 || sequence.prompt_tokens > 0) continue;
    admit(sequence);
    prompts_wait_ = true;
  }
  if (shape_.experts > 1 && happens(popularity_drift_)) {
    const std::uint32_t rank = random_.next_below(shape_.experts - 1);
    std::swap(ranking_[rank], ranking_[rank + 1]);
  }
}

Result<RoutingGenerator> RoutingGenerator::create(const RoutingModel& model, const RoutingTraffic& traffic) {
  for (const Status& good : {model.shape.validate(), check(model.habits), check(traffic, model.shape)})
    if (!good) return tl::unexpected(good.error());
  return RoutingGenerator(std::make_unique<Impl>(model, traffic));
}

RoutingGenerator::RoutingGenerator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RoutingGenerator::RoutingGenerator(RoutingGenerator&& other) noexcept = default;
RoutingGenerator& RoutingGenerator::operator=(RoutingGenerator&& other) noexcept = default;
RoutingGenerator::~RoutingGenerator() = default;

RoutingStep RoutingGenerator::next() {
  return impl_->next();
}

}  // namespace harvest::moe
