// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
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
/// Nobody else is held there. A test that went wrong fails and does not hang: who is held goes on by itself
/// after `kPatience`, and that is a failure.
class HeldCall {
 public:
  static constexpr std::chrono::seconds kPatience{60};

  /// Returns when the thread is held at its first arrival there, or has ended without coming by.
  HeldCall(PausePoint point, std::function<void()> call) : point_(point) {
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
    if (!changed_.wait_for(lock, kPatience, [this] { return held_ || ended_; }))
      ADD_FAILURE() << "a call neither came to its pause point nor ended";
  }
  ~HeldCall() { finish(); }
  HeldCall(const HeldCall&) = delete;
  HeldCall& operator=(const HeldCall&) = delete;

  [[nodiscard]] bool is_held() {
    const std::lock_guard lock(mutex_);
    return held_;
  }

  /// Lets the call go on, and waits for its end.
  void finish() {
    release();
    if (thread_.joinable()) thread_.join();
  }

  /// Lets the call go on.
  void release() {
    const std::lock_guard lock(mutex_);
    held_ = false;
    released_ = true;
    changed_.notify_all();
  }

 private:
  static void hold_if_mine(PausePoint point) {
    if (mine_ != nullptr && mine_->point_ == point) mine_->hold();
  }

  void hold() {
    std::unique_lock lock(mutex_);
    if (released_) return;
    held_ = true;
    changed_.notify_all();
    if (!changed_.wait_for(lock, kPatience, [this] { return released_; })) {
      ADD_FAILURE() << "nobody let a held call go on";
      held_ = false;
      released_ = true;
    }
  }

  static inline thread_local HeldCall* mine_ = nullptr;

  const PausePoint point_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  bool released_ = false;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace harvest::testing
