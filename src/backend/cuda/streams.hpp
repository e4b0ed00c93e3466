// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <harvest/types.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/annotated_mutex.hpp"

namespace harvest::cuda {

/// A stream of ours or the caller's.
struct Stream {
  Stream(DeviceId of, cudaStream_t handle, bool ours) : device(of), native(handle), owned(ours) {}

  const DeviceId device;
  const cudaStream_t native;
  const bool owned;
  /// Held while work is given to it. Who finds a stream that is closed by then does not know it.
  Mutex mutex;
  bool closed HARVEST_GUARDED_BY(mutex) = false;
};

/// Streams by id. Ids count up and are not used again. Thread-safe. Cost of a look-up: a shared lock and a
/// hash; it does not allocate.
class Streams {
 public:
  StreamId add(DeviceId device, cudaStream_t native, bool owned) HARVEST_EXCLUDES(mutex_) {
    auto stream = std::make_shared<Stream>(device, native, owned);
    const WriteLock lock(mutex_);
    const StreamId id{++last_};
    streams_.emplace(id, std::move(stream));
    return id;
  }

  /// Null if there is none.
  [[nodiscard]] std::shared_ptr<Stream> find(StreamId id) const HARVEST_EXCLUDES(mutex_) {
    const ReadLock lock(mutex_);
    const auto found = streams_.find(id);
    return found == streams_.end() ? nullptr : found->second;
  }

  /// Null if there was none.
  std::shared_ptr<Stream> remove(StreamId id) HARVEST_EXCLUDES(mutex_) {
    const WriteLock lock(mutex_);
    const auto found = streams_.find(id);
    if (found == streams_.end()) return nullptr;
    auto stream = std::move(found->second);
    streams_.erase(found);
    return stream;
  }

  [[nodiscard]] std::vector<std::shared_ptr<Stream>> all() const HARVEST_EXCLUDES(mutex_) {
    const ReadLock lock(mutex_);
    std::vector<std::shared_ptr<Stream>> streams;
    for (const auto& [id, stream] : streams_) streams.push_back(stream);
    return streams;
  }

 private:
  mutable SharedMutex mutex_;
  std::unordered_map<StreamId, std::shared_ptr<Stream>> streams_ HARVEST_GUARDED_BY(mutex_);
  std::uint32_t last_ HARVEST_GUARDED_BY(mutex_) = 0;
};

}  // namespace harvest::cuda
