// SPDX-License-Identifier: Apache-2.0
#include "transformer/owners.hpp"

#include <algorithm>

namespace harvest::transformer {
namespace {

constexpr TimeNs kLongestDeadlineNs = 300'000;

}  // namespace

BurstyOwners::BurstyOwners(SimulatedBackend& backend, PeerCache& cache, TimeNs period_ns, std::uint64_t seed)
    : backend_(backend), cache_(cache), period_ns_(period_ns), random_(seed) {
  for (const DeviceInfo& device : backend.devices()) {
    if (device.id == kHost || device.id == cache.config().consumer) continue;
    owners_.push_back({.device = device.id});
    schedule(owners_.back());
  }
}

bool BurstyOwners::due() const {
  const TimeNs now_ns = backend_.now_ns();
  return std::ranges::any_of(owners_, [&](const Owner& owner) { return owner.next_ns <= now_ns; });
}

void BurstyOwners::act() {
  for (Owner& owner : owners_)
    if (owner.next_ns <= backend_.now_ns()) {
      act(owner);
      schedule(owner);
    }
}

void BurstyOwners::act(Owner& owner) {
  switch (random_.below(4)) {
    case 0: reclaim(owner); return;
    case 1:
      if (const auto memory = backend_.query_memory(owner.device); memory && memory->free_bytes > 0) {
        ++stats_.bursts;
        take(owner, random_.between(1, memory->free_bytes));
      }
      return;
    default:
      const std::uint64_t bytes = random_.between(owner.burst_bytes / 2, owner.burst_bytes);
      if (bytes > 0 && backend_.tenant_free(owner.device, bytes)) owner.burst_bytes -= bytes;
  }
}

/// Takes what it gets at once. Whatever a reclaim says is returned must be there.
void BurstyOwners::reclaim(Owner& owner) {
  const std::uint64_t held_bytes = backend_.mapped_bytes(owner.device);
  const TimeNs deadline_ns = backend_.now_ns() + static_cast<TimeNs>(random_.below(kLongestDeadlineNs));
  const auto report =
      cache_.reclaim(owner.device, random_.between(1, held_bytes + held_bytes / 4 + 1), deadline_ns);
  if (!report) return;  // not a peer of this cache
  ++stats_.reclaims;
  stats_.returned_bytes += report->returned_bytes;
  stats_.late += report->finished ? 0 : 1;
  take(owner, report->returned_bytes);
}

void BurstyOwners::take(Owner& owner, std::uint64_t bytes) {
  if (bytes == 0) return;
  if (backend_.tenant_allocate(owner.device, bytes))
    owner.burst_bytes += bytes;
  else
    ++stats_.refused;
}

void BurstyOwners::schedule(Owner& owner) {
  owner.next_ns =
      backend_.now_ns() + static_cast<TimeNs>(random_.exponential() * static_cast<double>(period_ns_));
}

}  // namespace harvest::transformer
