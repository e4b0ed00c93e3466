// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/test_hooks.hpp"

namespace harvest::testing {

/// A call on a thread of its own that is held at a pause point, until the test lets it go on:
///
///     HeldCall reader(PausePoint::between_look_up_and_pin, [&] { lease = cache.acquire(key, stream); });
///     ASSERT_TRUE(reader.is_held());
///     ... what is dangerous in that moment ...
///     reader.finish();
///
/// A call is held at its first arrival; `go_on_to` holds it once more. Nobody else is held there. A test that
/// went wrong fails and does not hang: who is held goes on by itself after `kPatience`, and that is a
/// failure.
class HeldCall {
 public:
  static constexpr std::chrono::seconds kPatience{60};

  /// Returns when the thread is held at its first arrival there, or has ended without coming by.
  HeldCall(PausePoint point, std::function<void()> call) : holds_at_(point) {
    install_pause_handler(&hold_if_mine);
    thread_ = std::thread([this, call = std::move(call)] {
      mine_ = this;
      call();
      mine_ = nullptr;
      const std::lock_guard lock(mutex_);
      ended_ = true;
      changed_.notify_all();
    });
    std::unique_lock lock(mutex_);
    wait_until_held_or_over(lock);
  }
  ~HeldCall() { finish(); }
  HeldCall(const HeldCall&) = delete;
  HeldCall& operator=(const HeldCall&) = delete;

  [[nodiscard]] bool is_held() {
    const std::lock_guard lock(mutex_);
    return held_;
  }

  /// Lets the call go on to another point, and answers whether it is held there.
  [[nodiscard]] bool go_on_to(PausePoint next) {
    std::unique_lock lock(mutex_);
    holds_at_ = next;
    held_ = false;
    changed_.notify_all();
    wait_until_held_or_over(lock);
    return held_;
  }

  /// Lets the call go on, to its end.
  void release() {
    const std::lock_guard lock(mutex_);
    holds_at_ = std::nullopt;
    held_ = false;
    changed_.notify_all();
  }

  /// The same, and waits for the end.
  void finish() {
    release();
    if (thread_.joinable()) thread_.join();
  }

 private:
  static void hold_if_mine(PausePoint point) {
    if (mine_ != nullptr) mine_->hold(point);
  }

  void hold(PausePoint point) {
    std::unique_lock lock(mutex_);
    if (holds_at_ != point) return;
    held_ = true;
    changed_.notify_all();
    if (!changed_.wait_for(lock, kPatience, [this] { return !held_; })) {
      ADD_FAILURE() << "nobody let a held call go on";
      held_ = false;
      holds_at_ = std::nullopt;
    }
  }

  void wait_until_held_or_over(std::unique_lock<std::mutex>& lock) {
    if (!changed_.wait_for(lock, kPatience, [this] { return held_ || ended_; }))
      ADD_FAILURE() << "a call neither came to its pause point nor ended";
  }

  static inline thread_local HeldCall* mine_ = nullptr;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<PausePoint> holds_at_;
  bool held_ = false;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace harvest::testing
