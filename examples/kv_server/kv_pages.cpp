// SPDX-License-Identifier: Apache-2.0
#include "kv_server/kv_pages.hpp"

#include <algorithm>

namespace harvest::kv_server {
namespace {

constexpr std::uint32_t kParts = 2;  // keys and values

/// Of one tensor, where an arrangement has several.
std::uint64_t tensors_of(kv::KvArrangement arrangement, std::uint32_t layers) {
  switch (arrangement) {
    case kv::KvArrangement::page_first: return 1;
    case kv::KvArrangement::layer_first:
    case kv::KvArrangement::layer_first_interleaved: return layers;
    default: return std::uint64_t{kParts} * layers;
  }
}

}  // namespace

KvRow row_of(const kv::KvLayout& layout, std::uint32_t layer, std::uint32_t part, std::uint32_t page,
             std::uint32_t token) {
  const kv::KvPart& lies = layout.parts[kParts * layer + part];
  std::byte* const begin = lies.base + page * lies.page_stride_bytes;
  const bool transposed = lies.runs > 1;  // a run for each element, with that of all tokens
  const std::uint64_t token_bytes = transposed ? sizeof(float) : lies.run_bytes / layout.page_tokens;
  return {.first = reinterpret_cast<float*>(begin + token * token_bytes),
          .stride = transposed ? lies.run_stride_bytes / sizeof(float) : 1};
}

Result<std::unique_ptr<KvPages>> KvPages::create(Backend& backend, const Shape& shape,
                                                 kv::KvArrangement arrangement, std::uint32_t page_tokens,
                                                 std::uint32_t pages) {
  const std::vector<kv::KvLayer> layers(
      shape.layers,
      {.heads = shape.kv_heads, .head_size = shape.head_size(), .element_bytes = sizeof(float)});
  const std::uint64_t bytes = layers.front().bytes_per_token() * shape.layers * page_tokens * pages;
  const std::uint64_t granularity = backend.devices().front().segment_granularity_bytes;
  const auto memory = backend.map_segment(0, (bytes + granularity - 1) / granularity * granularity, {});
  if (!memory) return tl::unexpected(memory.error());
  std::unique_ptr<KvPages> made(new KvPages(backend, *memory));

  std::vector<kv::KvTensor> tensors(tensors_of(arrangement, shape.layers));
  const std::uint64_t tensor_bytes = bytes / tensors.size();
  for (std::size_t i = 0; i < tensors.size(); ++i)
    tensors[i] = {.address = *memory + i * tensor_bytes, .bytes = tensor_bytes};
  auto layout = kv::KvLayout::describe(arrangement, layers, page_tokens, pages, tensors);
  if (!layout) return tl::unexpected(layout.error());
  made->layout_ = std::move(*layout);
  return made;
}

KvPages::~KvPages() {
  // It was mapped by us, and the device that it is on cannot have been lost: nothing would be served.
  static_cast<void>(backend_.unmap_segment(memory_));
}

}  // namespace harvest::kv_server
