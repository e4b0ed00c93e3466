// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/assert.hpp"
#include "moe/impl.hpp"

/// How a cache of experts begins and ends, what it is told, and what it tells.
namespace harvest::moe {
namespace {

constexpr std::uint64_t kLeastPieceBytes = 64ULL << 10;
constexpr std::uint64_t kMostPieceBytes = 1ULL << 30;
constexpr std::uint64_t kUsualPieces = 8;  // fewer keep lanes idle at the end; each more costs a copy
constexpr std::uint64_t kLeastUsualPieceBytes = 4ULL << 20;
constexpr std::uint64_t kMostUsualPieceBytes = 16ULL << 20;
constexpr double kForgetting = 1.0 / 32.0;  // a frequency halves in 22 passes without use
constexpr std::size_t kDecays = 512;        // after which a frequency is nothing
constexpr TimeNs kSettleNs = 60'000'000'000;

Status outside(std::string_view field, double value, double least, double most) {
  return fail(ErrorCode::invalid_argument,
              fmt::format("{} is {}, the limits are {} and {}", field, value, least, most));
}

Status check(const ExpertCacheConfig& config) {
  if (Status status = config.model.validate(); !status) return status;
  if (config.piece_bytes != 0 &&
      (config.piece_bytes < kLeastPieceBytes || config.piece_bytes > kMostPieceBytes))
    return fail(ErrorCode::invalid_argument,
                fmt::format("piece_bytes is {}, the limits are {} and {}, or 0", config.piece_bytes,
                            kLeastPieceBytes, kMostPieceBytes));
  const std::uint64_t slot = config.model.slot_bytes();
  const std::uint64_t needed = std::min(2U, config.model.layers * config.model.experts) * slot;
  if (config.local_budget_bytes < needed)
    return fail(ErrorCode::invalid_argument,
                fmt::format("local_budget_bytes is {}, at least {} for two experts",
                            config.local_budget_bytes, needed));
  if (config.head_tensors > config.model.tensors.size())
    return fail(ErrorCode::invalid_argument, fmt::format("head_tensors is {}, an expert has {}",
                                                         config.head_tensors, config.model.tensors.size()));
  if (!(config.prefetch_probability >= 0 && config.prefetch_probability <= 1))
    return outside("prefetch_probability", config.prefetch_probability, 0, 1);
  if (config.prefetch_layers < 1 || config.prefetch_layers > config.model.layers)
    return outside("prefetch_layers", config.prefetch_layers, 1, config.model.layers);
  if (config.prefetch_window_ns < 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("prefetch_window_ns is {}, at least 0", config.prefetch_window_ns));
  return {};
}

std::uint32_t slots_for(const ExpertCacheConfig& config) {
  const std::uint64_t slot = config.model.slot_bytes();
  const std::uint64_t experts = static_cast<std::uint64_t>(config.model.layers) * config.model.experts;
  return static_cast<std::uint32_t>(std::min(config.local_budget_bytes / slot, experts));
}

std::uint64_t bytes_of_head(const ExpertCacheConfig& config) {
  const bool all = config.head_tensors == 0 || config.head_tensors == config.model.tensors.size();
  return all ? UINT64_MAX : config.model.tensor_offset(config.head_tensors);
}

std::string_view or_first(std::string_view name, std::span<const std::string_view> names) {
  return name.empty() ? names.front() : name;
}

/// Two layers of which each misses some experts cost less than one that misses none and one that misses all:
/// a wire that waits for nothing, beside a GPU that waits for much. So the default, of experts that are
/// nearly as likely, keeps as many of each layer. It gives the turn of a layer up for that where a quarter of
/// the layer's experts are more here.
double evenness_of(const ExpertCacheConfig& config) {
  constexpr double kPassesForAll = 4;
  const bool by_default = !config.slot_value && or_first(config.eviction, expert_eviction_names()) ==
                                                    expert_eviction_names().front();
  return by_default ? kPassesForAll * config.model.layers / config.model.experts : 0;
}

}  // namespace

ExpertCache::Impl::Impl(PeerCache& cache, ExpertCacheConfig config, SlotValue slot_value)
    : cache_(cache),
      backend_(cache.backend()),
      config_(std::move(config)),
      slot_bytes_(config_.model.slot_bytes()),
      head_bytes_(bytes_of_head(config_)),
      slot_count_(slots_for(config_)),
      slot_value_(std::move(slot_value)),
      uses_(backend_),
      slots_(slot_count_, config_.model.layers, evenness_of(config_)),
      lanes_(backend_),
      stalls_(backend_, lanes_) {
  for (std::size_t i = 0; i < kDecays; ++i)
    decay_.push_back(static_cast<float>(std::pow(1.0 - kForgetting, static_cast<double>(i))));
  const std::uint32_t count = config_.model.layers * config_.model.experts;
  experts_.resize(count);
  by_heat_.resize(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    experts_[i].layer = i / config_.model.experts;
    experts_[i].number = i % config_.model.experts;
    by_heat_[i] = i;
  }
  steps_.resize(kMostSteps);
  for (Step& step : steps_) step.entries.reserve(config_.model.experts);
  layer_step_.assign(config_.model.layers, 0);
  layer_pass_.assign(config_.model.layers, 0);
  ready_ns_.assign(slot_count_, 0);
  avoid_until_ns_.assign(backend_.devices().size(), 0);
  stats_.layers.resize(config_.model.layers);
}

Result<std::unique_ptr<ExpertCache::Impl>> ExpertCache::Impl::create(PeerCache& cache,
                                                                     ExpertCacheConfig config) {
  if (Status status = check(config); !status) return tl::unexpected(status.error());
  if (config.piece_bytes == 0)
    config.piece_bytes =
        std::clamp(config.model.expert_bytes() / kUsualPieces, kLeastUsualPieceBytes, kMostUsualPieceBytes);
  SlotValue value = config.slot_value;
  if (!value) {
    auto made = make_slot_value(or_first(config.eviction, expert_eviction_names()));
    if (!made) return tl::unexpected(made.error());
    value = std::move(*made);
  }
  const auto name = or_first(config.predictor, predictor_names());
  auto predictor = make_predictor(name, config.model);
  if (!predictor) return tl::unexpected(predictor.error());
  std::unique_ptr<Impl> impl(new Impl(cache, std::move(config), std::move(value)));
  if (name != predictor_names().front()) impl->set_predictor(std::move(*predictor));
  if (Status status = impl->begin_life(); !status) return tl::unexpected(status.error());
  return impl;
}

Status ExpertCache::Impl::begin_life() {
  MutexLock lock(mutex_);
  const DeviceId consumer = cache_.config().consumer;
  if (Status status = lanes_.open(consumer); !status) return status;
  const Topology& topology = cache_.topology();
  const std::uint64_t granularity = topology.device(consumer)->segment_granularity_bytes;
  auto mapped = backend_.map_segment(consumer, round_up(slot_count_ * slot_bytes_, granularity), {});
  if (!mapped) return tl::unexpected(mapped.error());
  memory_ = *mapped;

  const Path* const from_host = topology.path(kHost, consumer);
  if (from_host != nullptr) know_wire(Wire::host, from_host->link);
  for (const PoolStats& pool : cache_.stats().pools) {
    const Path* const path = pool.tier == Tier::peer ? topology.path(pool.device, consumer) : nullptr;
    if (path == nullptr) continue;
    know_wire(Wire::peers, path->link);
    wires_apart_ =
        path->link.kind != LinkKind::pcie || (from_host != nullptr && from_host->link.kind != LinkKind::pcie);
  }
  demand_until_ns_.fill(backend_.now_ns());
  allowance_at_ns_ = backend_.now_ns();
  return {};
}

/// Of several peers the slowest counts.
void ExpertCache::Impl::know_wire(Wire wire, const LinkInfo& link) {
  const auto number = static_cast<std::size_t>(wire);
  ns_per_byte_[number] = std::max(ns_per_byte_[number], 1e9 / link.bandwidth_bytes_per_s);
  // What a copy costs beside its bytes hides behind the bytes of the wire's other lanes.
  if (kLanesOfWire[number] == 1) piece_ns_[number] = link.issue_ns + link.latency_ns;
}

ExpertCache::Impl::~Impl() {
  MutexLock lock(mutex_);
  for (const Step& step : steps_)
    HARVEST_ASSERT(!step.open, "a cache of experts ends before its layer steps");
  lanes_.close();
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot)
    for (Use& use : slots_.at(slot).uses) {
      static_cast<void>(find_end(use));
      if (use.event != kNone) static_cast<void>(backend_.wait_event(uses_.event(use.event), kNever));
    }
  if (memory_ != nullptr) static_cast<void>(backend_.unmap_segment(memory_));
  if (!pieces_.empty()) {
    std::vector<Key> keys;
    for (const Piece& piece : pieces_) keys.push_back(piece.key);
    lock.unlock();  // the PeerCache calls its user back
    for (const Key& key : keys) static_cast<void>(cache_.erase(key));
    // Promotions under way still read the caller's weights.
    static_cast<void>(cache_.settle(backend_.now_ns() + kSettleNs));
    lock.lock();
  }
  for (std::byte* address : pinned_) static_cast<void>(backend_.unregister_host(address));
}

