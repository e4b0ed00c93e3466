// SPDX-License-Identifier: Apache-2.0
#include "kv_server/paged_kv.hpp"

#include <algorithm>
#include <utility>

namespace harvest::kv_server {

PagedKv::PagedKv(const KvPages& pages, kv::BlockCache* blocks, Config config, StreamId stream, Pauses pauses)
    : pages_(pages),
      blocks_(blocks),
      config_(config),
      block_tokens_(config.block_pages * pages.layout().page_tokens),
      stream_(stream),
      pauses_(std::move(pauses)),
      pool_(pages.layout().pages, config.block_pages, config.seed),
      sequences_(config.sequences) {}

KvRow PagedKv::keys(std::uint32_t layer, std::uint32_t sequence, std::uint32_t position) {
  return row(layer, 0, sequence, position);
}

KvRow PagedKv::values(std::uint32_t layer, std::uint32_t sequence, std::uint32_t position) {
  return row(layer, 1, sequence, position);
}

KvRow PagedKv::row(std::uint32_t layer, std::uint32_t part, std::uint32_t sequence,
                   std::uint32_t position) const {
  const std::uint32_t page_tokens = pages_.layout().page_tokens;
  const std::uint32_t page = sequences_[sequence]->pages[position / page_tokens];
  return row_of(pages_.layout(), layer, part, page, position % page_tokens);
}

std::span<const std::uint32_t> PagedKv::block_pages(const Sequence& sequence, std::size_t first,
                                                    std::size_t count) const {
  return std::span(sequence.pages).subspan(first * config_.block_pages, count * config_.block_pages);
}

Result<std::optional<std::uint32_t>> PagedKv::enter(std::uint32_t sequence,
                                                    std::span<const std::uint32_t> prompt,
                                                    std::uint32_t positions) {
  Sequence comes(block_tokens_);
  comes.keys.append(prompt);
  // At least the last token is computed: the next is chosen from its scores.
  const std::size_t most_known = blocks_ == nullptr ? 0 : (prompt.size() - 1) / block_tokens_;
  const std::size_t blocks = (positions + block_tokens_ - 1) / block_tokens_;
  const auto taken = take_pages(comes, most_known, blocks);
  if (!taken) return tl::unexpected(taken.error());
  if (!*taken) return std::optional<std::uint32_t>();
  const auto known = blocks_ == nullptr ? Result<std::size_t>(0) : begin_load(comes, most_known);
  if (!known) {
    let_go(comes);
    return tl::unexpected(known.error());
  }
  sequences_[sequence] = std::move(comes);
  return std::optional(static_cast<std::uint32_t>(*known * block_tokens_));
}

Result<bool> PagedKv::take_pages(Sequence& sequence, std::size_t most_known, std::size_t blocks) {
  const auto keys = sequence.keys.keys();
  while (sequence.kept < most_known && pool_.use(keys[sequence.kept])) ++sequence.kept;
  std::vector<Key> dropped;
  const auto taken = pool_.take(blocks - sequence.kept, dropped);
  if (!taken) {
    for (std::size_t block = sequence.kept; block-- > 0;) pool_.leave(keys[block]);
    return false;
  }
  sequence.shared.assign(blocks, false);
  for (std::size_t block = 0; block < sequence.kept; ++block) {
    sequence.shared[block] = true;
    const auto pages = blocks_->local_pages(keys[block]);
    sequence.pages.insert(sequence.pages.end(), pages.begin(), pages.end());
  }
  sequence.pages.insert(sequence.pages.end(), taken->begin(), taken->end());
  if (blocks_ == nullptr) return true;

  stats_.dropped_blocks += dropped.size();
  blocks_->forget_local(dropped);
  if (Status ordered = blocks_->order_behind_stores(*taken, stream_); !ordered) {
    let_go(sequence);
    return tl::unexpected(ordered.error());
  }
  return true;
}

Result<std::size_t> PagedKv::begin_load(Sequence& sequence, std::size_t most_known) {
  const std::size_t shared = sequence.kept;
  const auto keys = sequence.keys.keys().first(most_known);
  const kv::PrefixMatch match = blocks_->lookup(keys);
  const std::size_t found = match.blocks;
  stats_.shared_tokens += shared * block_tokens_;
  if (found <= shared) return shared;
  if (match.recompute_ns > 0 && match.load_ns > match.recompute_ns) {
    ++stats_.declined_loads;
    return shared;
  }
  if (Status done = pauses_.before_load(); !done) return tl::unexpected(done.error());

  auto load = blocks_->load(keys.subspan(shared, found - shared),
                            block_pages(sequence, shared, found - shared), stream_);
  if (!load && load.error().code == ErrorCode::invalid_argument) return tl::unexpected(load.error());
  if (!load) {
    ++stats_.refused_loads;
    return shared;
  }
  sequence.load = std::move(*load);
  sequence.first_loaded = shared;
  stats_.promised_tokens += (found - shared) * block_tokens_;
  return found;
}

template <typename Visit>
void PagedKv::for_each_loading(std::span<const Row> rows, Visit visit) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::uint32_t place = rows[i].sequence;
    const bool first = i == 0 || rows[i - 1].sequence != place;  // a sequence's rows are neighbours
    if (first && sequences_[place]->load) visit(place, *sequences_[place]);
  }
}

