// SPDX-License-Identifier: Apache-2.0
#include "transformer/cpu_compute.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "transformer/math.hpp"

namespace harvest::transformer {
namespace {

/// Every weight is read once and used for each row.
KernelWork matrices(std::uint64_t weights, std::uint64_t rows) {
  return {.bytes = weights * sizeof(float), .operations = 2 * weights * rows};
}

}  // namespace

CpuCompute::CpuCompute(const Model& model, Kernels& kernels, KvMemory& kv)
    : model_(model), shape_(model.shape()), kernels_(kernels), kv_(kv) {}

void CpuCompute::begin_step(std::span<const Row> rows) {
  kernels_.drop();
  rows_.assign(rows.begin(), rows.end());
  states_.resize(rows.size() * shape_.hidden);
  normed_.resize(states_.size());
  queries_.resize(states_.size());
  choices_.resize(rows.size() * shape_.top_k);
  results_.resize(choices_.size() * shape_.hidden);
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const auto embedded = std::span(model_.embedding()).subspan(std::size_t{rows[row].token} * shape_.hidden);
    std::copy_n(embedded.begin(), shape_.hidden, state(row).begin());
  }
}

Status CpuCompute::attend(std::uint32_t layer) {
  KernelWork work =
      matrices(2 * std::uint64_t{shape_.hidden} * (shape_.hidden + shape_.kv_size()), rows_.size());
  work.bytes += seen_bytes();
  return kernels_.launch(work, [this, layer] {
    // A row sees those before it in the same step: all keys and values first.
    for (std::size_t row = 0; row < rows_.size(); ++row) project(layer, row);
    for (std::size_t row = 0; row < rows_.size(); ++row) attend_row(layer, row);
  });
}

Result<std::span<const Choice>> CpuCompute::route(std::uint32_t layer) {
  const Status launched =
      kernels_.launch(matrices(std::uint64_t{shape_.experts} * shape_.hidden, rows_.size()), [this, layer] {
        for (std::size_t row = 0; row < rows_.size(); ++row) route_row(layer, row);
      });
  if (!launched) return tl::unexpected(launched.error());
  if (Status done = kernels_.wait(); !done) return tl::unexpected(done.error());
  return choices_;
}

Result<std::span<const Choice>> CpuCompute::look_ahead(std::uint32_t layer) {
  likely_.clear();
  const Status launched =
      kernels_.launch(matrices(std::uint64_t{shape_.experts} * shape_.hidden, rows_.size()), [this, layer] {
        for (std::size_t row = 0; row < rows_.size(); ++row)
          if (rows_[row].phase == moe::Phase::decode) look_ahead_row(layer, row);
      });
  if (!launched) return tl::unexpected(launched.error());
  if (Status done = kernels_.wait(); !done) return tl::unexpected(done.error());
  return likely_;
}

Status CpuCompute::run_expert(std::uint32_t expert, const std::byte* weights) {
  std::vector<Place> places;
  for (std::size_t row = 0; row < rows_.size(); ++row)
    for (std::size_t rank = 0; rank < shape_.top_k; ++rank)
      if (choices_[row * shape_.top_k + rank].expert == expert) places.push_back({row, rank});
  const std::uint64_t matrix = std::uint64_t{shape_.hidden} * shape_.intermediate;
  const KernelWork work = matrices(3 * matrix, places.size());
  return kernels_.launch(work, [this, weights, places = std::move(places)] {
    const auto tensor = [&](std::size_t i) {
      return reinterpret_cast<const float*>(weights + model_.description().tensor_offset(i));
    };
    for (const auto& [row, rank] : places)
      swiglu(tensor(0), tensor(1), tensor(2), normed(row), shape_.intermediate, result(row, rank));
  });
}

Status CpuCompute::combine() {
  return kernels_.launch({.bytes = results_.size() * sizeof(float)}, [this] {
    for (std::size_t row = 0; row < rows_.size(); ++row)
      for (std::size_t rank = 0; rank < shape_.top_k; ++rank) {
        const float weight = choices_[row * shape_.top_k + rank].weight;
        const auto sum = state(row);
        const auto part = result(row, rank);
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weight * part[i];
      }
  });
}

Result<std::span<const float>> CpuCompute::logits(std::span<const std::uint32_t> rows) {
  logits_.resize(rows.size() * shape_.vocabulary);
  const KernelWork work = matrices(std::uint64_t{shape_.vocabulary} * shape_.hidden, rows.size());
  const Status launched = kernels_.launch(work, [this, rows] {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rms_norm(state(rows[i]), model_.final_norm(), normed(rows[i]));
      multiply(model_.unembedding().data(), normed(rows[i]),
               std::span(logits_).subspan(i * shape_.vocabulary, shape_.vocabulary));
    }
  });
  if (!launched) return tl::unexpected(launched.error());
  if (Status done = kernels_.wait(); !done) return tl::unexpected(done.error());
  return logits_;
}

