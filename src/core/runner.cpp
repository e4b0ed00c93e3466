// SPDX-License-Identifier: Apache-2.0
#include <harvest/runner.hpp>

#include <harvest/peer_cache.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <thread>

#include "base/annotated_mutex.hpp"

namespace harvest {
namespace {

constexpr std::chrono::nanoseconds kShortestPause{10'000};  ///< leaves the processor to others

}  // namespace

class Runner::Impl {
 public:
  Impl(PeerCache& cache, TimeNs longest_pause_ns)
      : cache_(cache),
        longest_pause_(std::max(std::chrono::nanoseconds(longest_pause_ns), kShortestPause)),
        thread_([this] { run(); }) {}

  ~Impl() {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

 private:
  void run() {
    MutexLock lock(mutex_);
    while (!stopping_) {
      lock.unlock();
      const TimeNs wanted = cache_.poll();
      const std::chrono::nanoseconds until_wanted(wanted - cache_.backend().now_ns());
      lock.lock();
      if (!stopping_) lock.wait_for(wake_, std::clamp(until_wanted, kShortestPause, longest_pause_));
    }
  }

  PeerCache& cache_;
  const std::chrono::nanoseconds longest_pause_;
  Mutex mutex_;
  bool stopping_ HARVEST_GUARDED_BY(mutex_) = false;
  std::condition_variable wake_;
  std::thread thread_;
};

Runner::Runner(PeerCache& cache, TimeNs longest_pause_ns)
    : impl_(std::make_unique<Impl>(cache, longest_pause_ns)) {}
Runner::~Runner() = default;

}  // namespace harvest
