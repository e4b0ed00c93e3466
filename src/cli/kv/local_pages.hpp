// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstdint>
#include <functional>
#include <optional>
#include <unordered_map>
#include <vector>

namespace harvest::cli {

/// A serving engine's pages on its GPU. A page that nobody uses keeps its content, and its name, until the
/// memory is needed: the prefix cache in local memory. What was let go of longest ago makes way first.
/// Invariant: free + kept + used == all. Not thread-safe.
class LocalPages {
 public:
  explicit LocalPages(std::uint32_t pages);

  /// Called with the name of a page that is about to be used for something else.
  std::function<void(const Key&, std::uint32_t page)> on_forget{};

  [[nodiscard]] std::uint32_t size() const { return static_cast<std::uint32_t>(pages_.size()); }
  /// That `take` can give: free, or kept for their content alone.
  [[nodiscard]] std::uint32_t available() const { return available_; }
  /// The page that holds this block.
  [[nodiscard]] std::optional<std::uint32_t> find(const Key& key) const;
  /// Requires: one is available. Its content is undefined, it has no name and one user.
  [[nodiscard]] std::uint32_t take();
  /// One more user of a page. Requires: it has a name or users.
  void use(std::uint32_t page);
  /// One user less.
  void let_go(std::uint32_t page);
  /// The page holds this block now. Does nothing where another page does already; answers if it did.
  bool name(std::uint32_t page, const Key& key);

 private:
  static constexpr std::uint32_t kNone = UINT32_MAX;
  struct Page {
    Key key{};
    bool named = false;
    std::uint32_t users = 0;
    std::uint32_t before = kNone;  ///< in the list of those without users, the oldest first
    std::uint32_t behind = kNone;
  };
  struct Hash {
    std::size_t operator()(const Key& key) const {
      return static_cast<std::size_t>((key.low ^ key.high) * 0x9E37'79B9'7F4A'7C15ULL);
    }
  };
  void unlink(std::uint32_t page);
  void link_last(std::uint32_t page);
  void link_first(std::uint32_t page);

  std::vector<Page> pages_;
  std::unordered_map<Key, std::uint32_t, Hash> by_key_;
  std::uint32_t first_ = kNone;
  std::uint32_t last_ = kNone;
  std::uint32_t available_ = 0;
};

}  // namespace harvest::cli
