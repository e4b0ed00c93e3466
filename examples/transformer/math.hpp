// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

/// The arithmetic of a transformer, for one token at a time and always in the same order: a token's result is
/// the same to the last bit whatever is computed beside it.
namespace harvest::transformer {

/// Sums have this many parts, which a compiler may compute side by side.
inline constexpr std::size_t kLanes = 8;

/// Requires: `count` is a multiple of kLanes.
[[nodiscard]] float dot(const float* a, const float* b, std::size_t count);

/// y = matrix x, a row for each of y.
void multiply(const float* matrix, std::span<const float> x, std::span<float> y);

/// y = x / rms(x) * weight.
void rms_norm(std::span<const float> x, std::span<const float> weight, std::span<float> y);

/// Turns pairs of one head's elements, the i-th of each half, by angles that grow with the position.
void rotate(std::span<float> head, std::uint32_t position);

/// In place, so that the sum is 1.
void softmax(std::span<float> scores);

/// The places of the `count` largest, largest first, the first of equals first. Scores may be NaN: the answer
/// always has `count` different places. Requires: count <= scores.size().
[[nodiscard]] std::vector<std::uint32_t> largest(std::span<const float> scores, std::size_t count);

/// y = down (silu(gate x) * up x).
void swiglu(const float* gate, const float* up, const float* down, std::span<const float> x,
            std::size_t intermediate, std::span<float> y);

}  // namespace harvest::transformer
