// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/kv/layout.hpp>
#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "transformer/kv_memory.hpp"
#include "transformer/model.hpp"

namespace harvest::kv_server {

using namespace transformer;

/// Keys or values, of one layer, of one of the tokens of a page. Requires: a layout of float32 with two parts
/// for each layer, as `KvLayout::describe` makes it.
[[nodiscard]] KvRow row_of(const kv::KvLayout& layout, std::uint32_t layer, std::uint32_t part,
                           std::uint32_t page, std::uint32_t token);

/// Pages on GPU 0, in tensors as one of the engines that `KvArrangement` names has them.
class KvPages {
 public:
  /// `backend` outlives the answer. Errors: those of `map_segment` and `KvLayout::describe`.
  [[nodiscard]] static Result<std::unique_ptr<KvPages>> create(Backend& backend, const Shape& shape,
                                                               kv::KvArrangement arrangement,
                                                               std::uint32_t page_tokens,
                                                               std::uint32_t pages);
  /// Requires: nothing is under way that reads or writes them.
  ~KvPages();
  KvPages(const KvPages&) = delete;
  KvPages& operator=(const KvPages&) = delete;

  [[nodiscard]] const kv::KvLayout& layout() const { return layout_; }

 private:
  KvPages(Backend& backend, std::byte* memory) : backend_(backend), memory_(memory) {}

  Backend& backend_;
  std::byte* memory_;
  kv::KvLayout layout_;
};

}  // namespace harvest::kv_server
