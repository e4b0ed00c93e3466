// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <mutex>
#include <shared_mutex>

/// A mutex that clang's thread-safety analysis understands, so that "guarded by" is checked by the
/// compiler instead of by the reader. With other compilers the annotations are nothing.
#if defined(__clang__)
#define HARVEST_ANNOTATE(x) __attribute__((x))
#else
#define HARVEST_ANNOTATE(x)
#endif

#define HARVEST_CAPABILITY(name) HARVEST_ANNOTATE(capability(name))
#define HARVEST_SCOPED_CAPABILITY HARVEST_ANNOTATE(scoped_lockable)
#define HARVEST_GUARDED_BY(mutex) HARVEST_ANNOTATE(guarded_by(mutex))
#define HARVEST_REQUIRES(mutex) HARVEST_ANNOTATE(requires_capability(mutex))
#define HARVEST_EXCLUDES(mutex) HARVEST_ANNOTATE(locks_excluded(mutex))
#define HARVEST_ACQUIRE(...) HARVEST_ANNOTATE(acquire_capability(__VA_ARGS__))
#define HARVEST_ACQUIRE_SHARED(...) HARVEST_ANNOTATE(acquire_shared_capability(__VA_ARGS__))
#define HARVEST_REQUIRES_SHARED(mutex) HARVEST_ANNOTATE(requires_shared_capability(mutex))
#define HARVEST_RELEASE(...) HARVEST_ANNOTATE(release_capability(__VA_ARGS__))
#define HARVEST_TRY_ACQUIRE(...) HARVEST_ANNOTATE(try_acquire_capability(__VA_ARGS__))
#define HARVEST_NO_THREAD_SAFETY_ANALYSIS HARVEST_ANNOTATE(no_thread_safety_analysis)

namespace harvest {

class HARVEST_CAPABILITY("mutex") Mutex {
 public:
  void lock() HARVEST_ACQUIRE() { mutex_.lock(); }
  void unlock() HARVEST_RELEASE() { mutex_.unlock(); }
  bool try_lock() HARVEST_TRY_ACQUIRE(true) { return mutex_.try_lock(); }

 private:
  friend class MutexLock;
  std::mutex mutex_;
};

/// Holds a mutex for a scope; can wait on a condition variable and can be opened and closed again.
class HARVEST_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) HARVEST_ACQUIRE(mutex) : lock_(mutex.mutex_) {}
  ~MutexLock() HARVEST_RELEASE() = default;
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  void unlock() HARVEST_RELEASE() { lock_.unlock(); }
  void lock() HARVEST_ACQUIRE() { lock_.lock(); }

  /// Gives the mutex up while it waits and holds it again on return.
  void wait(std::condition_variable& condition) { condition.wait(lock_); }
  template <typename Duration>
  void wait_for(std::condition_variable& condition, const Duration& duration) {
    condition.wait_for(lock_, duration);
  }

 private:
  std::unique_lock<std::mutex> lock_;
};

/// Many readers or one writer.
class HARVEST_CAPABILITY("mutex") SharedMutex {
 public:
  void lock() HARVEST_ACQUIRE() { mutex_.lock(); }
  void unlock() HARVEST_RELEASE() { mutex_.unlock(); }
  void lock_shared() HARVEST_ACQUIRE_SHARED() { mutex_.lock_shared(); }
  void unlock_shared() HARVEST_ANNOTATE(release_shared_capability()) { mutex_.unlock_shared(); }

 private:
  std::shared_mutex mutex_;
};

/// Holds a shared mutex for a scope, as its one writer.
class HARVEST_SCOPED_CAPABILITY WriteLock {
 public:
  explicit WriteLock(SharedMutex& mutex) HARVEST_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~WriteLock() HARVEST_RELEASE() { mutex_.unlock(); }
  WriteLock(const WriteLock&) = delete;
  WriteLock& operator=(const WriteLock&) = delete;

 private:
  SharedMutex& mutex_;
};

/// Holds a shared mutex for a scope, as one of its readers.
class HARVEST_SCOPED_CAPABILITY ReadLock {
 public:
  explicit ReadLock(SharedMutex& mutex) HARVEST_ACQUIRE_SHARED(mutex) : mutex_(mutex) {
    mutex_.lock_shared();
  }
  ~ReadLock() HARVEST_ANNOTATE(release_generic_capability()) { mutex_.unlock_shared(); }
  ReadLock(const ReadLock&) = delete;
  ReadLock& operator=(const ReadLock&) = delete;

 private:
  SharedMutex& mutex_;
};

}  // namespace harvest
