// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <unordered_map>

#include "cli/moe/strategies.hpp"

/// The strategies that move experts while they run: really, on the simulated machine.
namespace harvest::cli {
namespace {

constexpr TimeNs kSettleNs = 600'000'000'000;

/// The machine, the stream that computes, and the count of what it did.
class Server {
 public:
  static Result<std::unique_ptr<Server>> create(const MoeRun& run) {
    SimulationOptions options;
    options.bytes = SimulatedBytes::phantom;
    options.seed = run.seed;
    auto backend = make_simulated_backend(run.machine, options);
    if (!backend) return tl::unexpected(backend.error());
    auto stream = (*backend)->create_stream(0);
    if (!stream) return tl::unexpected(stream.error());
    auto server = std::make_unique<Server>();
    server->backend = std::move(*backend);
    server->stream = *stream;
    return server;
  }

  void compute(TimeNs ns) {
    static_cast<void>(backend->submit_kernel(stream, ns));
    computed_ns += ns;
  }
  /// Waits until the stream has done all that it was given.
  Status finish() {
    const auto event = backend->record_event(stream);
    if (!event) return tl::unexpected(event.error());
    backend->wait_event(*event, kNever);
    backend->release_event(*event);
    return {};
  }

  std::unique_ptr<SimulatedBackend> backend;
  StreamId stream = StreamId::none;
  TimeNs computed_ns = 0;
};

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
  const std::uint64_t pieces = run.shape.expert_bytes() / (8ULL << 20) + 1;
  const std::uint64_t objects = pieces * run.shape.layers * run.shape.experts + 1024;
  config.max_objects = static_cast<std::uint32_t>(std::max<std::uint64_t>(config.max_objects, objects));
  return config;
}

/// Steps through a cache of experts, with or without peers below it.
class CachedServer {
 public:
  CachedServer(const MoeRun& run, bool with_peers) : run_(run), with_peers_(with_peers), work_(run) {}
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
    config.eviction = run_.eviction;
    config.predictor = run_.predictor;
    auto experts = moe::ExpertCache::create(*cache_, config);
    if (!experts) return tl::unexpected(experts.error());
    experts_ = std::move(*experts);
    const auto weights = server_->backend->reserve_host_range(run_.shape.pool_bytes());
    if (!weights) return tl::unexpected(weights.error());
    for (std::uint32_t layer = 0; layer < run_.shape.layers; ++layer)
      for (std::uint32_t expert = 0; expert < run_.shape.experts; ++expert) {
        const std::uint64_t index = layer * run_.shape.experts + expert;
        if (Status added = experts_->add_expert(layer, expert, *weights + index * run_.shape.expert_bytes());
            !added)
          return added;
      }
    const Topology& topology = cache_->topology();
    bound_.host_bytes_per_s = topology.path(kHost, 0)->link.bandwidth_bytes_per_s;
    if (with_peers_)
      for (const PeerRank& peer : topology.rank_peers(0, 1ULL << 30))
        bound_.peer_bytes_per_s =
            std::max(bound_.peer_bytes_per_s, topology.path(peer.device, 0)->link.bandwidth_bytes_per_s);
    return cache_->settle(server_->backend->now_ns() + kSettleNs);
  }

  Status step(const moe::RoutingStep& step) {
    for (std::uint32_t layer = 0; layer < run_.shape.layers; ++layer) {
      const LayerWork& work = work_.layer(step, layer);
      server_->compute(work.attention_ns);
      if (Status routed = server_->finish(); !routed) return routed;
      work_off();
      if (Status computed = this->layer(layer, work, step.phase()); !computed) return computed;
    }
    experts_->poll();
    if (Status computed = server_->finish(); !computed) return computed;
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
    while (const moe::ReadyExpert* ready = step->next()) server_->compute(time_of_.at(ready->expert));
    return experts_->end_layer(std::move(*step));
  }

