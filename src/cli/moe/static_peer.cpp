// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <vector>

#include "cli/moe/server.hpp"

/// `static_peer`: where experts lie is decided once.
namespace harvest::cli {
namespace {

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

}  // namespace

Result<MoeFigures> run_static_peer(const MoeRun& run, Progress& progress) {
  StaticServer server(run);
  return serve(run, server, progress);
}

}  // namespace harvest::cli
