// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/kv/layout.hpp>

#include <cstdint>
#include <span>
#include <vector>

/// A block as one run of bytes: layer behind layer; in a layer part behind part; in a part page behind page.
/// So what some layers need of a block is one run too, and pages that are neighbours in the engine's tensors
/// are neighbours here.
namespace harvest::kv {

/// Layers of a block that travel together.
struct BlockPiece {
  std::uint32_t group = 0;  ///< whose event tells of it
  std::uint32_t first_layer = 0;
  std::uint32_t layers = 0;
  std::uint64_t offset = 0;  ///< in the block
  std::uint64_t bytes = 0;
};

class BlockShape {
 public:
  /// Layers are grouped by `group_layers`; a group whose part of a block has more than `most_piece_bytes`
  /// travels in several pieces. Requires: a valid layout, block_pages > 0, group_layers > 0.
  BlockShape(const KvLayout& layout, std::uint32_t block_pages, std::uint32_t group_layers,
             std::uint64_t most_piece_bytes);

  [[nodiscard]] std::uint32_t pages() const { return pages_; }
  [[nodiscard]] std::uint64_t bytes() const { return layer_offset_.back(); }
  [[nodiscard]] std::uint32_t groups() const { return groups_; }
  [[nodiscard]] std::uint32_t group_of(std::uint32_t layer) const { return layer / group_layers_; }
  /// In the order of layers.
  [[nodiscard]] std::span<const BlockPiece> pieces() const { return pieces_; }
  [[nodiscard]] std::uint64_t largest_piece_bytes() const;
  /// How many bytes lie together in pages, on average.
  [[nodiscard]] std::uint64_t mean_run_bytes() const;

  /// Whether a layer needs a block that ends `tokens_behind` tokens before the end of the prefix.
  [[nodiscard]] bool needs(std::uint32_t layer, std::uint64_t tokens_behind) const;

  struct LayerRange {
    std::uint32_t first = 0;
    std::uint32_t layers = 0;
  };
  /// The layers of a piece that need such a block, neighbours together.
  void needed(const BlockPiece& piece, std::uint64_t tokens_behind, std::vector<LayerRange>& ranges) const;
  [[nodiscard]] std::uint64_t offset_of(std::uint32_t layer) const { return layer_offset_[layer]; }
  [[nodiscard]] std::uint64_t bytes_of(const LayerRange& range) const {
    return layer_offset_[range.first + range.layers] - layer_offset_[range.first];
  }

  /// Appends the copies from a block's bytes, from `layers.first` on, into its pages.
  void append_scatter(const LayerRange& layers, std::span<const std::uint32_t> pages, const std::byte* bytes,
                      std::vector<Copy>& copies) const;
  /// And the copies of a whole block from its pages to `bytes`.
  void append_gather(std::span<const std::uint32_t> pages, std::byte* bytes, std::vector<Copy>& copies) const;

 private:
  template <typename Visit>
  void visit_runs(const LayerRange& layers, std::span<const std::uint32_t> pages, Visit visit) const;

  KvLayout layout_;
  std::uint32_t pages_;
  std::uint32_t group_layers_;
  std::uint32_t groups_ = 0;
  std::vector<std::uint64_t> layer_offset_;  ///< one more than layers
  std::vector<std::uint32_t> first_part_;    ///< of each layer; one more than layers
  std::vector<BlockPiece> pieces_;
};

}  // namespace harvest::kv
