// SPDX-License-Identifier: Apache-2.0
// The server's arithmetic against the formulas, written down once more in double precision and without any of
// the server's own code; and that a token's result does not depend on what is computed beside it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "transformer/cpu_compute.hpp"
#include "transformer/math.hpp"
#include "transformer/model.hpp"

namespace harvest::transformer {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::Pointwise;

using Vector = std::vector<double>;

constexpr Shape kShape{.layers = 3,
                       .experts = 5,
                       .top_k = 2,
                       .hidden = 48,
                       .intermediate = 40,
                       .heads = 6,
                       .kv_heads = 2,
                       .vocabulary = 37};

// --- the formulas
// --------------------------------------------------------------------------------------------

template <typename Matrix>
Vector product(const Matrix* matrix, const Vector& x, std::size_t rows) {
  Vector y(rows);
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t i = 0; i < x.size(); ++i) y[row] += matrix[row * x.size() + i] * x[i];
  return y;
}

Vector normalise(const Vector& x, const std::vector<float>& weight) {
  const double square = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
  Vector y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    y[i] = x[i] * weight[i] / std::sqrt(square / static_cast<double>(x.size()) + 1e-5);
  return y;
}

/// Rotary positions turn each pair of a head by the angle position / 10000^(2 pair / size): the product of
/// two heads then depends on the distance of their positions alone. Here only that product is computed.
double turned_product(const double* query, const double* key, std::size_t size, double distance) {
  double sum = 0;
  for (std::size_t pair = 0; pair < size / 2; ++pair) {
    const double angle =
        distance * std::pow(10'000, -2.0 * static_cast<double>(pair) / static_cast<double>(size));
    const double a = query[pair], b = query[pair + size / 2], c = key[pair], d = key[pair + size / 2];
    sum += (a * c + b * d) * std::cos(angle) - (b * c - a * d) * std::sin(angle);
  }
  return sum;
}

Vector shares(Vector scores) {
  const double most = *std::ranges::max_element(scores);
  for (double& score : scores) score = std::exp(score - most);
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  for (double& score : scores) score /= sum;
  return scores;
}

Vector attention(const Model& model, const LayerWeights& weights, const std::vector<Vector>& normed) {
  const std::size_t size = kShape.head_size(), now = normed.size() - 1;
  const Vector query = product(weights.query.data(), normed[now], kShape.hidden);
  Vector attended(kShape.hidden);
  for (std::size_t head = 0; head < kShape.heads; ++head) {
    const std::size_t kv = head / (kShape.heads / kShape.kv_heads) * size;
    Vector scores;
    for (std::size_t at = 0; at <= now; ++at) {
      const Vector key = product(weights.key.data(), normed[at], kShape.kv_size());
      scores.push_back(turned_product(&query[head * size], &key[kv], size, static_cast<double>(now - at)) /
                       std::sqrt(static_cast<double>(size)));
    }
    scores = shares(scores);
    for (std::size_t at = 0; at <= now; ++at) {
      const Vector value = product(weights.value.data(), normed[at], kShape.kv_size());
      for (std::size_t i = 0; i < size; ++i) attended[head * size + i] += scores[at] * value[kv + i];
    }
  }
  return product(weights.output.data(), attended, model.shape().hidden);
}

Vector mixture(const Model& model, std::uint32_t layer, const Vector& x) {
  const LayerWeights& weights = model.layer(layer);
  Vector scores = product(weights.router.data(), x, kShape.experts);
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] += weights.router_bias[i];
  scores = shares(scores);
  std::vector<std::uint32_t> order(kShape.experts);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, [&](auto a, auto b) { return scores[a] > scores[b]; });
  order.resize(kShape.top_k);
  double sum = 0;
  for (const std::uint32_t expert : order) sum += scores[expert];
  Vector y(kShape.hidden);
  for (const std::uint32_t expert : order) {
    const auto* gate = reinterpret_cast<const float*>(model.expert(layer, expert));
    const std::size_t matrix = std::size_t{kShape.hidden} * kShape.intermediate;
    Vector middle = product(gate, x, kShape.intermediate);
    const Vector up = product(gate + matrix, x, kShape.intermediate);
    for (std::size_t i = 0; i < middle.size(); ++i) middle[i] *= up[i] / (1 + std::exp(-middle[i]));
    const Vector down = product(gate + 2 * matrix, middle, kShape.hidden);
    for (std::size_t i = 0; i < y.size(); ++i) y[i] += scores[expert] / sum * down[i];
  }
  return y;
}

/// The scores of the token behind the last of these.
Vector formulas(const Model& model, const std::vector<std::uint32_t>& tokens) {
  std::vector<Vector> states;
  for (const std::uint32_t token : tokens) {
    const auto* embedded = model.embedding().data() + token * kShape.hidden;
    states.emplace_back(embedded, embedded + kShape.hidden);
  }
  const auto add = [](Vector& to, const Vector& what) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += what[i];
  };
  for (std::uint32_t layer = 0; layer < kShape.layers; ++layer) {
    std::vector<Vector> normed;
    for (Vector& state : states) {
      normed.push_back(normalise(state, model.layer(layer).attention_norm));
      add(state, attention(model, model.layer(layer), normed));
      add(state, mixture(model, layer, normalise(state, model.layer(layer).expert_norm)));
    }
  }
  return product(model.unembedding().data(), normalise(states.back(), model.final_norm()), kShape.vocabulary);
}

// --- the server's way
// ----------------------------------------------------------------------------------------

std::vector<Row> rows_of(std::uint32_t sequence, const std::vector<std::uint32_t>& tokens) {
  std::vector<Row> rows;
  for (std::uint32_t i = 0; i < tokens.size(); ++i)
    rows.push_back({sequence, i, tokens[i], moe::Phase::prefill});
  return rows;
}

