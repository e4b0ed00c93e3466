// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/model.hpp>
#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "transformer/compute.hpp"
#include "transformer/model.hpp"

namespace harvest::transformer {

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
  /// Whether it wants to be told one layer early.
  [[nodiscard]] virtual bool looks_ahead() const { return false; }
  /// What `run` of the next layer will probably be asked for, behind `run` of the one before.
  virtual void expect(std::uint32_t /*layer*/, std::span<const Choice> /*likely*/) {}

  /// Whether all weights were right since the last call; to be asked before results are shown.
  virtual Status confirm() = 0;
};

/// All of them in plain memory.
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

}  // namespace harvest::transformer