void CpuCompute::project(std::uint32_t layer, std::size_t row) {
  const LayerWeights& weights = model_.layer(layer);
  const std::uint32_t position = rows_[row].position;
  const auto query = std::span(queries_).subspan(row * shape_.hidden, shape_.hidden);
  const std::span key(kv_.keys(layer, rows_[row].sequence, position).first, shape_.kv_size());
  std::vector<float> value(shape_.kv_size());
  rms_norm(state(row), weights.attention_norm, normed(row));
  multiply(weights.query.data(), normed(row), query);
  multiply(weights.key.data(), normed(row), key);
  multiply(weights.value.data(), normed(row), value);
  const KvRow kept = kv_.values(layer, rows_[row].sequence, position);
  for (std::size_t i = 0; i < value.size(); ++i) kept[i] = value[i];
  const std::uint32_t size = shape_.head_size();
  for (std::uint32_t head = 0; head < shape_.heads; ++head)
    rotate(query.subspan(head * size, size), position);
  for (std::uint32_t head = 0; head < shape_.kv_heads; ++head)
    rotate(key.subspan(head * size, size), position);
}

void CpuCompute::attend_row(std::uint32_t layer, std::size_t row) {
  const std::uint32_t size = shape_.head_size();
  const std::uint32_t seen = rows_[row].position + 1;
  const float scale = 1 / std::sqrt(static_cast<float>(size));
  std::vector<KvRow> keys(seen), values(seen);
  for (std::uint32_t at = 0; at < seen; ++at) {
    keys[at] = kv_.keys(layer, rows_[row].sequence, at);
    values[at] = kv_.values(layer, rows_[row].sequence, at);
  }
  std::vector<float> scores(seen);
  std::vector<float> attended(shape_.hidden);
  for (std::uint32_t head = 0; head < shape_.heads; ++head) {
    const std::uint32_t kv = head / (shape_.heads / shape_.kv_heads) * size;  // where the head's keys begin
    const float* query = queries_.data() + row * shape_.hidden + head * size;
    for (std::uint32_t at = 0; at < seen; ++at) scores[at] = dot(query, keys[at].first + kv, size) * scale;
    softmax(scores);
    for (std::uint32_t at = 0; at < seen; ++at)
      for (std::uint32_t i = 0; i < size; ++i) attended[head * size + i] += scores[at] * values[at][kv + i];
  }
  std::vector<float> output(shape_.hidden);
  multiply(model_.layer(layer).output.data(), attended, output);
  const auto sum = state(row);
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += output[i];
}

std::vector<float> CpuCompute::shares_of_experts(std::uint32_t layer, std::span<const float> normed) const {
  const LayerWeights& weights = model_.layer(layer);
  std::vector<float> shares(shape_.experts);
  multiply(weights.router.data(), normed, shares);
  for (std::size_t expert = 0; expert < shares.size(); ++expert)
    shares[expert] += weights.router_bias[expert];
  softmax(shares);
  return shares;
}

void CpuCompute::route_row(std::uint32_t layer, std::size_t row) {
  rms_norm(state(row), model_.layer(layer).expert_norm, normed(row));
  const std::vector<float> shares = shares_of_experts(layer, normed(row));
  const auto chosen = largest(shares, shape_.top_k);
  float sum = 0;
  for (const std::uint32_t expert : chosen) sum += shares[expert];
  for (std::size_t rank = 0; rank < chosen.size(); ++rank)
    choices_[row * shape_.top_k + rank] = {chosen[rank], shares[chosen[rank]] / sum};
}

void CpuCompute::look_ahead_row(std::uint32_t layer, std::size_t row) {
  std::vector<float> normed(shape_.hidden);  // the experts of this layer still read the row's own
  rms_norm(state(row), model_.layer(layer).expert_norm, normed);
  const std::vector<float> shares = shares_of_experts(layer, normed);
  for (const std::uint32_t expert : largest(shares, shape_.top_k))
    likely_.push_back({expert, shares[expert]});
}

std::span<float> CpuCompute::state(std::size_t row) {
  return std::span(states_).subspan(row * shape_.hidden, shape_.hidden);
}

std::span<float> CpuCompute::normed(std::size_t row) {
  return std::span(normed_).subspan(row * shape_.hidden, shape_.hidden);
}

std::span<float> CpuCompute::result(std::size_t row, std::size_t rank) {
  return std::span(results_).subspan((row * shape_.top_k + rank) * shape_.hidden, shape_.hidden);
}

/// Keys and values that the step's rows see.
std::uint64_t CpuCompute::seen_bytes() const {
  std::uint64_t positions = 0;
  for (const Row& row : rows_) positions += row.position + 1;
  return 2 * positions * shape_.kv_size() * sizeof(float);
}

}  // namespace harvest::transformer
