// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/expert_cache.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "moe_server/model.hpp"

namespace harvest::moe_server {

/// Where a layer's experts come from.
class Experts {
 public:
  /// Gives the stream what is to be done with an expert.
  using Use = std::function<Status(std::uint32_t expert, const std::byte* weights)>;

  Experts() = default;
  Experts(const Experts&) = delete;
  Experts& operator=(const Experts&) = delete;
  virtual ~Experts() = default;

  /// Calls `use` once for each of the experts, in any order. After an error it may have done so for some.
  virtual Status run(std::uint32_t layer, std::span<const std::uint32_t> experts, moe::Phase phase,
                     const Use& use) = 0;
  /// Whether all weights were right since the last call; to be asked before results are shown.
  virtual Status confirm() = 0;
};

/// All of them in plain memory: the baseline that the others are compared with.
class ResidentExperts : public Experts {
 public:
  explicit ResidentExperts(const Model& model) : model_(model) {}

  Status run(std::uint32_t layer, std::span<const std::uint32_t> experts, moe::Phase,
             const Use& use) override {
    for (const std::uint32_t expert : experts)
      if (Status used = use(expert, model_.expert(layer, expert)); !used) return used;
    return {};
  }
  Status confirm() override { return {}; }

 private:
  const Model& model_;
};

/// Through Harvest, in the order in which they arrive.
class CachedExperts : public Experts {
 public:
  /// `between` is called when experts were asked for, and between them: where a server is at work, others are
  /// too, and it may do what they do.
  CachedExperts(moe::ExpertCache& cache, StreamId stream, std::function<Status()> between)
      : cache_(cache), stream_(stream), between_(std::move(between)) {}

  Status run(std::uint32_t layer, std::span<const std::uint32_t> experts, moe::Phase phase,
             const Use& use) override {
    auto step = cache_.begin_layer(layer, experts, stream_, phase);
    if (!step) return tl::unexpected(step.error());
    if (Status done = between_(); !done) return done;
    while (const moe::ReadyExpert* expert = step->next()) {
      if (Status used = use(expert->expert, expert->address); !used) return used;
      if (Status done = between_(); !done) return done;
    }
    return cache_.end_layer(std::move(*step));
  }
  Status confirm() override { return cache_.confirm(); }

 private:
  moe::ExpertCache& cache_;
  StreamId stream_;
  std::function<Status()> between_;
};

}  // namespace harvest::moe_server
