// SPDX-License-Identifier: Apache-2.0
#include "cli/owners.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

namespace harvest::cli {
namespace {

constexpr double kGiB = 1ULL << 30;
constexpr double kHourNs = 3600e9;
constexpr std::uint64_t kPageBytes = 2ULL << 20;

constexpr double kPhaseNs = 6 * kHourNs;
constexpr double kLevelGiB = 21.9;
constexpr double kLevelSigmaGiB = 1.3;
constexpr double kHighPhases = .05;
constexpr double kHighLeastGiB = 24;
constexpr double kHighMostGiB = 38.5;
constexpr double kLeastLevelGiB = 2;
constexpr double kBurstLeastNs = 52e9;
constexpr double kBurstMoreNs = 18e9;  ///< on average, beyond the least

/// Bursts of one range of sizes, exponential within it: most are near the least.
struct RiseKind {
  double least_gib;
  double most_gib;
  double scale_gib;  ///< of the exponential
  double per_hour;   ///< over all phases
  double phases;     ///< in what share of them they come
};
constexpr std::array<RiseKind, OwnerModel::kRiseKinds> kRises{{
    {1.0, 3.1, 3, 6.3, .9},
    {3.1, 5.0, 3, 2.4, .8},
    {5.0, 8.4, 3, 4.3, .26},
    {8.4, 14.4, 3, 2.15, .11},
    {14.4, 31.7, 5, .23, .11},
}};

constexpr TimeNs kReclaimDeadlineNs = 1'000'000'000;

/// In [0, 1). The standard's distributions differ between libraries; with this the same seed gives the same
/// owners everywhere.
double uniform(std::mt19937_64& random) {
  return static_cast<double>(random() >> 11) * 0x1p-53;
}

double normal(std::mt19937_64& random) {
  const double radius = std::sqrt(-2 * std::log(1 - uniform(random)));
  return radius * std::cos(2 * std::numbers::pi * uniform(random));
}

/// Each owner's own, and the same whoever the others are.
std::uint64_t seed_of(DeviceId device, std::uint64_t seed) {
  return seed * 1'000'003 + static_cast<std::uint64_t>(device);
}

std::uint64_t whole_pages(double bytes) {
  return static_cast<std::uint64_t>(bytes) / kPageBytes * kPageBytes;
}

}  // namespace

Result<OwnerActivity> parse_owner_activity(std::string_view name) {
  if (name == "none") return OwnerActivity::none;
  if (name == "steady") return OwnerActivity::steady;
  if (name == "bursty") return OwnerActivity::bursty;
  return fail(ErrorCode::not_found,
              fmt::format("no owner activity is named '{}'; known are none, steady, bursty", name));
}

OwnerModel::OwnerModel(std::uint64_t seed, std::uint64_t most_bytes)
    : random_(seed), most_bytes_(most_bytes) {
  begin_phase();
  await_burst();
}

double OwnerModel::exponential_ns(double mean_ns) {
  return -mean_ns * std::log(1 - uniform(random_));
}

std::uint64_t OwnerModel::use_bytes() const {
  return std::min(whole_pages((level_gib_ + burst_gib_) * kGiB), most_bytes_);
}

void OwnerModel::begin_phase() {
  // One number decides about all kinds: where large bursts come, smaller ones come too.
  const double quiet = uniform(random_);
  for (std::size_t i = 0; i < kRises.size(); ++i)
    per_hour_[i] = quiet < kRises[i].phases ? kRises[i].per_hour / kRises[i].phases : 0;
  level_gib_ = std::max(kLeastLevelGiB, kLevelGiB + kLevelSigmaGiB * normal(random_));
  if (uniform(random_) < kHighPhases)
    level_gib_ = kHighLeastGiB + (kHighMostGiB - kHighLeastGiB) * uniform(random_);
  phase_end_ns_ = now_ns_ + static_cast<TimeNs>(exponential_ns(kPhaseNs)) + 1;
}

void OwnerModel::await_burst() {
  const double per_hour = std::accumulate(per_hour_.begin(), per_hour_.end(), 0.0);
  change_ns_ = per_hour == 0 ? kNever : now_ns_ + static_cast<TimeNs>(exponential_ns(kHourNs / per_hour)) + 1;
}

void OwnerModel::begin_burst() {
  double which = uniform(random_) * std::accumulate(per_hour_.begin(), per_hour_.end(), 0.0);
  std::size_t kind = 0;
  while (kind + 1 < kRises.size() && (per_hour_[kind] == 0 || which >= per_hour_[kind]))
    which -= per_hour_[kind++];
  const RiseKind& rise = kRises[kind];
  const double within = 1 - std::exp(-(rise.most_gib - rise.least_gib) / rise.scale_gib);
  burst_gib_ = rise.least_gib - rise.scale_gib * std::log(1 - uniform(random_) * within);
  change_ns_ = now_ns_ + static_cast<TimeNs>(kBurstLeastNs + exponential_ns(kBurstMoreNs));
}

std::uint64_t OwnerModel::step() {
  now_ns_ = next_ns();
  if (phase_end_ns_ <= change_ns_) {
    begin_phase();
    if (burst_gib_ == 0) await_burst();
  } else if (burst_gib_ == 0) {
    begin_burst();
  } else {
    burst_gib_ = 0;
    await_burst();
  }
  return use_bytes();
}

OwnerTrace generate_owner_trace(std::span<const OwnedDevice> devices, TimeNs duration_ns,
                                std::uint64_t seed) {
  std::vector<OwnerStep> steps;
  for (const OwnedDevice& owned : devices) {
    OwnerModel owner(seed_of(owned.device, seed), owned.total_bytes);
    steps.push_back({0, owned.device, owner.use_bytes()});
    while (owner.next_ns() < duration_ns) {
      const TimeNs at = owner.next_ns();
      steps.push_back({at, owned.device, owner.step()});
    }
    steps.push_back({duration_ns, owned.device, owner.use_bytes()});
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const OwnerStep& a, const OwnerStep& b) { return a.at_ns < b.at_ns; });
  return {std::move(steps)};
}

