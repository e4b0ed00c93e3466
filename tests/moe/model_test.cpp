// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/moe/model.hpp>

#include <functional>

namespace harvest::moe {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kGiB = 1ULL << 30;

ModelDescription small_model() {
  ModelDescription model;
  model.name = "small";
  model.layers = 2;
  model.experts = 8;
  model.top_k = 2;
  model.tensors = {{"gate", 100}, {"up", 16}, {"down", 1}};
  return model;
}

std::string wrong(const std::function<void(ModelDescription&)>& change) {
  ModelDescription model = small_model();
  change(model);
  const Status status = model.validate();
  if (!status) {
    EXPECT_EQ(status.error().code, ErrorCode::invalid_argument);
  }
  return status ? std::string("nothing") : status.error().message;
}

TEST(ModelDescription, PutsTensorsOneBehindTheOtherAligned) {
  const ModelDescription model = small_model();
  EXPECT_EQ(model.tensor_offset(0), 0U);
  EXPECT_EQ(model.tensor_offset(1), 112U);
  EXPECT_EQ(model.tensor_offset(2), 128U);
  EXPECT_EQ(model.expert_bytes(), 144U);
  for (std::size_t i = 0; i < model.tensors.size(); ++i)
    EXPECT_EQ(model.tensor_offset(i) % kTensorAlignment, 0U);
}

TEST(ModelDescription, NamesWhatIsBeyondItsLimits) {
  EXPECT_EQ(wrong([](auto&) {}), "nothing");
  EXPECT_EQ(wrong([](auto& m) { m.layers = 0; }), "layers is 0, the limits are 1 and 1024");
  EXPECT_EQ(wrong([](auto& m) { m.layers = 1025; }), "layers is 1025, the limits are 1 and 1024");
  EXPECT_EQ(wrong([](auto& m) { m.experts = 1025; }), "experts is 1025, the limits are 1 and 1024");
  EXPECT_EQ(wrong([](auto& m) { m.experts = 0; }), "experts is 0, the limits are 1 and 1024");
  EXPECT_EQ(wrong([](auto& m) { m.top_k = 0; }), "top_k is 0, the limits are 1 and 8");
  EXPECT_EQ(wrong([](auto& m) { m.top_k = 9; }), "top_k is 9, the limits are 1 and 8");
  EXPECT_THAT(wrong([](auto& m) { m.tensors.clear(); }), HasSubstr("tensors is empty"));
  EXPECT_EQ(wrong([](auto& m) {
              m.tensors.resize(1025, {"t", 1});
            }),
            "the number of tensors is 1025, the limits are 1 and 1024");
  EXPECT_THAT(wrong([](auto& m) { m.tensors[1].bytes = 0; }), HasSubstr("tensors[1].bytes is 0"));
  EXPECT_THAT(wrong([](auto& m) { m.tensors[2].bytes = UINT64_MAX; }),
              HasSubstr("tensors[2].bytes is 18446744073709551615"));
}

TEST(ModelDescription, AnExpertHasAtMost16GiB) {
  EXPECT_EQ(wrong([](auto& m) { m.tensors = {{"a", 16 * kGiB}}; }), "nothing");
  EXPECT_EQ(wrong([](auto& m) { m.tensors = {{"a", 8 * kGiB}, {"b", 8 * kGiB}}; }), "nothing");
  EXPECT_THAT(wrong([](auto& m) {
                m.tensors = {{"a", 16 * kGiB}, {"b", 1}};
              }),
              HasSubstr("the bytes of an expert is 17179869200"));
}

TEST(ModelDescription, EverythingAtItsLimitIsTaken) {
  EXPECT_EQ(wrong([](auto& m) {
              m.layers = m.experts = m.top_k = 1024;
              m.tensors.resize(1024, {"t", 16});
            }),
            "nothing");
}

}  // namespace
}  // namespace harvest::moe
