// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/moe/routing.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/random.hpp"

/// All arithmetic is of integers: the same on every platform.
///
/// Experts are drawn as *slots*: each layer has the model's own order of its experts, so that one slot is
/// another expert in each layer, and the expert that follows from another is the one of the same slot.
namespace harvest::moe {
namespace {

constexpr std::uint32_t kMostBatch = 4096;
constexpr std::uint32_t kMostTokens = 1U << 20U;
constexpr std::size_t kMostSlots = 1024;
constexpr double kMostSpread = 512;
constexpr std::uint64_t kModelSeed = 0x4d6f'4520'726f'7574;

using Slot = std::uint16_t;

// --- what is asked for -----------------------------------------------------------------------------------

Status outside(std::string_view field, const std::string& value, const std::string& least,
               const std::string& most) {
  return fail(ErrorCode::invalid_argument,
              fmt::format("{} is {}, the limits are {} and {}", field, value, least, most));
}

Status check_share(std::string_view field, double share) {
  if (share >= 0 && share <= 1) return {};
  return outside(field, fmt::format("{}", share), "0", "1");
}

Status check(const LayerHabits& habits, std::string_view layer) {
  for (const auto& [name, share] : {std::pair{"linked", habits.linked}, std::pair{"kept", habits.kept},
                                    std::pair{"linked and kept", habits.linked + habits.kept}})
    if (Status good = check_share(fmt::format("{} of {}", name, layer), share); !good) return good;
  if (habits.spread >= 1 && habits.spread <= kMostSpread) return {};
  return outside(fmt::format("spread of {}", layer), fmt::format("{}", habits.spread), "1",
                 fmt::format("{}", kMostSpread));
}

Status check(const RoutingHabits& habits) {
  for (const auto& [name, layer] :
       {std::pair{"the first layer", &habits.first}, std::pair{"the second layer", &habits.second},
        std::pair{"the last layer", &habits.last}})
    if (Status good = check(*layer, name); !good) return good;
  for (const auto& [name, share] :
       {std::pair{"common", habits.common}, std::pair{"subject_drift", habits.subject_drift},
        std::pair{"popularity_drift", habits.popularity_drift}})
    if (Status good = check_share(name, share); !good) return good;
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

Status check(const RoutingTraffic& traffic) {
  if (traffic.batch < 1 || traffic.batch > kMostBatch)
    return outside("batch", fmt::format("{}", traffic.batch), "1", fmt::format("{}", kMostBatch));
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

/// Draws a favourite's rank.
class RankTable {
 public:
  /// `spread` in sixteenths.
  RankTable(std::uint32_t ranks, std::uint64_t spread) {
    std::vector<std::uint64_t> weights(ranks);
    for (std::uint64_t r = 0; r < ranks; ++r) {
      const std::uint64_t x = 16 * r + spread;  // at most 16 * 1,536: the fourth power has 59 bits
      weights[r] = (1ULL << 63U) / (x * x * x * x);
    }
    const std::uint64_t sum = std::accumulate(weights.begin(), weights.end(), std::uint64_t{0}) + 1;
    std::uint64_t below = 0;
    for (const std::uint64_t weight : weights) {
      below += weight;
      ends_.push_back(quotient_32(below, sum));
    }
    ends_.back() = UINT32_MAX;
    for (std::uint32_t i = 0, rank = 0; i < kStarts; ++i) {
      while (ends_[rank] < i << kStartShift) ++rank;
      starts_[i] = static_cast<std::uint16_t>(rank);
    }
  }

  [[nodiscard]] std::uint32_t rank(std::uint32_t random) const {
    std::uint32_t rank = starts_[random >> kStartShift];
    while (ends_[rank] < random) ++rank;
    return rank;
  }

  /// Chance of a rank, of 2^32.
  [[nodiscard]] std::uint32_t chance(std::uint32_t rank) const {
    return ends_[rank] - (rank == 0 ? 0 : ends_[rank - 1]);
  }

 private:
  static constexpr std::uint32_t kStarts = 256;
  static constexpr std::uint32_t kStartShift = 24;

  /// `part` / `whole` of 2^32, for any part that is less.
  static std::uint32_t quotient_32(std::uint64_t part, std::uint64_t whole) {
    std::uint32_t quotient = 0;
    for (int bit = 0; bit < 32; ++bit) {
      part <<= 1U;
      quotient = quotient << 1U | (part >= whole ? 1U : 0U);
      if (part >= whole) part -= whole;
    }
    return quotient;
  }

  std::vector<std::uint32_t> ends_;              ///< of each rank, in the numbers that are drawn
  std::array<std::uint16_t, kStarts> starts_{};  ///< where to begin to look
};

/// The chance that something of chance `once` (of 2^32) never happens in `times` tries, of 2^32.
std::uint64_t never(std::uint32_t once, std::uint64_t times) {
  std::uint64_t power = (1ULL << 32U) - once;
  std::uint64_t answer = 1ULL << 32U;
  for (; times > 0; times >>= 1U) {
    if ((times & 1U) != 0) answer = answer * (power >> 1U) >> 31U;
    power = power * (power >> 1U) >> 31U;
  }
  return answer;
}

struct Layer {
  Share linked = 0;  ///< drawn numbers below are linked picks,
  Share kept = 0;    ///< from there to below this kept ones
  RankTable favourites;
  std::vector<std::uint32_t> experts;  ///< by slot
};

/// The habits of a layer in a model of `layers`.
Layer make_layer(const RoutingHabits& habits, const RoutingShape& shape, std::uint32_t layer,
                 Random& random) {
  const auto between = [&](double LayerHabits::*field, std::int64_t one) {
    if (layer == 0) return fixed(habits.first.*field, one);
    const std::int64_t from = fixed(habits.second.*field, one);
    const std::int64_t to = fixed(habits.last.*field, one);
    if (shape.layers <= 2) return from;
    return from + (to - from) * (layer - 1) / (shape.layers - 2);
  };
  const auto linked = layer == 0 ? 0 : static_cast<Share>(between(&LayerHabits::linked, kWhole));
  const auto kept = static_cast<Share>(between(&LayerHabits::kept, kWhole));
  const auto spread = static_cast<std::uint64_t>(between(&LayerHabits::spread, 16));
  Layer made{linked, linked + kept, RankTable(shape.experts, spread), {}};
  made.experts.resize(shape.experts);
  std::iota(made.experts.begin(), made.experts.end(), 0U);
  for (std::uint32_t i = shape.experts; i > 1; --i)
    std::swap(made.experts[i - 1], made.experts[random.next_below(i)]);
  return made;
}

/// Slots of one list, each once.
class SlotSet {
 public:
  /// False if it was there.
  bool insert(Slot slot) {
    std::uint64_t& word = words_[slot / 64U];
    const std::uint64_t bit = 1ULL << (slot % 64U);
    const bool is_new = (word & bit) == 0;
    word |= bit;
    return is_new;
  }

 private:
  std::array<std::uint64_t, kMostSlots / 64> words_{};
};

struct Sequence {
  std::uint32_t id = 0;
  std::uint32_t prompt_tokens = 0;
  std::uint32_t steps_left = 0;  ///< of decode
  std::vector<Slot> favourites;  ///< all slots, the dearest first
  std::vector<Slot> last_picks;  ///< of its last token: `top_k` of each layer
};

}  // namespace

class RoutingGenerator::Impl {
 public:
  Impl(const RoutingModel& model, const RoutingTraffic& traffic);
  RoutingStep next();

 private:
  void admit(Sequence& sequence);
  void drift();
  void pick_token(Sequence& sequence, std::uint32_t layer);
  void pick_prompt(Sequence& sequence, std::uint32_t layer);
  Slot draw(const Sequence& sequence, const Layer& layer);
  Slot draw_other(const Sequence& sequence, const Layer& layer, SlotSet& taken);
  std::uint32_t draw(const TokenRange& range) {
    return range.least + random_.next_below(range.most - range.least + 1);
  }
  bool happens(Share share) { return (random_.next() & (kWhole - 1)) < share; }

  RoutingShape shape_;
  RoutingTraffic traffic_;
  Share common_;
  Share subject_drift_;
  Share popularity_drift_;
  Random random_;
  std::vector<Layer> layers_;
  std::vector<Slot> ranking_;  ///< all slots, those that new sequences are likely to favour first
  std::vector<Sequence> sequences_;
  std::uint32_t next_id_ = 0;
  bool prompts_wait_ = true;

  // The step that was given out last.
  std::vector<std::size_t> in_step_;  ///< of `sequences_`
  std::vector<BatchSequence> batch_;
  std::vector<std::uint32_t> ends_;
  std::vector<std::uint32_t> experts_;
};

RoutingGenerator::Impl::Impl(const RoutingModel& model, const RoutingTraffic& traffic)
    : shape_(model.shape),
      traffic_(traffic),
      common_(static_cast<Share>(fixed(model.habits.common, kWhole))),
      subject_drift_(static_cast<Share>(fixed(model.habits.subject_drift, kWhole))),
      popularity_drift_(static_cast<Share>(fixed(model.habits.popularity_drift, kWhole))),
      random_(traffic.seed),
      ranking_(model.shape.experts),
      sequences_(traffic.batch) {
  Random of_model(kModelSeed);  // whoever asks, it is the same model
  for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
    layers_.push_back(make_layer(model.habits, shape_, layer, of_model));
  std::iota(ranking_.begin(), ranking_.end(), Slot{0});
  for (Sequence& sequence : sequences_) admit(sequence);
}

/// A new sequence, with favourites of its own: the more `common` counts, the closer to the ranking.
void RoutingGenerator::Impl::admit(Sequence& sequence) {
  sequence.id = next_id_++;
  sequence.prompt_tokens = draw(traffic_.prompt_tokens);
  sequence.steps_left = draw(traffic_.output_tokens) - 1;
  std::array<std::uint64_t, kMostSlots> keys;  // where it would stand, and the slot
  for (std::uint32_t rank = 0; rank < shape_.experts; ++rank) {
    const std::uint64_t chance = random_.next_below(kWhole);
    const std::uint64_t standing = std::uint64_t{rank} * kWhole / shape_.experts;
    const std::uint64_t place = chance * (kWhole - common_) + standing * common_;
    keys[rank] = place << 16U | ranking_[rank];
  }
  std::sort(keys.begin(), keys.begin() + shape_.experts);
  sequence.favourites.resize(shape_.experts);
  std::transform(keys.begin(), keys.begin() + shape_.experts, sequence.favourites.begin(),
                 [](std::uint64_t key) { return static_cast<Slot>(key); });
  sequence.last_picks.clear();  // of a token that nobody sees
  for (const Layer& layer : layers_)
    for (std::uint32_t i = 0; i < shape_.top_k; ++i) sequence.last_picks.push_back(draw(sequence, layer));
}

/// After a decode step. An eighth of the experts are the dearest.
void RoutingGenerator::Impl::drift() {
  const std::uint32_t dearest = std::max(1U, shape_.experts / 8);
  for (const std::size_t i : in_step_)
    if (happens(subject_drift_)) {
      std::vector<Slot>& favourites = sequences_[i].favourites;
      std::swap(favourites[random_.next_below(dearest)], favourites[random_.next_below(shape_.experts)]);
    }
  if (shape_.experts > 1 && happens(popularity_drift_)) {
    const std::uint32_t rank = random_.next_below(shape_.experts - 1);
    std::swap(ranking_[rank], ranking_[rank + 1]);
  }
}

/// One of the favourites.
Slot RoutingGenerator::Impl::draw(const Sequence& sequence, const Layer& layer) {
  return sequence.favourites[layer.favourites.rank(static_cast<std::uint32_t>(random_.next() >> 32U))];
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

void RoutingGenerator::Impl::pick_token(Sequence& sequence, std::uint32_t layer_index) {
  const Layer& layer = layers_[layer_index];
  Slot* const last = sequence.last_picks.data() + std::size_t{layer_index} * shape_.top_k;
  SlotSet taken;
  for (std::uint32_t i = 0; i < shape_.top_k; ++i) {
    const std::uint64_t random = random_.next();
    const Share kind = random & (kWhole - 1);
    // The layer before was picked for this token already.
    Slot slot = kind < layer.linked ? last[i - std::ptrdiff_t{shape_.top_k}]
                : kind < layer.kept
                    ? last[i]
                    : sequence.favourites[layer.favourites.rank(static_cast<std::uint32_t>(random >> 32U))];
    if (!taken.insert(slot)) slot = draw_other(sequence, layer, taken);
    last[i] = slot;
    experts_.push_back(layer.experts[slot]);
  }
}

/// The union of what the prompt's tokens need: of the last token as it is, of the others by chance.
void RoutingGenerator::Impl::pick_prompt(Sequence& sequence, std::uint32_t layer_index) {
  const std::size_t first = experts_.size();
  pick_token(sequence, layer_index);
  const Layer& layer = layers_[layer_index];
  SlotSet taken;
  const Slot* const last = sequence.last_picks.data() + std::size_t{layer_index} * shape_.top_k;
  for (std::uint32_t i = 0; i < shape_.top_k; ++i) taken.insert(last[i]);
  const std::uint64_t picks = std::uint64_t{sequence.prompt_tokens - 1} * shape_.top_k;
  const std::uint64_t fresh = picks * (kWhole - (layer.kept - layer.linked)) / kWhole;
  for (std::uint32_t rank = 0; rank < shape_.experts; ++rank) {
    if (experts_.size() - first == picks + shape_.top_k) break;
    const Slot slot = sequence.favourites[rank];
    if (random_.next() >> 32U >= never(layer.favourites.chance(rank), fresh) && taken.insert(slot))
      experts_.push_back(layer.experts[slot]);
  }
}

RoutingStep RoutingGenerator::Impl::next() {
  const Phase phase = prompts_wait_ ? Phase::prefill : Phase::decode;
  in_step_.clear();
  for (std::size_t i = 0; i < sequences_.size(); ++i)
    if (phase == Phase::decode || sequences_[i].prompt_tokens > 0) in_step_.push_back(i);
  batch_.clear();
  ends_.clear();
  experts_.clear();
  for (const std::size_t i : in_step_)
    batch_.push_back({sequences_[i].id, phase == Phase::prefill ? sequences_[i].prompt_tokens : 1});
  for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
    for (const std::size_t i : in_step_) {
      phase == Phase::prefill ? pick_prompt(sequences_[i], layer) : pick_token(sequences_[i], layer);
      ends_.push_back(static_cast<std::uint32_t>(experts_.size()));
    }
  if (phase == Phase::decode) drift();
  prompts_wait_ = false;
  for (const std::size_t i : in_step_) {
    Sequence& sequence = sequences_[i];
    if (phase == Phase::decode) --sequence.steps_left;
    sequence.prompt_tokens = 0;
  }
  for (Sequence& sequence : sequences_)
    if (sequence.steps_left == 0 && sequence.prompt_tokens == 0) {
      admit(sequence);
      prompts_wait_ = true;
    }
  return {phase, batch_, ends_, experts_};
}

Result<RoutingGenerator> RoutingGenerator::create(const RoutingModel& model, const RoutingTraffic& traffic) {
  for (const Status& good : {model.shape.validate(), check(model.habits), check(traffic)})
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
