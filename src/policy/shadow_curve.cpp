// SPDX-License-Identifier: Apache-2.0
#include "policy/shadow_curve.hpp"

#include <algorithm>
#include <cmath>

namespace harvest::policy {
namespace {

/// Twice what is sampled, so that a compaction is paid for by as many accesses.
constexpr std::size_t kTouches = 2 * ShadowCurve::kMostSampled;

}  // namespace

ShadowCurve::ShadowCurve(std::uint64_t capacity_bytes)
    : most_bytes_(static_cast<double>(capacity_bytes) * kMostMultiple), bytes_(kTouches) {}

void ShadowCurve::set_capacity(std::uint64_t capacity_bytes) {
  most_bytes_ = std::max(most_bytes_, static_cast<double>(capacity_bytes) * kMostMultiple);
}

bool ShadowCurve::is_sampled(const Key& key) const {
  return halvings_ == 0 || (std::uint64_t{KeyHash{}(key)} >> (64 - halvings_)) == 0;
}

void ShadowCurve::access(const Key& key, std::uint64_t bytes) {
  if (accesses_ >= kWindow) fade();
  ++accesses_;
  if (!is_sampled(key)) return;
  sampled_accesses_ += weight();
  bytes = std::max<std::uint64_t>(bytes, 1);  // 0 is for touches that are over
  if (const auto last = last_.find(key); last != last_.end()) {
    const auto since = static_cast<double>(sampled_bytes_ - bytes_.before(last->second + 1));
    count_hit(since * weight() + static_cast<double>(bytes));
    remove(last->second);
  }
  if (touches_.size() == kTouches) compact();
  last_[key] = touches_.size();
  bytes_.add(touches_.size(), static_cast<std::int64_t>(bytes));
  sampled_bytes_ += static_cast<std::int64_t>(bytes);
  touches_.push_back({key, bytes});
  trim();
  if (last_.size() > kMostSampled && halvings_ < kMostHalvings) sample_half();
}

void ShadowCurve::forget(const Key& key) {
  const auto last = last_.find(key);
  if (last == last_.end()) return;
  remove(last->second);
  last_.erase(last);
}

/// A size of exactly a step's upper end counts to that step.
void ShadowCurve::count_hit(double needed_bytes) {
  const double step = std::ceil(std::log2(needed_bytes) * kStepsPerDoubling) - 1;
  hits_[static_cast<std::size_t>(std::clamp(step, 0.0, kSteps - 1.0))] += weight();
}

double ShadowCurve::hit_ratio(std::uint64_t capacity_bytes) const {
  if (accesses_ == 0 || capacity_bytes == 0) return 0;
  // The hottest keys may be in the sample or not. If it saw too few accesses, those that it did not see were
  // of keys that are hit in any tier, and if too many, likewise (SHARDS-adj).
  double hits = accesses_ - sampled_accesses_;
  const double steps = std::log2(static_cast<double>(capacity_bytes)) * kStepsPerDoubling;
  const auto whole = std::min(static_cast<std::size_t>(steps), kSteps - 1);
  for (std::size_t step = 0; step < whole; ++step) hits += hits_[step];
  hits += hits_[whole] * (steps - static_cast<double>(whole));
  return std::clamp(hits / accesses_, 0.0, 1.0);
}

void ShadowCurve::remove(std::size_t at) {
  const auto bytes = static_cast<std::int64_t>(touches_[at].bytes);
  bytes_.add(at, -bytes);
  sampled_bytes_ -= bytes;
  touches_[at].bytes = 0;
}

void ShadowCurve::sample_half() {
  ++halvings_;
  for (std::size_t at = oldest_; at < touches_.size(); ++at)
    if (touches_[at].bytes != 0 && !is_sampled(touches_[at].key)) forget(touches_[at].key);
}

/// Forgets what was accessed so long ago that no size in question would still hold it.
void ShadowCurve::trim() {
  while (last_.size() > 1 && static_cast<double>(sampled_bytes_) * weight() > most_bytes_) {
    while (touches_[oldest_].bytes == 0) ++oldest_;
    forget(touches_[oldest_].key);
  }
}

void ShadowCurve::compact() {
  std::erase_if(touches_, [](const Touch& touch) { return touch.bytes == 0; });
  bytes_ = RunningSums(kTouches);
  oldest_ = 0;
  for (std::size_t at = 0; at < touches_.size(); ++at) {
    last_[touches_[at].key] = at;
    bytes_.add(at, static_cast<std::int64_t>(touches_[at].bytes));
  }
}

void ShadowCurve::fade() {
  accesses_ /= 2;
  sampled_accesses_ /= 2;
  for (double& hits : hits_) hits /= 2;
}

}  // namespace harvest::policy
