// SPDX-License-Identifier: Apache-2.0
#include "kv_server/page_pool.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "transformer/random.hpp"

namespace harvest::kv_server {

PagePool::PagePool(std::uint32_t pages, std::uint32_t block_pages, std::uint64_t seed)
    : block_pages_(block_pages), free_(pages) {
  std::iota(free_.begin(), free_.end(), 0);
  transformer::Random random(seed);
  for (std::size_t i = free_.size(); i > 1; --i) std::swap(free_[i - 1], free_[random.below(i)]);
}

std::optional<std::vector<std::uint32_t>> PagePool::take(std::size_t blocks, std::vector<Key>& dropped) {
  const std::size_t needed = blocks * block_pages_;
  std::vector<std::pair<std::uint64_t, Key>> unused;
  for (const auto& [key, block] : shared_)
    if (block.users == 0) unused.emplace_back(block.left, key);
  if (free_.size() + unused.size() * block_pages_ < needed) return std::nullopt;

  std::ranges::sort(unused);
  for (auto next = unused.begin(); free_.size() < needed; ++next) {
    const auto block = shared_.find(next->second);
    give_back(block->second.pages);
    shared_.erase(block);
    dropped.push_back(next->second);
  }
  const auto first = free_.end() - static_cast<std::ptrdiff_t>(needed);
  std::vector<std::uint32_t> taken(first, free_.end());
  free_.erase(first, free_.end());
  return taken;
}

void PagePool::give_back(std::span<const std::uint32_t> pages) {
  free_.insert(free_.end(), pages.begin(), pages.end());
}

bool PagePool::share(const Key& key, std::span<const std::uint32_t> pages) {
  return shared_.try_emplace(key, Block{.pages = {pages.begin(), pages.end()}, .users = 1}).second;
}

bool PagePool::use(const Key& key) {
  const auto block = shared_.find(key);
  if (block == shared_.end()) return false;
  ++block->second.users;
  return true;
}

void PagePool::leave(const Key& key) {
  Block& block = shared_.at(key);
  if (--block.users == 0) block.left = ++clock_;
}

}  // namespace harvest::kv_server