  static constexpr std::uint64_t kStagingSlots = 4;
  static constexpr TimeNs kPollNs = 1'000'000;

  const MoeRun& run_;
  bool with_peers_;
  StepWork work_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Owners> owners_;
  std::unique_ptr<PeerCache> cache_;
  std::unique_ptr<moe::ExpertCache> experts_;
  Bound bound_;
  double tokens_ = 0;
  TimeNs begin_ns_ = 0;
  TimeNs next_poll_ns_ = 0;
  moe::ExpertCacheStats before_;
  std::vector<std::uint32_t> needed_;
  std::unordered_map<std::uint32_t, TimeNs> time_of_;
};

/// The paper's design as it is described, without the prototype's costs (a synchronisation of the device for
/// each expert and a second copy): which experts are local, on the peer and on the host is decided once; what
/// is not local is fetched when the router has named it, into a ring of buffers, over one stream.
class StaticServer {
 public:
  explicit StaticServer(const MoeRun& run) : run_(run), work_(run) {}

  Status prepare() {
    auto server = Server::create(run_);
    if (!server) return tl::unexpected(server.error());
    server_ = std::move(*server);
    SimulatedBackend& backend = *server_->backend;
    const std::uint64_t bytes = run_.shape.expert_bytes();
    const std::uint64_t pool = run_.shape.pool_bytes();
    const auto host = backend.reserve_host_range(pool);
    if (!host) return tl::unexpected(host.error());
    host_ = *host;
    // All peers' memory but the reserve that a cache would keep, in order.
    const auto local = static_cast<std::uint64_t>(std::llround(run_.local_fraction * run_.shape.experts));
    local_ = local;
    for (const MachineDevice& device : run_.machine.devices) {
      if (device.info.id <= 0 || run_.machine.find_link(device.info.id, 0) == nullptr) continue;
      const std::uint64_t room =
          device.info.total_bytes - device.tenant_bytes - PressureConfig{}.reserve_bytes;
      const std::uint64_t take = room / bytes * bytes;
      const std::uint64_t granularity = device.info.segment_granularity_bytes;
      const auto mapped =
          backend.map_segment(device.info.id, take / granularity * granularity, std::array{DeviceId{0}});
      if (!mapped) return tl::unexpected(mapped.error());
      places_.push_back({device.info.id, *mapped, take / granularity * granularity / bytes});
    }
    const std::uint64_t granularity = backend.devices()[0].segment_granularity_bytes;
    const auto ring =
        backend.map_segment(0, (kRing * bytes + granularity - 1) / granularity * granularity, {});
    if (!ring) return tl::unexpected(ring.error());
    ring_ = *ring;
    const auto copies = backend.create_stream(0);
    if (!copies) return tl::unexpected(copies.error());
    copies_ = *copies;
    used_.fill(EventId::none);
    return {};
  }

  Status step(const moe::RoutingStep& step) {
    for (std::uint32_t layer = 0; layer < run_.shape.layers; ++layer) {
      const LayerWork& work = work_.layer(step, layer);
      server_->compute(work.attention_ns);
      if (Status routed = server_->finish(); !routed) return routed;
      for (const auto& [expert, ns] : work.experts)
        if (expert < local_) {
          server_->compute(ns);
          ++hits_[static_cast<std::size_t>(Tier::local)];
        }
      for (const auto& [expert, ns] : work.experts)
        if (expert >= local_)
          if (Status brought = bring(layer, expert, ns); !brought) return brought;
    }
    return server_->finish();
  }

  void begin() {
    begin_ns_ = server_->backend->now_ns();
    server_->computed_ns = 0;
    hits_.fill(0);
    moved_bytes_ = 0;
  }
  void count(const moe::RoutingStep& step) { tokens_ += StepWork::tokens_of(step); }

