// SPDX-License-Identifier: Apache-2.0
// A stranger's program: it knows Harvest by its public headers and the linker alone.
#include <cstdio>
#include <harvest/cuda.hpp>
#include <harvest/policy.hpp>

int main() {
  auto policy = harvest::make_eviction_policy("lru", 2);
  if (!policy) return 1;
  (*policy)->insert(harvest::Key{1}, {});
  (*policy)->insert(harvest::Key{2}, {});
  (*policy)->hit(harvest::Key{1});
  const auto victim = (*policy)->evict(harvest::Key{3}, {}, [](const harvest::Key&) { return true; });
  if (victim != harvest::Key{2}) return 2;

  const auto unknown = harvest::make_eviction_policy("no such policy", 2);
  if (unknown || unknown.error().code != harvest::ErrorCode::not_found) return 3;

  // Links with CUDA's runtime where this build has it; starts, and says why not, where there is no GPU.
  const auto gpus = harvest::make_cuda_backend();
  const auto why = gpus ? harvest::ErrorCode::ok : gpus.error().code;
  if (!gpus &&
      why != (harvest::has_cuda() ? harvest::ErrorCode::unavailable : harvest::ErrorCode::not_supported))
    return 4;
  std::printf("evicted %llu; %s\n", static_cast<unsigned long long>(victim->low),
              unknown.error().message.c_str());
  return 0;
}
