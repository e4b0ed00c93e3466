// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>

#include "moe/expert_life.hpp"

/// What else happens in a life: guesses, owners, time, and everything that goes wrong.
namespace harvest::moe {
namespace {

constexpr TimeNs kMillisecond = 1'000'000;
constexpr TimeNs kSecond = 1'000 * kMillisecond;
constexpr TimeNs kLongestSuspensionNs = 60 * kSecond;
constexpr TimeNs kSlowReaderNs = 3 * kMillisecond;

}  // namespace

void ExpertLife::prefetch() {
  const auto layer = static_cast<std::uint32_t>(random_.below(plan_.model.layers));
  const double probability = static_cast<double>(random_.between(0, 10)) / 10;
  const TimeNs deadline = random_.chance(0.5)
                              ? kNever
                              : simulated_->now_ns() + static_cast<TimeNs>(random_.below(2 * kMillisecond));
  const auto id = experts_->prefetch(layer, draw_experts(layer, Phase::decode), probability, deadline);
  require(id.has_value(), "a prefetch is refused: {}", id ? std::string() : id.error().message);
  prefetches_.push_back(*id);
}

void ExpertLife::cancel() {
  if (prefetches_.empty()) return;
  const std::size_t which = random_.below(prefetches_.size());
  const PrefetchId id = prefetches_[which];
  observe(experts_->cancel(id) ? 1 : 0);
  require(!experts_->cancel(id), "a prefetch is cancelled twice");
  prefetches_.erase(prefetches_.begin() + static_cast<std::ptrdiff_t>(which));
}

/// With little patience whatever happens; with much, what comes late is late because of us: kernels and
/// copies that are under way take far less, and nobody calls the cache of experts meanwhile.
void ExpertLife::reclaim() {
  const auto& peers = plan_.peers.peers;
  const DeviceId device = peers[random_.below(peers.size())];
  const std::uint64_t mapped = simulated_->mapped_bytes(device);
  const std::uint64_t bytes = random_.chance(0.5) ? UINT64_MAX : random_.between(1, 1ULL << 20);
  const TimeNs patience = std::array<TimeNs, 4>{0, 50'000, kMillisecond, kSecond}[random_.below(4)];
  const auto report = peer_cache_->reclaim(device, bytes, simulated_->now_ns() + patience);
  require(report.has_value(), "a reclaim is refused: {}", report ? std::string() : report.error().message);
  observe(report->returned_bytes);
  ++coverage_.reclaims;
  if (patience < kSecond || lost_.contains(device)) return;
  require(report->finished && report->late_bytes == 0,
          "a reclaim of {} bytes of device {}, which has {}, is late with {} bytes after a second", bytes,
          device, mapped, report->late_bytes);
}

/// The owner of a peer takes nearly all that is free, or gives it back.
void ExpertLife::tenant() {
  const auto& peers = plan_.peers.peers;
  const DeviceId device = peers[random_.below(peers.size())];
  if (lost_.contains(device)) return;
  if (const std::uint64_t has = simulated_->tenant_bytes(device); has > 0 && random_.chance(0.6)) {
    static_cast<void>(simulated_->tenant_free(device, has));
    return;
  }
  const auto memory = backend_->query_memory(device);
  if (!memory) return;
  const std::uint64_t left = random_.below(8ULL << 20);
  if (memory->free_bytes > left)
    static_cast<void>(simulated_->tenant_allocate(device, memory->free_bytes - left));
}

void ExpertLife::pass_time() {
  simulated_->sleep_until(simulated_->now_ns() +
                          static_cast<TimeNs>(random_.below(60 * kMillisecond) >> random_.below(16)));
}

void ExpertLife::kernel(StreamId stream) {
  const auto duration = static_cast<TimeNs>(1 + (random_.below(kSlowReaderNs) >> random_.below(12)));
  static_cast<void>(simulated_->submit_kernel(stream, duration));
}

/// One that no open step is on goes, and another comes.
void ExpertLife::change_stream() {
  StreamId& stream = streams_[random_.below(streams_.size())];
  for (const OpenStep& open : open_)
    if (open.stream == stream) return;
  require(backend_->destroy_stream(stream).has_value(), "a stream cannot be destroyed");
  stream = *backend_->create_stream(0);
}

void ExpertLife::change_faults() {
  const bool any = random_.chance(0.7);
  faults_ = any ? plan_.faults : FaultPlan{};
  witness_->set_shortage_of_events(any ? plan_.shortage_of_events : 0, random_.next());
  require(simulated_->set_faults(faults_).has_value(), "wrong faults");
}

void ExpertLife::break_link() {
  const auto& peers = plan_.peers.peers;
  const DeviceId peer = peers[random_.below(peers.size())];
  const bool up = random_.chance(0.7);
  const std::array<std::pair<DeviceId, DeviceId>, 3> links{{{peer, 0}, {0, peer}, {kHost, peer}}};
  const auto& [from, to] = links[random_.below(links.size())];
  static_cast<void>(simulated_->set_link_up(from, to, up));
}

void ExpertLife::lose_peer() {
  const auto& peers = plan_.peers.peers;
  const DeviceId peer = peers[random_.below(peers.size())];
  if (!lost_.insert(peer).second) return;
  static_cast<void>(simulated_->lose_device(peer));
}

void ExpertLife::look() {
  check_statistics();
  for (std::uint32_t layer = 0; layer < plan_.model.layers; ++layer)
    for (std::uint32_t expert = 0; expert < plan_.model.experts; ++expert) {
      const Tier tier = experts_->locate(layer, expert);
      require(tier != Tier::none, "expert {} of layer {} is nowhere", expert, layer);
      observe(static_cast<std::uint64_t>(tier));
    }
}

void ExpertLife::wrong_call() {
  const std::vector<std::uint32_t> one{0};
  const std::vector<std::uint32_t> beyond{plan_.model.experts};
  const StreamId stream = streams_.front();
  require(!experts_->begin_layer(plan_.model.layers, one, stream), "a layer too many is taken");
  require(!experts_->begin_layer(0, beyond, stream), "an expert too many is taken");
  require(!experts_->prefetch(0, beyond, 0.5), "an expert too many is prefetched");
  require(!experts_->prefetch(0, one, -0.1), "a probability below 0 is taken");
  require(!experts_->cancel(PrefetchId::none), "no prefetch is cancelled");
  require(!experts_->add_expert(0, 0, weights_of(0, 0)), "an expert is added twice");
  require(experts_->locate(plan_.model.layers, 0) == Tier::none, "an expert of no layer is somewhere");
  require(experts_->slot_address(plan_.slots) == nullptr, "a slot too many has an address");
}

/// What goes wrong stops. From here on everything must succeed: each expert is had whole, and confirmed.
void ExpertLife::calm() {
  close_all();
  faults_ = {};
  witness_->set_shortage_of_events(0, 0);
  require(simulated_->set_faults(faults_).has_value(), "no faults are refused");
  for (const DeviceId peer : plan_.peers.peers) {
    for (const auto& [from, to] :
         std::array<std::pair<DeviceId, DeviceId>, 3>{{{peer, 0}, {0, peer}, {kHost, peer}}})
      static_cast<void>(simulated_->set_link_up(from, to, true));
    if (!lost_.contains(peer))
      static_cast<void>(simulated_->tenant_free(peer, simulated_->tenant_bytes(peer)));
  }
  // A peer whose copies failed is out of service for a while, up to a minute.
  simulated_->sleep_until(simulated_->now_ns() + kLongestSuspensionNs);
  for (int i = 0; i < 16; ++i) {
    peer_cache_->poll();
    experts_->poll();
    simulated_->sleep_until(simulated_->now_ns() + kMillisecond);
  }
  check_reads(true);
  confirm();
  const std::uint64_t wrong_before = coverage_.wrong_reads;
  failures_before_period_ = failed_copies();
  for (std::uint32_t layer = 0; layer < plan_.model.layers; ++layer) {
    std::vector<std::uint32_t> all;
    for (std::uint32_t expert = 0; expert < plan_.model.experts; ++expert) all.push_back(expert);
    const Phase phase = random_.chance(0.5) ? Phase::decode : Phase::prefill;
    OpenStep* const open = open_step(layer, all, phase, random_stream());
    require(open != nullptr, "a step is refused, and nothing goes wrong");
    while (take_next(*open)) {
    }
    require(open->came.size() == all.size(), "{} of {} experts came, and nothing goes wrong",
            open->came.size(), all.size());
    close_step(open_.size() - 1);
  }
  check_reads(true);
  require(coverage_.wrong_reads == wrong_before, "wrong bytes came, and nothing goes wrong");
  confirm();
  require(!periods_[periods_.size() - 2].failed, "confirm fails, and nothing goes wrong");
  check_statistics();
}

}  // namespace harvest::moe