Status ExpertCache::Impl::check_expert(std::uint32_t layer, std::uint32_t expert) const {
  if (layer >= config_.model.layers)
    return fail(ErrorCode::invalid_argument,
                fmt::format("layer {}; the model has layers 0 to {}", layer, config_.model.layers - 1));
  if (expert >= config_.model.experts)
    return fail(ErrorCode::invalid_argument, fmt::format("expert {} of layer {}; a layer has experts 0 to {}",
                                                         expert, layer, config_.model.experts - 1));
  return {};
}

Tier ExpertCache::Impl::locate(std::uint32_t layer, std::uint32_t number) {
  MutexLock lock(mutex_);
  if (!check_expert(layer, number)) return Tier::none;
  settle();
  const Expert& expert = experts_[index_of(layer, number)];
  if (expert.pieces == 0) return Tier::none;
  if (expert.slot != kNone && is_here(slots_.at(expert.slot))) return Tier::local;
  const auto pieces = pieces_of(expert);
  return std::all_of(pieces.begin(), pieces.end(), [&](const Piece& piece) { return is_on_peers(piece); })
             ? Tier::peer
             : Tier::host;
}

ExpertCacheStats ExpertCache::Impl::stats() {
  MutexLock lock(mutex_);
  settle();
  ExpertCacheStats stats = stats_;
  stats.exposed_stall_ns = stalls_.times().exposed_ns;
  stats.hidden_stall_ns = stalls_.times().hidden_ns;
  stats.unseen_stall_ns = stalls_.times().unseen_ns;
  stats.slots = slots_.size();
  stats.slots_used = slots_.used();
  stats.experts_on_peers = experts_on_peers_;
  return stats;
}

