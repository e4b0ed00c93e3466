// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the thread sanitizer is told. It takes every lock for an edge between threads; the fake has one lock,
/// so it would order everything and no missing event would ever be seen. So the fake's insides are hidden
/// from it, and the edges that CUDA promises are named: submitting work, its end, waiting for it. The bytes
/// of copies are seen.
#if defined(__SANITIZE_THREAD__)
#define HARVEST_FAKE_CUDA_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HARVEST_FAKE_CUDA_TSAN 1
#endif
#endif

#if defined(HARVEST_FAKE_CUDA_TSAN)
#include <cstdlib>
#include <string_view>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void AnnotateIgnoreSyncBegin(const char* file, int line);
void AnnotateIgnoreSyncEnd(const char* file, int line);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace harvest::fake_cuda::internal {

#if defined(HARVEST_FAKE_CUDA_TSAN)
inline bool hides_insides() {
  static const bool hides = [] {
    const char* mode = std::getenv("HARVEST_FAKE_CUDA_TSAN");
    return mode == nullptr || std::string_view(mode) != "self";
  }();
  return hides;
}

inline void begin_hidden() {
  if (!hides_insides()) return;
  AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
inline void end_hidden() {
  if (!hides_insides()) return;
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
}

// The annotations of edges are synchronisation too: they count only where that is not ignored.
inline void acquire_edge(void* token) {
  if (hides_insides()) AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  __tsan_acquire(token);
  if (hides_insides()) AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
}
inline void release_edge(void* token) {
  if (hides_insides()) AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  __tsan_release(token);
  if (hides_insides()) AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
}
#else
inline void begin_hidden() {}
inline void end_hidden() {}
inline void acquire_edge(void*) {}
inline void release_edge(void*) {}
#endif

/// Within the fake.
class Inside {
 public:
  Inside() { begin_hidden(); }
  ~Inside() { end_hidden(); }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

/// Within `Inside`: where the user's bytes are touched or the user's code runs.
class Outside {
 public:
  Outside() { end_hidden(); }
  ~Outside() { begin_hidden(); }
  Outside(const Outside&) = delete;
  Outside& operator=(const Outside&) = delete;
};

}  // namespace harvest::fake_cuda::internal
