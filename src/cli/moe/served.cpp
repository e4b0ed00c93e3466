// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <unordered_map>

#include "cli/moe/gate_ahead.hpp"
#include "cli/moe/server.hpp"

/// `host` and `harvest`: a cache of experts.
namespace harvest::cli {
namespace {

constexpr TimeNs kSettleNs = 600'000'000'000;

/// A roofline with the information of a loader without a predictor: nothing is fetched before its layer's
/// router has named it; from then on all wires and the arithmetic are busy at once and without any cost of
/// their own. What was not here and can come from peers may be split between the wires; the rest can only
/// come from the host.
struct Bound {
  double peer_bytes_per_s = 0;
  double host_bytes_per_s = 0;
  double ns = 0;

  void layer(const LayerWork& work, double peer_bytes, double host_bytes) {
    const double all = (peer_bytes + host_bytes) * 1e9 / (peer_bytes_per_s + host_bytes_per_s);
    const double wires = std::max(all, host_bytes * 1e9 / host_bytes_per_s);
    ns += static_cast<double>(work.attention_ns) + std::max(static_cast<double>(work.experts_ns()), wires);
  }
};

PeerCacheConfig peer_config(const MoeRun& run, bool with_peers) {
  PeerCacheConfig config;
  config.verify_paths = false;  // phantom bytes carry no pattern
  config.peer_budget_bytes = with_peers ? UINT64_MAX : 0;
  config.host_budget_bytes = 1ULL << 30;
  config.balance_paths = false;  // the cache of experts chooses between wires
  config.background_bytes = 2ULL << 30;
  config.pressure.growth_bytes_per_s = 64ULL << 30;
  const std::uint64_t pieces = run.shape.expert_bytes() / (4ULL << 20) + 1;
  const std::uint64_t objects = pieces * run.shape.layers * run.shape.experts + 1024;
  config.max_objects = static_cast<std::uint32_t>(std::max<std::uint64_t>(config.max_objects, objects));
  return config;
}

/// Steps through a cache of experts, with or without peers below it.
class CachedServer {
 public:
  CachedServer(const MoeRun& run, bool with_peers)
      : run_(run),
        with_peers_(with_peers),
        two_kernels_(down_ns(run.card.time_ns(run.shape.expert(1))) > kWorthNs),
        work_(run) {}
  ~CachedServer() {
    experts_.reset();
    cache_.reset();
  }
  CachedServer(const CachedServer&) = delete;
  CachedServer& operator=(const CachedServer&) = delete;

