// SPDX-License-Identifier: Apache-2.0
#include <harvest/runner.hpp>

#include <harvest/peer_cache.hpp>

#include <chrono>
#include <condition_variable>
#include <thread>

#include "base/annotated_mutex.hpp"

namespace harvest {

class Runner::Impl {
 public:
  Impl(PeerCache& cache, TimeNs pause_ns) : cache_(cache), pause_(pause_ns), thread_([this] { run(); }) {}

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
      cache_.poll();
      lock.lock();
      if (!stopping_) lock.wait_for(wake_, pause_);
    }
  }

  PeerCache& cache_;
  const std::chrono::nanoseconds pause_;
  Mutex mutex_;
  bool stopping_ HARVEST_GUARDED_BY(mutex_) = false;
  std::condition_variable wake_;
  std::thread thread_;
};

Runner::Runner(PeerCache& cache, TimeNs pause_ns) : impl_(std::make_unique<Impl>(cache, pause_ns)) {}
Runner::~Runner() = default;

}  // namespace harvest
