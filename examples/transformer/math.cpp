// SPDX-License-Identifier: Apache-2.0
#include "transformer/math.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace harvest::transformer {

float dot(const float* a, const float* b, std::size_t count) {
  std::array<float, kLanes> sums{};
  for (std::size_t i = 0; i < count; i += kLanes)
    for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

void multiply(const float* matrix, std::span<const float> x, std::span<float> y) {
  for (std::size_t row = 0; row < y.size(); ++row) y[row] = dot(matrix + row * x.size(), x.data(), x.size());
}

void rms_norm(std::span<const float> x, std::span<const float> weight, std::span<float> y) {
  constexpr float kEpsilon = 1e-5F;
  const float mean_square = dot(x.data(), x.data(), x.size()) / static_cast<float>(x.size());
  const float scale = 1 / std::sqrt(mean_square + kEpsilon);
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
}

void rotate(std::span<float> head, std::uint32_t position) {
  constexpr double kBase = 10'000;
  const std::size_t half = head.size() / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const double frequency = std::pow(kBase, -static_cast<double>(i) / static_cast<double>(half));
    const double angle = position * frequency;
    const auto cosine = static_cast<float>(std::cos(angle));
    const auto sine = static_cast<float>(std::sin(angle));
    const float first = head[i];
    const float second = head[i + half];
    head[i] = first * cosine - second * sine;
    head[i + half] = second * cosine + first * sine;
  }
}

void softmax(std::span<float> scores) {
  const float most = *std::ranges::max_element(scores);
  float sum = 0;
  for (float& score : scores) sum += score = std::exp(score - most);
  for (float& score : scores) score /= sum;
}

std::vector<std::uint32_t> largest(std::span<const float> scores, std::size_t count) {
  std::vector<std::uint32_t> places;
  while (places.size() < count) {
    std::size_t best = scores.size();
    for (std::size_t i = 0; i < scores.size(); ++i) {
      if (std::ranges::find(places, i) != places.end()) continue;
      if (best == scores.size() || scores[i] > scores[best]) best = i;
    }
    places.push_back(static_cast<std::uint32_t>(best));
  }
  return places;
}

void swiglu(const float* gate, const float* up, const float* down, std::span<const float> x,
            std::size_t intermediate, std::span<float> y) {
  std::vector<float> middle(intermediate);
  std::vector<float> lifted(intermediate);
  multiply(gate, x, middle);
  multiply(up, x, lifted);
  for (std::size_t i = 0; i < intermediate; ++i)
    middle[i] = middle[i] / (1 + std::exp(-middle[i])) * lifted[i];
  multiply(down, middle, y);
}

}  // namespace harvest::transformer
