// SPDX-License-Identifier: Apache-2.0
#include "cli/kv/dense_model.hpp"

#include <fmt/format.h>

#include <array>

#include "cli/output.hpp"

namespace harvest::cli {
namespace {

constexpr std::array kModels{
    DenseModel{"llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256, "meta-llama/Meta-Llama-3-8B config.json"},
    DenseModel{"llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256, "meta-llama/Meta-Llama-3-70B config.json"},
    DenseModel{"mistral-7b", 32, 4096, 32, 8, 128, 14336, 32768, "mistralai/Mistral-7B-v0.3 config.json"},
    DenseModel{"qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936, "Qwen/Qwen3-32B config.json"},
    DenseModel{"mistral-large-2", 88, 12288, 96, 8, 128, 28672, 32768,
               "mistralai/Mistral-Large-Instruct-2407 config.json"},
};

constexpr double kBytes = 2;  // of a number

}  // namespace

double DenseModel::layer_weights() const {
  const double attention = 1.0 * hidden * head_size * (2.0 * heads + 2.0 * kv_heads);
  return attention + 3.0 * hidden * intermediate;
}

std::uint64_t DenseModel::weight_bytes() const {
  const double numbers = layers * layer_weights() + 2.0 * hidden * vocabulary;
  return static_cast<std::uint64_t>(numbers * kBytes);
}

std::string dense_model_names() {
  std::string names;
  for (const DenseModel& model : kModels) names += fmt::format("{}{}", names.empty() ? "" : ", ", model.name);
  return names;
}

Result<DenseModel> find_dense_model(std::string_view name) {
  for (const DenseModel& model : kModels)
    if (model.name == name) return model;
  return fail(ErrorCode::not_found,
              fmt::format("no model without experts is named '{}'; known are {}", name, dense_model_names()));
}

void PassWork::add_chunk(double chunk, double context) {
  tokens += chunk;
  prefill_context += context + chunk;
  prefill_pairs += chunk * (context + (chunk + 1) / 2);
}

void PassWork::add_next_token(double context) {
  tokens += 1;
  sampled += 1;
  decode_context += context;
}

Result<Rank> Rank::create(const DenseModel& model, const Machine& machine, std::uint32_t ranks) {
  const DeviceInfo& gpu = machine.devices[0].info;
  Rank rank;
  rank.model_ = model;
  rank.ranks_ = ranks;
  if (model.kv_heads % ranks != 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} cannot be split over {} GPUs: it has {} heads of keys and values", model.name,
                            ranks, model.kv_heads));
  const auto card = find_card(gpu.name);
  if (!card) return tl::unexpected(card.error());
  rank.card_ = *card;
  if (ranks > 1) {
    const MachineLink* const link = machine.find_link(0, 1);
    if (link == nullptr)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("the GPUs of {} do not reach each other: no model can be split over them",
                              machine.name));
    rank.exchange_bytes_per_s_ = link->info.bandwidth_bytes_per_s;
  }
  const auto used = static_cast<std::uint64_t>(kMemoryUsed * static_cast<double>(gpu.total_bytes));
  const std::uint64_t other = rank.weight_bytes() + kActivationBytes;
  if (other >= used)
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} over {} GPUs needs {} on each for weights and activations, of {} that a "
                            "server takes of {}: split it over more (--tensor-parallel)",
                            model.name, ranks, format_bytes(other), format_bytes(used), gpu.name));
  rank.kv_room_bytes_ = used - other;
  return rank;
}

kv::KvLayer Rank::layer() const {
  kv::KvLayer layer;
  layer.heads = model_.kv_heads / ranks_;
  layer.head_size = model_.head_size;
  return layer;
}

std::uint64_t Rank::kv_bytes_per_token() const {
  return model_.layers * layer().bytes_per_token();
}

TimeNs Rank::layer_ns(const PassWork& work) const {
  const double share = 1.0 / ranks_;
  const double kv_bytes = static_cast<double>(layer().bytes_per_token());
  const double heads = 1.0 * model_.heads * model_.head_size * share;
  Work linear;  // norm and projection, rotation, projection, norm, up and gate, down
  linear.bytes = model_.layer_weights() * kBytes * share;
  linear.flops = 2 * work.tokens * model_.layer_weights() * share;
  linear.kernels = 6;
  TimeNs ns = card_.time_ns(linear);
  if (work.prefill_pairs > 0)
    ns += card_.time_ns({.bytes = work.prefill_context * kv_bytes, .flops = 4 * work.prefill_pairs * heads});
  if (work.decode_context > 0)
    ns += card_.time_ns({.bytes = work.decode_context * kv_bytes, .flops = 4 * work.decode_context * heads});
  if (ranks_ > 1) {  // two all-reduces over a ring
    const double bytes = 2 * (1 - share) * work.tokens * model_.hidden * kBytes;
    ns += 2 * (kExchangeNs + static_cast<TimeNs>(bytes * 1e9 / exchange_bytes_per_s_));
  }
  return ns;
}

TimeNs Rank::head_ns(const PassWork& work) const {
  const double weights = 1.0 * model_.hidden * model_.vocabulary / ranks_;
  return card_.time_ns({.bytes = weights * kBytes, .flops = 2 * work.sampled * weights, .kernels = 3});
}

}  // namespace harvest::cli
