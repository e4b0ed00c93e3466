// SPDX-License-Identifier: Apache-2.0
#include "cli/owners.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace harvest::cli {
namespace {

constexpr double kGiB = 1ULL << 30;
constexpr double kHourNs = 3600e9;
constexpr std::uint64_t kPageBytes = 2ULL << 20;

constexpr double kRisesPerHour = 9.4;
constexpr double kBusyShare = 0.4;
constexpr double kBusyNs = kHourNs;
constexpr double kCalmNs = kBusyNs * (1 - kBusyShare) / kBusyShare;
constexpr double kStepNs = kHourNs * kBusyShare / (2 * kRisesPerHour);
constexpr double kStepMedianGiB = 3.1;
constexpr double kStepSigma = 0.7;
constexpr double kStepLeastGiB = 1.0;
constexpr double kStepMostGiB = 31.7;
constexpr double kPullGiB = 1.0;

constexpr TimeNs kReclaimDeadlineNs = 1'000'000'000;

/// In [0, 1). The standard's distributions differ between libraries; with this the same seed gives the same
/// owners everywhere.
double uniform(std::mt19937_64& random) {
  return static_cast<double>(random() >> 11) * 0x1p-53;
}

double log_normal_gib(std::mt19937_64& random) {
  while (true) {
    const double radius = std::sqrt(-2 * std::log(1 - uniform(random)));
    const double normal = radius * std::cos(2 * std::numbers::pi * uniform(random));
    const double gib = kStepMedianGiB * std::exp(kStepSigma * normal);
    if (gib >= kStepLeastGiB && gib <= kStepMostGiB) return gib;
  }
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
    : random_(seed), most_bytes_(most_bytes), use_bytes_(std::min(kMedianBytes, most_bytes)) {
  busy_ = uniform(random_) < kBusyShare;
  phase_end_ns_ = static_cast<TimeNs>(exponential_ns(busy_ ? kBusyNs : kCalmNs));
  draw_next();
}

double OwnerModel::exponential_ns(double mean_ns) {
  return -mean_ns * std::log(1 - uniform(random_));
}

void OwnerModel::draw_next() {
  while (true) {
    if (busy_) {
      const auto at = next_ns_ + static_cast<TimeNs>(exponential_ns(kStepNs)) + 1;
      if (at < phase_end_ns_) {
        next_ns_ = at;
        return;
      }
    }
    next_ns_ = phase_end_ns_;
    busy_ = !busy_;
    phase_end_ns_ += static_cast<TimeNs>(exponential_ns(busy_ ? kBusyNs : kCalmNs)) + 1;
  }
}

std::uint64_t OwnerModel::step() {
  const double step_bytes = log_normal_gib(random_) * kGiB;
  const double above_gib = (static_cast<double>(use_bytes_) - static_cast<double>(kMedianBytes)) / kGiB;
  const bool up = uniform(random_) < 1 / (1 + std::exp(above_gib / kPullGiB));
  const auto use = static_cast<double>(use_bytes_);
  use_bytes_ = whole_pages(
      std::clamp(up ? use + step_bytes : use - step_bytes, 0.0, static_cast<double>(most_bytes_)));
  draw_next();
  return use_bytes_;
}

Owners::Owners(SimulatedBackend& backend, const std::vector<DeviceId>& devices, OwnerActivity activity,
               std::uint64_t seed)
    : backend_(backend), activity_(activity) {
  if (activity == OwnerActivity::none) return;
  for (const DeviceId device : devices) {
    const std::uint64_t total = backend.devices()[static_cast<std::size_t>(device)].total_bytes;
    const std::uint64_t most = total - std::min(total, backend.tenant_bytes(device));
    owners_.push_back({device, OwnerModel(seed * 1'000'003 + static_cast<std::uint64_t>(device), most), 0});
    change(owners_.back(), owners_.back().model.use_bytes(), nullptr);
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
