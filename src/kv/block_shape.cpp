// SPDX-License-Identifier: Apache-2.0
#include "kv/block_shape.hpp"

#include <algorithm>

namespace harvest::kv {

BlockShape::BlockShape(const KvLayout& layout, std::uint32_t block_pages, std::uint32_t group_layers,
                       std::uint64_t most_piece_bytes)
    : layout_(layout), pages_(block_pages), group_layers_(group_layers) {
  const auto layers = static_cast<std::uint32_t>(layout.layers.size());
  groups_ = (layers + group_layers - 1) / group_layers;
  std::uint64_t offset = 0;
  std::uint32_t part = 0;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    layer_offset_.push_back(offset);
    first_part_.push_back(part);
    while (part < layout.parts.size() && layout.parts[part].layer == layer) ++part;
    const std::uint64_t bytes = block_pages * layout.layer_page_bytes(layer);
    BlockPiece* last = pieces_.empty() ? nullptr : &pieces_.back();
    if (last != nullptr && last->group == group_of(layer) && last->bytes + bytes <= most_piece_bytes) {
      ++last->layers;
      last->bytes += bytes;
    } else {
      pieces_.push_back({group_of(layer), layer, 1, offset, bytes});
    }
    offset += bytes;
  }
  layer_offset_.push_back(offset);
  first_part_.push_back(part);
}

std::uint64_t BlockShape::largest_piece_bytes() const {
  std::uint64_t most = 0;
  for (const BlockPiece& piece : pieces_) most = std::max(most, piece.bytes);
  return most;
}

std::uint64_t BlockShape::mean_run_bytes() const {
  std::uint64_t runs = 0;
  for (const KvPart& part : layout_.parts) runs += part.runs;
  return layout_.page_bytes() / runs;
}

bool BlockShape::needs(std::uint32_t layer, std::uint64_t tokens_behind) const {
  const std::uint32_t window = layout_.layers[layer].window_tokens;
  return window == 0 || tokens_behind < window;
}

void BlockShape::needed(const BlockPiece& piece, std::uint64_t tokens_behind,
                        std::vector<LayerRange>& ranges) const {
  ranges.clear();
  for (std::uint32_t layer = piece.first_layer; layer < piece.first_layer + piece.layers; ++layer) {
    if (!needs(layer, tokens_behind)) continue;
    if (!ranges.empty() && ranges.back().first + ranges.back().layers == layer)
      ++ranges.back().layers;
    else
      ranges.push_back({layer, 1});
  }
}

/// Calls `visit(in_page, offset, bytes)` for each run, with the offset from the range's beginning.
template <typename Visit>
void BlockShape::visit_runs(const LayerRange& layers, std::span<const std::uint32_t> pages,
                            Visit visit) const {
  std::uint64_t offset = 0;
  for (std::uint32_t number = first_part_[layers.first]; number < first_part_[layers.first + layers.layers];
       ++number) {
    const KvPart& part = layout_.parts[number];
    for (const std::uint32_t page : pages) {
      std::byte* run = part.base + page * part.page_stride_bytes;
      for (std::uint32_t i = 0; i < part.runs; ++i) {
        visit(run, offset, part.run_bytes);
        run += part.run_stride_bytes;
        offset += part.run_bytes;
      }
    }
  }
}

void BlockShape::append_scatter(const LayerRange& layers, std::span<const std::uint32_t> pages,
                                const std::byte* bytes, std::vector<Copy>& copies) const {
  visit_runs(layers, pages, [&](std::byte* in_page, std::uint64_t offset, std::uint64_t size) {
    copies.push_back({in_page, bytes + offset, size});
  });
}

void BlockShape::append_gather(std::span<const std::uint32_t> pages, std::byte* bytes,
                               std::vector<Copy>& copies) const {
  const LayerRange all{0, static_cast<std::uint32_t>(layout_.layers.size())};
  visit_runs(all, pages, [&](std::byte* in_page, std::uint64_t offset, std::uint64_t size) {
    copies.push_back({bytes + offset, in_page, size});
  });
}

}  // namespace harvest::kv