  Status prepare() {
    auto server = Server::create(run_);
    if (!server) return tl::unexpected(server.error());
    server_ = std::move(*server);
    std::vector<DeviceId> gpus;
    for (const MachineDevice& device : run_.machine.devices)
      if (device.info.id > 0) gpus.push_back(device.info.id);
    owners_ = std::make_unique<Owners>(*server_->backend, gpus,
                                       with_peers_ ? run_.activity : OwnerActivity::none, run_.seed);
    auto cache = PeerCache::create(*server_->backend, peer_config(run_, with_peers_));
    if (!cache) return tl::unexpected(cache.error());
    cache_ = std::move(*cache);
    moe::ExpertCacheConfig config;
    config.model = run_.shape.description();
    config.local_budget_bytes = budget_bytes();
    config.head_tensors = two_kernels_ ? kHeadTensors : 0;
    config.eviction = run_.eviction;
    const bool gate_ahead = run_.predictor == kGateAhead;
    if (!gate_ahead) config.predictor = run_.predictor;
    auto experts = moe::ExpertCache::create(*cache_, config);
    if (!experts) return tl::unexpected(experts.error());
    experts_ = std::move(*experts);
    if (gate_ahead) {
      auto gate = std::make_unique<GateAhead>(run_.shape.experts, run_.gate_recall, run_.seed);
      gate_ = gate.get();
      experts_->set_predictor(std::move(gate));
    }
    const auto weights = server_->backend->reserve_host_range(run_.shape.pool_bytes());
    if (!weights) return tl::unexpected(weights.error());
    for (std::uint32_t layer = 0; layer < run_.shape.layers; ++layer) {
      for (std::uint32_t expert = 0; expert < run_.shape.experts; ++expert) {
        const std::uint64_t index = layer * run_.shape.experts + expert;
        if (Status added = experts_->add_expert(layer, expert, *weights + index * run_.shape.expert_bytes());
            !added)
          return added;
      }
      // The PeerCache has room for so many wishes, and a large model is more.
      if (Status settled = cache_->settle(server_->backend->now_ns() + kSettleNs); !settled) return settled;
    }
    const Topology& topology = cache_->topology();
    bound_.host_bytes_per_s = topology.path(kHost, 0)->link.bandwidth_bytes_per_s;
    if (with_peers_)
      for (const PeerRank& peer : topology.rank_peers(0, 1ULL << 30))
        bound_.peer_bytes_per_s =
            std::max(bound_.peer_bytes_per_s, topology.path(peer.device, 0)->link.bandwidth_bytes_per_s);
    const double wires = bound_.host_bytes_per_s + bound_.peer_bytes_per_s;
    look_ns_ = std::max<TimeNs>(
        1'000, std::llround(static_cast<double>(run_.shape.expert_bytes()) * 1e9 / wires / kLooks));
    return cache_->settle(server_->backend->now_ns() + kSettleNs);
  }

  Status step(const moe::RoutingStep& step) {
    if (gate_ != nullptr) gate_->enter(step);
    for (std::uint32_t layer = 0; layer < run_.shape.layers; ++layer) {
      const LayerWork& work = work_.layer(step, layer);
      server_->compute(work.attention_ns);
      if (Status routed = finish(); !routed) return routed;
      work_off();
      if (Status computed = this->layer(layer, work, step.phase()); !computed) return computed;
    }
    experts_->poll();
    if (Status computed = finish(); !computed) return computed;
    return experts_->confirm();
  }

  /// What is counted begins here.
  void begin() {
    begin_ns_ = server_->backend->now_ns();
    server_->computed_ns = 0;
    bound_.ns = 0;
    tokens_ = 0;
    before_ = experts_->stats();
  }
  void count(const moe::RoutingStep& step) { tokens_ += StepWork::tokens_of(step); }

  MoeFigures figures() const {
    MoeFigures figures;
    figures.strategy = with_peers_ ? "harvest" : "host";
    const auto ns = static_cast<double>(server_->backend->now_ns() - begin_ns_);
    figures.tokens_per_s = tokens_ * 1e9 / ns;
    figures.bound_tokens_per_s = tokens_ * 1e9 / bound_.ns;
    figures.exposed_stall = 1 - static_cast<double>(server_->computed_ns) / ns;
    figures.cache = experts_->stats();
    figures.stall = {figures.cache.exposed_stall_ns - before_.exposed_stall_ns,
                     figures.cache.hidden_stall_ns - before_.hidden_stall_ns,
                     figures.cache.unseen_stall_ns - before_.unseen_stall_ns};
    std::array<double, kTiers> delivered{};
    double sum = 0;
    for (std::size_t tier = 0; tier < kTiers; ++tier) {
      for (const moe::Phase phase : {moe::Phase::prefill, moe::Phase::decode})
        delivered[tier] += static_cast<double>(figures.cache.experts(phase, static_cast<Tier>(tier)) -
                                               before_.experts(phase, static_cast<Tier>(tier)));
      sum += delivered[tier];
      figures.bytes_moved += figures.cache.demand_bytes[tier] - before_.demand_bytes[tier] +
                             figures.cache.prefetched_bytes[tier] - before_.prefetched_bytes[tier];
    }
    for (std::size_t tier = 0; tier < kTiers; ++tier) figures.hit[tier] = delivered[tier] / sum;
    figures.owners = owners_->figures();
    return figures;
  }

 private:
  [[nodiscard]] std::uint64_t budget_bytes() const {
    const auto experts = static_cast<double>(run_.shape.layers) * run_.shape.experts;
    const auto slots = static_cast<std::uint64_t>(std::llround(run_.local_fraction * experts));
    // Something must be there to compute from, while others come.
    const auto least = std::min<std::uint64_t>(kStagingSlots, run_.shape.experts);
    return std::max(slots, least) * run_.shape.description().slot_bytes();
  }

  /// While the host waits for the router, it looks how long the stream stands still.
  Status finish() {
    return server_->finish(look_ns_, [this] { experts_->poll(); });
  }

  /// What owners and the caches want to do by now.
  void work_off() {
    if (owners_->next_ns() <= server_->backend->now_ns()) owners_->act(cache_.get());
    if (next_poll_ns_ > server_->backend->now_ns()) return;
    next_poll_ns_ = cache_->poll();
    next_poll_ns_ = std::max(next_poll_ns_, server_->backend->now_ns() + kPollNs);
  }

  Status layer(std::uint32_t number, const LayerWork& work, moe::Phase phase) {
    double peer_bytes = 0;
    double host_bytes = 0;
    needed_.clear();
    time_of_.clear();
    for (const auto& [expert, ns] : work.experts) {
      needed_.push_back(expert);
      time_of_[expert] = ns;
      const Tier tier = experts_->locate(number, expert);
      if (tier == Tier::peer) peer_bytes += static_cast<double>(run_.shape.expert_bytes());
      if (tier == Tier::host) host_bytes += static_cast<double>(run_.shape.expert_bytes());
    }
    bound_.layer(work, peer_bytes, host_bytes);
    auto step = experts_->begin_layer(number, needed_, server_->stream, phase);
    if (!step) return tl::unexpected(step.error());
    while (const moe::ReadyExpert* ready = step->next_head()) {
      const TimeNs ns = time_of_.at(ready->expert);
      if (!two_kernels_ || ready->from == Tier::local) {
        server_->compute(ns);
        continue;
      }
      // Each has the time that one takes before it does anything.
      server_->compute(ns - down_ns(ns));
      step->rest();
      server_->compute(down_ns(ns) + kKernelNs);
    }
    return experts_->end_layer(std::move(*step));
  }

  /// Of an expert's kernel.
  [[nodiscard]] static TimeNs down_ns(TimeNs expert_ns) { return (expert_ns - kKernelNs) / 3; }

  static constexpr std::uint32_t kHeadTensors = 2;   ///< gate and up
  static constexpr TimeNs kWorthNs = 4 * kKernelNs;  ///< down that is longer is worth a kernel of its own
  static constexpr std::uint64_t kStagingSlots = 4;
  static constexpr TimeNs kPollNs = 1'000'000;
  static constexpr double kLooks = 64;  ///< while an expert comes

  const MoeRun& run_;
  bool with_peers_;
  bool two_kernels_;  ///< of an expert that comes: gate with up, and down
  StepWork work_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Owners> owners_;
  std::unique_ptr<PeerCache> cache_;
  std::unique_ptr<moe::ExpertCache> experts_;
  GateAhead* gate_ = nullptr;  ///< of `experts_`
  Bound bound_;
  double tokens_ = 0;
  TimeNs begin_ns_ = 0;
  TimeNs next_poll_ns_ = 0;
  TimeNs look_ns_ = 0;
  moe::ExpertCacheStats before_;
  std::vector<std::uint32_t> needed_;
  std::unordered_map<std::uint32_t, TimeNs> time_of_;
};

}  // namespace

/// The bound knows no predictor: neither what one brought ahead nor what went for that.
Result<MoeFigures> run_with_cache(const MoeRun& run, bool with_peers, Progress& progress) {
  CachedServer server(run, with_peers);
  auto figures = serve(run, server, progress);
  if (!figures || run.predictor.empty() || run.predictor == moe::predictor_names().front()) return figures;
  MoeRun without = run;
  without.predictor.clear();
  CachedServer other(without, with_peers);
  const auto bound = serve(without, other, progress);
  if (!bound) return bound;
  figures->bound_tokens_per_s = bound->bound_tokens_per_s;
  return figures;
}

}  // namespace harvest::cli