std::uint64_t ExpertCacheStats::experts(Phase phase, Tier tier) const {
  std::uint64_t sum = 0;
  for (const auto& layer : layers)
    sum += layer[static_cast<std::size_t>(phase)].experts[static_cast<std::size_t>(tier)];
  return sum;
}

// --- the face ----------------------------------------------------------------------------------------------

ExpertCache::ExpertCache(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ExpertCache::~ExpertCache() = default;

Result<std::unique_ptr<ExpertCache>> ExpertCache::create(PeerCache& cache, ExpertCacheConfig config) {
  auto impl = Impl::create(cache, std::move(config));
  if (!impl) return tl::unexpected(impl.error());
  return std::unique_ptr<ExpertCache>(new ExpertCache(std::move(*impl)));
}

Status ExpertCache::pin_weights(std::byte* address, std::uint64_t bytes) {
  return impl_->pin_weights(address, bytes);
}
Status ExpertCache::add_expert(std::uint32_t layer, std::uint32_t expert,
                               std::span<const std::byte* const> tensors) {
  return impl_->add(layer, expert, tensors);
}
Status ExpertCache::add_expert(std::uint32_t layer, std::uint32_t expert, const std::byte* weights) {
  return impl_->add(layer, expert, weights);
}

Result<LayerStep> ExpertCache::begin_layer(std::uint32_t layer, std::span<const std::uint32_t> experts,
                                           StreamId stream, Phase phase) {
  const auto step = impl_->begin(layer, experts, stream, phase);
  if (!step) return tl::unexpected(step.error());
  return LayerStep(this, *step);
}
Status ExpertCache::end_layer(LayerStep step) {
  if (step.cache_ == nullptr) return {};
  HARVEST_ASSERT(step.cache_ == this, "a layer step ends at the cache where it began");
  step.cache_ = nullptr;
  return impl_->end(step.step_);
}
Status ExpertCache::confirm() {
  return impl_->confirm();
}

Result<PrefetchId> ExpertCache::prefetch(std::uint32_t layer, std::span<const std::uint32_t> experts,
                                         double probability, TimeNs deadline_ns) {
  return impl_->prefetch(layer, experts, probability, deadline_ns);
}
Status ExpertCache::cancel(PrefetchId id) {
  return impl_->cancel(id);
}
void ExpertCache::set_predictor(std::unique_ptr<Predictor> predictor) {
  impl_->set_predictor(std::move(predictor));
}
void ExpertCache::poll() {
  impl_->poll();
}

std::uint32_t ExpertCache::slots() const {
  return impl_->slots();
}
const std::byte* ExpertCache::slot_address(std::uint32_t slot) const {
  return slot < impl_->slots() ? impl_->slot_address(slot) : nullptr;
}
Tier ExpertCache::locate(std::uint32_t layer, std::uint32_t expert) const {
  return impl_->locate(layer, expert);
}
const ExpertCacheConfig& ExpertCache::config() const {
  return impl_->config();
}
ExpertCacheStats ExpertCache::stats() const {
  return impl_->stats();
}

LayerStep::LayerStep(LayerStep&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)), step_(other.step_) {}
LayerStep& LayerStep::operator=(LayerStep&& other) noexcept {
  if (this == &other) return *this;
  if (cache_ != nullptr) static_cast<void>(cache_->impl_->end(step_));
  cache_ = std::exchange(other.cache_, nullptr);
  step_ = other.step_;
  return *this;
}
LayerStep::~LayerStep() {
  if (cache_ != nullptr) static_cast<void>(cache_->impl_->end(step_));
}
std::size_t LayerStep::size() const {
  return cache_ == nullptr ? 0 : cache_->impl_->size_of(step_);
}
std::size_t LayerStep::resident() const {
  return cache_ == nullptr ? 0 : cache_->impl_->resident_of(step_);
}
const ReadyExpert* LayerStep::next() {
  return cache_ == nullptr ? nullptr : cache_->impl_->next(step_, ExpertCache::Impl::Part::all);
}
const ReadyExpert* LayerStep::next_head() {
  return cache_ == nullptr ? nullptr : cache_->impl_->next(step_, ExpertCache::Impl::Part::head);
}
void LayerStep::rest() {
  if (cache_ != nullptr) cache_->impl_->rest(step_);
}
Result<std::span<const ReadyExpert>> LayerStep::all() {
  if (cache_ == nullptr) return std::span<const ReadyExpert>();
  return cache_->impl_->all(step_);
}

}  // namespace harvest::moe
