// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "moe/impl.hpp"

/// Weights: how an expert becomes objects of the PeerCache.
namespace harvest::moe {

Status ExpertCache::Impl::pin_weights(std::byte* address, std::uint64_t bytes) {
  MutexLock lock(mutex_);
  if (Status status = backend_.register_host(address, bytes); !status) return status;
  pinned_.push_back(address);
  return {};
}

Status ExpertCache::Impl::add(std::uint32_t layer, std::uint32_t expert, const std::byte* weights) {
  std::vector<const std::byte*> tensors;
  for (std::size_t i = 0; i < config_.model.tensors.size(); ++i)
    tensors.push_back(weights == nullptr ? nullptr : weights + config_.model.tensor_offset(i));
  return add(layer, expert, tensors);
}

/// Tensors that follow each other in host memory as in the slot make one run; runs are cut into pieces.
std::vector<Piece> ExpertCache::Impl::cut(std::uint32_t layer, std::uint32_t number,
                                          std::span<const std::byte* const> tensors) const {
  std::vector<Piece> pieces;
  const auto add_run = [&](std::uint64_t begin, std::uint64_t end, const std::byte* source) {
    const std::uint64_t count = (end - begin + config_.piece_bytes - 1) / config_.piece_bytes;
    const std::uint64_t most = round_up((end - begin + count - 1) / count, kPieceAlignment);
    for (std::uint64_t at = begin; at < end; at += most) {
      const Key key(config_.key_space, static_cast<std::uint64_t>(layer) << 40 |
                                           static_cast<std::uint64_t>(number) << 20 | pieces.size());
      pieces.push_back({key, source + (at - begin), at, std::min(most, end - at)});
    }
  };
  const auto& specs = config_.model.tensors;
  for (std::size_t i = 0; i < tensors.size();) {
    const std::uint64_t begin = config_.model.tensor_offset(i);
    std::uint64_t end = begin + specs[i].bytes;
    std::size_t next = i + 1;
    while (next < tensors.size() && config_.model.tensor_offset(next) - begin ==
                                        static_cast<std::uint64_t>(tensors[next] - tensors[i])) {
      end = config_.model.tensor_offset(next) + specs[next].bytes;
      ++next;
    }
    add_run(begin, end, tensors[i]);
    i = next;
  }
  return pieces;
}

/// Puts the pieces, all or none. Not under the lock: the PeerCache calls its user back, who may call us.
Status ExpertCache::Impl::put(std::span<const Piece> pieces) {
  PutOptions options;
  options.backing = Backing::external_host;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    Status status;
    if (cache_.locate(piece.key) != Tier::none)
      status = fail(
          ErrorCode::invalid_argument,
          fmt::format("the PeerCache has an object of the key {:#x}:{:#x} already; two caches of experts "
                      "on it differ in key_space",
                      piece.key.high, piece.key.low));
    else if (const auto put = cache_.put(piece.key, piece.source, piece.bytes, options); !put)
      status = tl::unexpected(put.error());
    if (status) continue;
    for (const Piece& done : pieces.first(i)) static_cast<void>(cache_.erase(done.key));
    return status;
  }
  return {};
}

Status ExpertCache::Impl::add(std::uint32_t layer, std::uint32_t number,
                              std::span<const std::byte* const> tensors) {
  if (Status status = check_expert(layer, number); !status) return status;
  const auto& specs = config_.model.tensors;
  if (tensors.size() != specs.size())
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} tensors for an expert, the model has {}", tensors.size(), specs.size()));
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (tensors[i] == nullptr)
      return fail(ErrorCode::invalid_argument, fmt::format("tensor {} ({}) is null", i, specs[i].name));
  const std::vector<Piece> pieces = cut(layer, number, tensors);

  MutexLock lock(mutex_);
  Expert& expert = experts_[index_of(layer, number)];
  if (expert.pieces > 0 || expert.being_added)
    return fail(ErrorCode::invalid_argument,
                fmt::format("expert {} of layer {} is known already", number, layer));
  expert.being_added = true;
  lock.unlock();
  const Status given = put(pieces);
  lock.lock();
  expert.being_added = false;
  if (!given) return given;
  expert.first_piece = static_cast<std::uint32_t>(pieces_.size());
  expert.pieces = static_cast<std::uint32_t>(pieces.size());
  pieces_.insert(pieces_.end(), pieces.begin(), pieces.end());
  return {};
}

}  // namespace harvest::moe