Owners::Owners(SimulatedBackend& backend, const std::vector<DeviceId>& devices, OwnerActivity activity,
               std::uint64_t seed)
    : backend_(backend), activity_(activity) {
  if (activity == OwnerActivity::none) return;
  for (const DeviceId device : devices) {
    const std::uint64_t total = backend.devices()[static_cast<std::size_t>(device)].total_bytes;
    const std::uint64_t most = total - std::min(total, backend.tenant_bytes(device));
    owners_.push_back({device, OwnerModel(seed_of(device, seed), most), 0});
    const std::uint64_t steady = std::min(OwnerModel::kMedianBytes, most);
    change(owners_.back(), activity == OwnerActivity::steady ? steady : owners_.back().model.use_bytes(),
           nullptr);
  }
  figures_ = {};  // what they hold from the beginning is no rise
}

TimeNs Owners::next_ns() const {
  TimeNs next = kNever;
  if (activity_ == OwnerActivity::bursty)
    for (const Owner& owner : owners_) next = std::min(next, owner.model.next_ns());
  return next;
}

void Owners::act(PeerCache* cache) {
  if (activity_ != OwnerActivity::bursty) return;
  for (Owner& owner : owners_)
    while (owner.model.next_ns() <= backend_.now_ns()) change(owner, owner.model.step(), cache);
}

void Owners::change(Owner& owner, std::uint64_t wanted_bytes, PeerCache* cache) {
  if (wanted_bytes <= owner.held_bytes) {
    const std::uint64_t freed = owner.held_bytes - wanted_bytes;
    if (freed != 0 && backend_.tenant_free(owner.device, freed)) owner.held_bytes = wanted_bytes;
    return;
  }
  const std::uint64_t rise = wanted_bytes - owner.held_bytes;
  ++figures_.rises;
  const std::uint64_t total = backend_.devices()[static_cast<std::size_t>(owner.device)].total_bytes;
  const std::uint64_t used = backend_.tenant_bytes(owner.device) + backend_.mapped_bytes(owner.device);
  const std::uint64_t free = total - std::min(total, used);
  if (free < rise && cache != nullptr) {
    figures_.bytes_requested += rise - free;
    const auto report = cache->reclaim(owner.device, rise - free, backend_.now_ns() + kReclaimDeadlineNs);
    if (report) {
      figures_.bytes_returned += report->returned_bytes;
      figures_.late += report->late_bytes != 0 ? 1 : 0;
      figures_.reclaim_ns.push_back(report->duration_ns);
    }
  }
  if (backend_.tenant_allocate(owner.device, rise))
    owner.held_bytes = wanted_bytes;
  else
    ++figures_.refused;
}

}  // namespace harvest::cli