/// Runs the rows through all layers, experts in rising or falling order, and answers the scores of the last
/// row.
std::vector<float> run(const Model& model, Compute& compute, const std::vector<Row>& rows,
                       bool falling = false) {
  compute.begin_step(rows);
  for (std::uint32_t layer = 0; layer < kShape.layers; ++layer) {
    EXPECT_TRUE(compute.attend(layer));
    EXPECT_EQ(compute.route(layer)->size(), rows.size() * kShape.top_k);
    for (std::uint32_t i = 0; i < kShape.experts; ++i) {
      const std::uint32_t expert = falling ? kShape.experts - 1 - i : i;
      EXPECT_TRUE(compute.run_expert(expert, model.expert(layer, expert)));
    }
    EXPECT_TRUE(compute.combine());
  }
  const std::vector<std::uint32_t> last{static_cast<std::uint32_t>(rows.size() - 1)};
  const auto logits = compute.logits(last).value();
  return {logits.begin(), logits.end()};
}

class TransformerTest : public ::testing::Test {
 protected:
  const Model model_{kShape, 7};
  const std::vector<std::uint32_t> tokens_{3, 36, 0, 17, 17, 5, 29};
  Kernels kernels_;
  PlainKv kv_{kShape, 3, 16};
  CpuCompute compute_{model_, kernels_, kv_};
};

TEST_F(TransformerTest, ComputesWhatTheFormulasSay) {
  const std::vector<float> scores = run(model_, compute_, rows_of(0, tokens_));
  const Vector expected = formulas(model_, tokens_);
  EXPECT_THAT(scores, Pointwise(FloatNear(1e-4F), std::vector<float>(expected.begin(), expected.end())));
}

TEST_F(TransformerTest, APromptInPiecesIsTheSamePromptToTheLastBit) {
  const std::vector<float> whole = run(model_, compute_, rows_of(0, tokens_));
  const std::vector<Row> rows = rows_of(1, tokens_);
  run(model_, compute_, {rows.begin(), rows.begin() + 3});
  run(model_, compute_, {rows.begin() + 3, rows.begin() + 4});
  EXPECT_EQ(run(model_, compute_, {rows.begin() + 4, rows.end()}), whole);
}

TEST_F(TransformerTest, NeitherNeighboursNorTheOrderOfExpertsChangeABit) {
  const std::vector<float> alone = run(model_, compute_, rows_of(0, tokens_));
  std::vector<Row> rows = rows_of(2, {9, 8, 7, 6});
  for (const Row& row : rows_of(1, tokens_)) rows.push_back(row);
  EXPECT_EQ(run(model_, compute_, rows, /*falling=*/true), alone);
}

TEST_F(TransformerTest, AStepThatIsBegunAgainForgetsTheFirst) {
  const std::vector<float> right = run(model_, compute_, rows_of(0, tokens_));
  const std::vector<Row> rows = rows_of(1, tokens_);
  compute_.begin_step(rows);
  ASSERT_TRUE(compute_.attend(0));
  ASSERT_TRUE(compute_.route(0));
  const std::vector<std::byte> wrong(model_.expert_bytes(), std::byte{0xFF});  // not a number, each of them
  for (std::uint32_t expert = 0; expert < kShape.experts; ++expert)
    ASSERT_TRUE(compute_.run_expert(expert, wrong.data()));
  ASSERT_TRUE(compute_.combine());
  ASSERT_TRUE(compute_.attend(1));
  ASSERT_TRUE(compute_.route(1)) << "scores that are no numbers still name experts";
  EXPECT_EQ(run(model_, compute_, rows), right);
}

TEST_F(TransformerTest, WeightsAreTheSeedsAlone) {
  const Model same(kShape, 7), other(kShape, 8);
  EXPECT_EQ(same.embedding(), model_.embedding());
  EXPECT_TRUE(
      std::equal(model_.expert(2, 4), model_.expert(2, 4) + model_.expert_bytes(), same.expert(2, 4)));
  EXPECT_NE(other.embedding(), model_.embedding());
}

TEST(MathTest, LargestTakesTheFirstOfEqualsAndWhatIsNoNumber) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(largest(std::vector<float>{1, 3, 2, 3}, 3), ElementsAre(1, 3, 2));
  EXPECT_THAT(largest(std::vector<float>{kNan, kNan, kNan}, 2), ElementsAre(0, 1));
  EXPECT_EQ(largest(std::vector<float>{kNan, 1, kNan, 2}, 4).size(), 4U);
}

TEST(ShapeTest, SaysWhatDoesNotFit) {
  const auto complaint = [](auto change) {
    Shape shape;
    change(shape);
    const Status status = shape.validate();
    return status ? "nothing" : status.error().message;
  };
  EXPECT_EQ(complaint([](Shape&) {}), "nothing");
  EXPECT_EQ(complaint([](Shape& shape) { shape.top_k = 17; }), "top_k is 17, it must be from 1 to 16");
  EXPECT_EQ(complaint([](Shape& shape) { shape.hidden = 12; }),
            "hidden is 12, it must be from 8 to 16384 and a multiple of 8");
  EXPECT_EQ(complaint([](Shape& shape) { shape.heads = 6; }),
            "heads is 6, it must be a multiple of kv_heads, 4");
  EXPECT_EQ(complaint([](Shape& shape) { shape.hidden = 96; }),
            "hidden is 96, it must be a multiple of 8 x heads, 64");
  EXPECT_EQ(complaint([](Shape& shape) { shape.skew = std::nan(""); }),
            "skew is nan, it must be from 0 to 100");
}

}  // namespace
}  // namespace harvest::transformer