  MoeFigures figures() const {
    MoeFigures figures;
    figures.strategy = "static_peer";
    const auto ns = static_cast<double>(server_->backend->now_ns() - begin_ns_);
    figures.tokens_per_s = tokens_ * 1e9 / ns;
    figures.exposed_stall = 1 - static_cast<double>(server_->computed_ns) / ns;
    const double sum = static_cast<double>(hits_[0] + hits_[1] + hits_[2]);
    for (std::size_t tier = 0; tier < kTiers; ++tier)
      figures.hit[tier] = static_cast<double>(hits_[tier]) / sum;
    figures.bytes_moved = moved_bytes_;
    return figures;
  }

 private:
  struct Place {
    DeviceId device;
    std::byte* memory;
    std::uint64_t experts;
  };

  Status bring(std::uint32_t layer, std::uint32_t expert, TimeNs ns) {
    SimulatedBackend& backend = *server_->backend;
    const std::uint64_t bytes = run_.shape.expert_bytes();
    std::uint64_t number = layer * (run_.shape.experts - local_) + expert - local_;
    DeviceId from = kHost;
    const std::byte* source = host_ + (layer * run_.shape.experts + expert) * bytes;
    for (const Place& place : places_) {
      if (number < place.experts) {
        from = place.device;
        source = place.memory + number * bytes;
        break;
      }
      number -= place.experts;
    }
    const std::size_t slot = next_++ % kRing;
    if (used_[slot] != EventId::none) {
      static_cast<void>(backend.stream_wait(copies_, used_[slot]));
      backend.release_event(used_[slot]);
    }
    const Copy copy{ring_ + slot * bytes, source, bytes};
    if (Status copied = backend.copy(copies_, {from, 0}, {&copy, 1}); !copied) return copied;
    const auto arrived = backend.record_event(copies_);
    if (!arrived) return tl::unexpected(arrived.error());
    static_cast<void>(backend.stream_wait(server_->stream, *arrived));
    backend.release_event(*arrived);
    server_->compute(ns);
    const auto used = backend.record_event(server_->stream);
    if (!used) return tl::unexpected(used.error());
    used_[slot] = *used;
    ++hits_[static_cast<std::size_t>(from == kHost ? Tier::host : Tier::peer)];
    moved_bytes_ += bytes;
    return {};
  }

  static constexpr std::size_t kRing = 4;

  const MoeRun& run_;
  StepWork work_;
  std::unique_ptr<Server> server_;
  std::byte* host_ = nullptr;
  std::byte* ring_ = nullptr;
  std::vector<Place> places_;
  StreamId copies_ = StreamId::none;
  std::array<EventId, kRing> used_{};
  std::size_t next_ = 0;
  std::uint64_t local_ = 0;  ///< experts of each layer: the first
  std::array<std::uint64_t, kTiers> hits_{};
  std::uint64_t moved_bytes_ = 0;
  double tokens_ = 0;
  TimeNs begin_ns_ = 0;
};

template <typename Serving>
Result<MoeFigures> serve(const MoeRun& run, Serving& server, Progress& progress) {
  if (Status ready = server.prepare(); !ready) return tl::unexpected(ready.error());
  const RoutingSource source = run.routing();
  for (std::uint64_t done = 0; done < run.warm_up + run.steps;) {
    const moe::RoutingStep step = source();
    if (run.phase && step.phase() != *run.phase) continue;
    if (done == run.warm_up) server.begin();
    if (Status served = server.step(step); !served) return tl::unexpected(served.error());
    if (done >= run.warm_up) server.count(step);
    progress.at(++done);
  }
  return server.figures();
}

}  // namespace

Result<MoeFigures> run_with_cache(const MoeRun& run, bool with_peers, Progress& progress) {
  CachedServer server(run, with_peers);
  return serve(run, server, progress);
}

Result<MoeFigures> run_static_peer(const MoeRun& run, Progress& progress) {
  StaticServer server(run);
  return serve(run, server, progress);
}

}  // namespace harvest::cli
