// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/moe/model.hpp>

namespace harvest::moe {
namespace {

constexpr std::uint32_t kMostLayers = 1024;
constexpr std::uint32_t kMostExperts = 1024;
constexpr std::size_t kMostTensors = 1024;
constexpr std::uint64_t kMostExpertBytes = 16ULL << 30;

std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
}

Status outside(std::string_view field, std::uint64_t value, std::uint64_t least, std::uint64_t most) {
  return fail(ErrorCode::invalid_argument,
              fmt::format("{} is {}, the limits are {} and {}", field, value, least, most));
}

}  // namespace

std::string_view to_string(Phase phase) {
  return phase == Phase::prefill ? "prefill" : "decode";
}

std::uint64_t ModelDescription::tensor_offset(std::size_t tensor) const {
  std::uint64_t offset = 0;
  for (std::size_t i = 0; i < tensor; ++i) offset += aligned(tensors[i].bytes);
  return offset;
}

std::uint64_t ModelDescription::expert_bytes() const {
  return tensor_offset(tensors.size());
}

std::uint64_t ModelDescription::slot_bytes() const {
  constexpr std::uint64_t kAlignment = 256;  // of what a driver's own allocations begin at
  return (expert_bytes() + kAlignment - 1) / kAlignment * kAlignment;
}

Status ModelDescription::validate() const {
  if (layers < 1 || layers > kMostLayers) return outside("layers", layers, 1, kMostLayers);
  if (experts < 1 || experts > kMostExperts) return outside("experts", experts, 1, kMostExperts);
  if (top_k < 1 || top_k > experts) return outside("top_k", top_k, 1, experts);
  if (tensors.empty())
    return fail(ErrorCode::invalid_argument, "tensors is empty; an expert has at least one");
  if (tensors.size() > kMostTensors) return outside("the number of tensors", tensors.size(), 1, kMostTensors);
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].bytes < 1 || tensors[i].bytes > kMostExpertBytes)
      return outside(fmt::format("tensors[{}].bytes", i), tensors[i].bytes, 1, kMostExpertBytes);
    bytes += aligned(tensors[i].bytes);
    if (bytes > kMostExpertBytes) return outside("the bytes of an expert", bytes, 1, kMostExpertBytes);
  }
  return {};
}

}  // namespace harvest::moe