Status PagedKv::order_behind(std::uint32_t layer, std::span<const Row> rows) {
  if (Status done = pauses_.before_layer(); !done) return done;
  Status ordered;
  for_each_loading(rows, [&](std::uint32_t, Sequence& sequence) {
    if (ordered) ordered = sequence.load->order_behind(layer, stream_);
  });
  return ordered;
}

std::vector<KvRange> PagedKv::confirm(std::span<const Row> rows) {
  std::vector<KvRange> missing;
  for_each_loading(rows, [&](std::uint32_t place, Sequence& sequence) {
    for (const std::uint32_t block : sequence.load->finish()) {
      const auto first = static_cast<std::uint32_t>((sequence.first_loaded + block) * block_tokens_);
      missing.push_back({.sequence = place, .first = first, .count = block_tokens_});
    }
    sequence.load.reset();
  });
  stats_.lost_blocks += missing.size();
  return missing;
}

Status PagedKv::keep(std::uint32_t place, std::span<const std::uint32_t> tokens) {
  if (blocks_ == nullptr) return {};
  Sequence& sequence = *sequences_[place];
  if (tokens.size() > sequence.keys.tokens()) sequence.keys.append(tokens.subspan(sequence.keys.tokens()));
  const std::size_t first = sequence.kept;
  const std::size_t whole = tokens.size() / block_tokens_;
  if (whole <= first) return {};
  sequence.kept = whole;
  const auto keys = sequence.keys.keys().subspan(first, whole - first);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto pages = block_pages(sequence, first + i, 1);
    if (!pool_.share(keys[i], pages)) continue;
    sequence.shared[first + i] = true;
    if (Status noted = blocks_->note_local(keys.subspan(i, 1), pages); !noted) return noted;
  }
  const auto parent = first == 0 ? std::nullopt : std::optional(sequence.keys.keys()[first - 1]);
  const auto stored = blocks_->store(keys, block_pages(sequence, first, keys.size()), stream_, parent);
  return stored ? Status() : tl::unexpected(stored.error());
}

void PagedKv::leave(std::uint32_t place) {
  let_go(*sequences_[place]);
  sequences_[place].reset();
}

/// The last block is left first: what hangs on another makes way before it.
void PagedKv::let_go(Sequence& sequence) {
  for (std::size_t block = sequence.shared.size(); block-- > 0;)
    if (sequence.shared[block])
      pool_.leave(sequence.keys.keys()[block]);
    else
      pool_.give_back(block_pages(sequence, block, 1));
}

}  // namespace harvest::kv_server
