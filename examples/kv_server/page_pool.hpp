// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

namespace harvest::kv_server {

/// Which pages are whose. Pages are handed out by the block, and belong to one sequence at first. A block
/// that is complete may be shared under its key: others use it too, and when nobody does any more it stays
/// until its pages are needed.
/// Every page is free, or of a shared block, or with who took it.
class PagePool {
 public:
  /// Pages are handed out in an order that the seed draws. Requires: `block_pages` > 0.
  PagePool(std::uint32_t pages, std::uint32_t block_pages, std::uint64_t seed);

  /// Pages for so many blocks; nothing if there are not as many, whatever makes way. What makes way are
  /// blocks that nobody uses, the one that was left first first; their keys are added to `dropped`.
  [[nodiscard]] std::optional<std::vector<std::uint32_t>> take(std::size_t blocks, std::vector<Key>& dropped);
  void give_back(std::span<const std::uint32_t> pages);

  /// These pages, which the caller has, are this block's from now on, and the caller uses it. False if
  /// another copy has the name: the caller keeps the pages.
  bool share(const Key& key, std::span<const std::uint32_t> pages);
  /// One more uses the block. False if there is none.
  bool use(const Key& key);
  /// One less. Requires: somebody uses it.
  void leave(const Key& key);

  [[nodiscard]] std::size_t free_pages() const { return free_.size(); }

 private:
  struct Block {
    std::vector<std::uint32_t> pages;
    std::uint32_t users = 0;
    std::uint64_t left = 0;  ///< when the last user did
  };

  std::uint32_t block_pages_;
  std::vector<std::uint32_t> free_;
  std::map<Key, Block> shared_;
  std::uint64_t clock_ = 0;
};

}  // namespace harvest::kv_server
