// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/model.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

/// Guesses which experts come next, from those that came. A predictor knows nothing of caches or devices: a
/// test can drive each alone, and a user can hand in their own. None is thread-safe; `ExpertCache` calls it
/// under its lock.
namespace harvest::moe {

/// An expert that a layer may need, and how likely that is.
struct Guess {
  std::uint32_t expert = 0;
  double probability = 0;  ///< 0 to 1
};

class Predictor {
 public:
  Predictor() = default;
  Predictor(const Predictor&) = delete;
  Predictor& operator=(const Predictor&) = delete;
  virtual ~Predictor() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;

  /// A layer step needed these experts. Layers come in order; layer 0 begins the next pass over the model.
  /// The cache tells decode steps alone: prefill has no favourites to learn.
  virtual void observe(std::uint32_t layer, std::span<const std::uint32_t> experts) = 0;

  /// Appends to `guesses` what layer `layer` will need in this pass (or, if it is behind what was observed
  /// last, in the next), each expert at most once, in no order. Cost: microseconds.
  virtual void predict(std::uint32_t layer, std::vector<Guess>& guesses) const = 0;
};

/// Names that `make_predictor` knows, the default first:
/// - `none` guesses nothing;
/// - `next_layer` counts which experts of a layer follow which of the layer before, and forgets slowly; it
/// keeps
///   8 bytes x layers x experts^2;
/// - `sequence` compares the pass under way with recent passes, and guesses what the most similar ones did
/// next.
[[nodiscard]] std::span<const std::string_view> predictor_names();

/// Errors: not_found, with the known names in the message; invalid_argument (`ModelDescription::validate`);
/// out_of_memory (a predictor would keep more than 2 GiB).
[[nodiscard]] Result<std::unique_ptr<Predictor>> make_predictor(std::string_view name,
                                                                const ModelDescription& model);

}  // namespace harvest::moe
