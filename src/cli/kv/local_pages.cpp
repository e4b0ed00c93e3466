// SPDX-License-Identifier: Apache-2.0
#include "cli/kv/local_pages.hpp"

namespace harvest::cli {

LocalPages::LocalPages(std::uint32_t pages) : pages_(pages), available_(pages) {
  for (std::uint32_t page = 0; page < pages; ++page) link_last(page);
}

std::optional<std::uint32_t> LocalPages::find(const Key& key) const {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return std::nullopt;
  return found->second;
}

std::uint32_t LocalPages::take() {
  const std::uint32_t number = first_;
  Page& page = pages_[number];
  unlink(number);
  --available_;
  if (page.named) {
    if (on_forget) on_forget(page.key, number);
    by_key_.erase(page.key);
    page.named = false;
  }
  page.users = 1;
  return number;
}

void LocalPages::use(std::uint32_t number) {
  Page& page = pages_[number];
  if (page.users++ > 0) return;
  unlink(number);
  --available_;
}

void LocalPages::let_go(std::uint32_t number) {
  Page& page = pages_[number];
  if (--page.users > 0) return;
  ++available_;
  // What means nothing goes before anything that does.
  if (page.named)
    link_last(number);
  else
    link_first(number);
}

bool LocalPages::name(std::uint32_t number, const Key& key) {
  if (!by_key_.try_emplace(key, number).second) return false;
  pages_[number].key = key;
  pages_[number].named = true;
  return true;
}

void LocalPages::unlink(std::uint32_t number) {
  Page& page = pages_[number];
  (page.before == kNone ? first_ : pages_[page.before].behind) = page.behind;
  (page.behind == kNone ? last_ : pages_[page.behind].before) = page.before;
  page.before = page.behind = kNone;
}

void LocalPages::link_last(std::uint32_t number) {
  pages_[number].before = last_;
  (last_ == kNone ? first_ : pages_[last_].behind) = number;
  last_ = number;
}

void LocalPages::link_first(std::uint32_t number) {
  pages_[number].behind = first_;
  (first_ == kNone ? last_ : pages_[first_].before) = number;
  first_ = number;
}

}  // namespace harvest::cli
