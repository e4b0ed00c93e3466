// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

/// Where an engine keeps the keys and values of its tokens: in *pages* of some tokens each, scattered over
/// its tensors. Engines differ in how; a `KvLayout` says it, so that a block can be gathered from its
/// pages into one run of bytes and scattered into others again.
namespace harvest::kv {

/// What one layer keeps of a token.
struct KvLayer {
  std::uint32_t heads = 0;          ///< of keys and values; 1 for a latent
  std::uint32_t head_size = 0;      ///< elements
  std::uint32_t element_bytes = 2;  ///< bf16
  std::uint32_t parts = 2;          ///< keys and values; 1: a latent that serves as both (MLA)
  std::uint32_t window_tokens = 0;  ///< that attention looks back on; 0: all

  [[nodiscard]] std::uint64_t part_bytes_per_token() const;
  [[nodiscard]] std::uint64_t bytes_per_token() const { return parts * part_bytes_per_token(); }
  friend bool operator==(const KvLayer&, const KvLayer&) = default;
};

/// How tensors hold pages. In brackets the order of dimensions, the outermost first; what stands inside of
/// `rows` is an engine's own affair and is carried as it is.
enum class KvArrangement : std::uint8_t {
  layer_first,              ///< a tensor for each layer: [part][page][rows]; vLLM with FlashAttention
  layer_first_interleaved,  ///< a tensor for each layer: [page][part][rows]; vLLM with FlashInfer
  layer_first_split,        ///< a tensor for each part of each layer: [page][rows]; SGLang
  page_first,               ///< one tensor: [page][layer][part][rows]; TensorRT-LLM
  /// A tensor for each part of each layer, values transposed: keys [token][row], values [row][token];
  /// llama.cpp without flash attention. (With it, its values lie as its keys: `layer_first_split`.)
  transposed_values,
};
[[nodiscard]] std::span<const std::string_view> kv_arrangement_names();
[[nodiscard]] std::string_view to_string(KvArrangement arrangement);
/// Errors: not_found, with the known names in the message.
[[nodiscard]] Result<KvArrangement> kv_arrangement_from(std::string_view name);

/// One of the engine's tensors, on the consumer.
struct KvTensor {
  std::byte* address = nullptr;
  std::uint64_t bytes = 0;
};

/// One part of one layer. Page p of it is the `runs` runs of `run_bytes` bytes each that begin at
/// `base + p * page_stride_bytes + r * run_stride_bytes`.
struct KvPart {
  std::uint32_t layer = 0;
  std::byte* base = nullptr;
  std::uint64_t page_stride_bytes = 0;
  std::uint64_t run_bytes = 0;
  std::uint32_t runs = 1;
  std::uint64_t run_stride_bytes = 0;
};

struct KvLayout {
  std::uint32_t page_tokens = 16;
  std::uint32_t pages = 0;  ///< that the tensors have
  std::vector<KvLayer> layers;
  std::vector<KvPart> parts;  ///< in the order of the layers

  /// Describes an engine's tensors. In their order: by layer, and where each part has its own, keys first.
  /// Errors: invalid_argument (names the tensor, layer or field, its value and what it should be: another
  /// number of tensors, a null one, one whose size is not that of `pages` pages, or what `validate` says).
  [[nodiscard]] static Result<KvLayout> describe(KvArrangement arrangement, std::span<const KvLayer> layers,
                                                 std::uint32_t page_tokens, std::uint32_t pages,
                                                 std::span<const KvTensor> tensors);

  /// How many bytes each of those tensors has, in their order, for who allocates them. Errors: as `describe`.
  [[nodiscard]] static Result<std::vector<std::uint64_t>> tensor_bytes(KvArrangement arrangement,
                                                                       std::span<const KvLayer> layers,
                                                                       std::uint32_t page_tokens,
                                                                       std::uint32_t pages);

  [[nodiscard]] std::uint64_t bytes_per_token() const;
  [[nodiscard]] std::uint64_t page_bytes() const { return page_tokens * bytes_per_token(); }
  [[nodiscard]] std::uint64_t layer_page_bytes(std::uint32_t layer) const {
    return page_tokens * layers[layer].bytes_per_token();
  }

  /// For layouts that `describe` does not know. Errors: invalid_argument (names the field, value and limit):
  /// 1 to 1,024 layers, 1 to 65,536 tokens a page, at least 1 page, every layer with bytes and with parts
  /// that add up to them, in the order of layers, at most 1 GiB a page; a part's pages lie apart, whole or
  /// run by run. That parts lie apart is not checked, nor that the memory is there.
  [[nodiscard]] Status validate() const;
};

}  // namespace harvest::kv
