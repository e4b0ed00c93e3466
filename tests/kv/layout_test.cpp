// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <array>

#include "kv/world.hpp"

namespace harvest::kv {
namespace {

using ::testing::HasSubstr;

const std::vector<KvLayer> kTwoLayers{2, KvLayer{.heads = 2, .head_size = 8, .element_bytes = 2}};
constexpr std::uint64_t kPartBytes = 2 * 8 * 2 * 16 * 10;  // of 10 pages of 16 tokens

std::array<std::byte, 4 * kPartBytes> memory;

std::vector<KvTensor> tensors(std::size_t count, std::uint64_t bytes) {
  return std::vector<KvTensor>(count, KvTensor{memory.data(), bytes});
}

std::string message_of(const Result<KvLayout>& result) {
  return result ? "" : result.error().message;
}

TEST(KvLayoutTest, KnowsWhereEachArrangementHasAPage) {
  const auto describe = [](KvArrangement arrangement, std::size_t count, std::uint64_t bytes) {
    return *KvLayout::describe(arrangement, kTwoLayers, 16, 10, tensors(count, bytes));
  };
  const std::uint64_t page = kPartBytes / 10;
  auto layout = describe(KvArrangement::layer_first, 2, 2 * kPartBytes);
  EXPECT_EQ(layout.parts[1].base, memory.data() + kPartBytes);
  EXPECT_EQ(layout.parts[1].page_stride_bytes, page);
  layout = describe(KvArrangement::layer_first_interleaved, 2, 2 * kPartBytes);
  EXPECT_EQ(layout.parts[1].base, memory.data() + page);
  EXPECT_EQ(layout.parts[1].page_stride_bytes, 2 * page);
  layout = describe(KvArrangement::layer_first_split, 4, kPartBytes);
  EXPECT_EQ(layout.parts[1].base, memory.data());
  layout = describe(KvArrangement::page_first, 1, 4 * kPartBytes);
  EXPECT_EQ(layout.parts[3].base, memory.data() + 3 * page);
  EXPECT_EQ(layout.parts[3].page_stride_bytes, 4 * page);
  layout = describe(KvArrangement::transposed_values, 4, kPartBytes);
  EXPECT_EQ(layout.parts[0].runs, 1U);
  EXPECT_EQ(layout.parts[1].runs, 16U);
  EXPECT_EQ(layout.parts[1].run_bytes, 32U);
  EXPECT_EQ(layout.parts[1].run_stride_bytes, 320U);
  EXPECT_EQ(layout.page_bytes(), 4 * page);
}

TEST(KvLayoutTest, ALatentIsOnePart) {
  const std::vector<KvLayer> latent{KvLayer{.heads = 1, .head_size = 576, .element_bytes = 2, .parts = 1}};
  const auto layout =
      KvLayout::describe(KvArrangement::layer_first, latent, 16, 4, tensors(1, 576 * 2 * 16 * 4));
  ASSERT_TRUE(layout) << message_of(layout);
  EXPECT_EQ(layout->bytes_per_token(), 1152U);
}

TEST(KvLayoutTest, SaysWhatIsWrongWithTensors) {
  const auto of = [](std::vector<KvTensor> given) {
    return message_of(KvLayout::describe(KvArrangement::layer_first, kTwoLayers, 16, 10, given));
  };
  EXPECT_THAT(of(tensors(3, 2 * kPartBytes)), HasSubstr("3 tensors, but these layers are 2 as layer_first"));
  EXPECT_THAT(of(tensors(2, 100)), HasSubstr("tensor 0 has 100 bytes, but 10 pages of 16 tokens take 10240"));
  auto with_null = tensors(2, 2 * kPartBytes);
  with_null[1].address = nullptr;
  EXPECT_THAT(of(with_null), HasSubstr("tensor 1 is null"));
}

TEST(KvLayoutTest, SaysWhatIsWrongWithLayers) {
  const auto of = [](std::vector<KvLayer> layers, std::uint32_t page_tokens = 16, std::uint32_t pages = 10) {
    return message_of(
        KvLayout::describe(KvArrangement::page_first, layers, page_tokens, pages, tensors(1, 1)));
  };
  EXPECT_THAT(of({}), HasSubstr("the number of layers is 0, the limits are 1 and 1024"));
  EXPECT_THAT(of(std::vector<KvLayer>(1025, kTwoLayers[0])), HasSubstr("layers is 1025"));
  EXPECT_THAT(of({KvLayer{}}), HasSubstr("heads of layer 0 is 0"));
  EXPECT_THAT(of({KvLayer{.heads = 1, .head_size = 1, .parts = 3}}), HasSubstr("parts of layer 0 is 3"));
  EXPECT_THAT(of({KvLayer{.heads = UINT32_MAX, .head_size = 1}}),
              HasSubstr("heads of layer 0 is 4294967295"));
  EXPECT_THAT(of(kTwoLayers, 0), HasSubstr("page_tokens is 0"));
  EXPECT_THAT(of(kTwoLayers, 1 << 17), HasSubstr("page_tokens is 131072"));
  EXPECT_THAT(of(kTwoLayers, 16, 0), HasSubstr("pages is 0"));
  const std::vector<KvLayer> huge{1024,
                                  KvLayer{.heads = 1U << 20, .head_size = 1U << 20, .element_bytes = 16}};
  EXPECT_THAT(of(huge, 65536), HasSubstr("the limit is 1073741824"));
}

TEST(KvLayoutTest, ChecksLayoutsOfTheCallersOwn) {
  auto layout =
      *KvLayout::describe(KvArrangement::layer_first, kTwoLayers, 16, 10, tensors(2, 2 * kPartBytes));
  const auto message = [](const KvLayout& changed) {
    const Status status = changed.validate();
    return status ? std::string() : status.error().message;
  };
  EXPECT_EQ(message(layout), "");
  auto changed = layout;
  changed.parts.pop_back();
  EXPECT_THAT(message(changed),
              HasSubstr("the parts of layer 1 have 512 bytes in a page, 16 tokens of it take 1024"));
  changed = layout;
  std::swap(changed.parts[1], changed.parts[2]);
  EXPECT_THAT(message(changed), HasSubstr("part 2 is of layer 0 and stands behind one of layer 1"));
  changed = layout;
  changed.parts[0].layer = 9;
  EXPECT_THAT(message(changed), HasSubstr("the layer of part 0 is 9"));
  changed = layout;
  changed.parts[0].runs = UINT32_MAX;
  EXPECT_THAT(message(changed), HasSubstr("part 0 has 4294967295 runs"));
  changed = layout;
  changed.parts[3].base = nullptr;
  EXPECT_THAT(message(changed), HasSubstr("part 3 is null"));
}

TEST(KvLayoutTest, ArrangementsHaveNames) {
  for (const std::string_view name : kv_arrangement_names()) {
    const auto arrangement = kv_arrangement_from(name);
    ASSERT_TRUE(arrangement) << name;
    EXPECT_EQ(to_string(*arrangement), name);
  }
  EXPECT_THAT(kv_arrangement_from("x").error().message, HasSubstr("known are layer_first, "));
}

// --- from pages to blocks and back ------------------------------------------------------------------------

struct Trip {
  KvArrangement arrangement;
  std::uint32_t block_pages;
  std::uint32_t group_layers;
};

class RoundTrip : public ::testing::TestWithParam<Trip> {};

TEST_P(RoundTrip, BringsEveryByteBack) {
  WorldOptions options;
  options.arrangement = GetParam().arrangement;
  options.block_pages = GetParam().block_pages;
  options.layers = {KvLayer{.heads = 2, .head_size = 16}, KvLayer{.heads = 1, .head_size = 24, .parts = 1},
                    KvLayer{.heads = 4, .head_size = 8, .element_bytes = 4}};
  options.with = [](BlockCacheConfig& config) { config.group_layers = GetParam().group_layers; };
  World world(options);
  const std::vector<Key> keys{Key(1), Key(2, 3), Key(7)};
  world.keep(keys);
  auto pages = world.pages_from(20, keys.size());
  std::ranges::reverse(pages);
  auto load = world.blocks->load(keys, pages, world.stream);
  ASSERT_TRUE(load);
  EXPECT_TRUE(load->finish().empty());
  const std::uint32_t each = options.block_pages;
  for (std::size_t i = 0; i < keys.size(); ++i)
    EXPECT_EQ(world.wrong_bytes(keys[i], std::span(pages).subspan(i * each, each)), 0U) << i;
  EXPECT_EQ(world.blocks->stats().stored_bytes, keys.size() * world.blocks->block_bytes());
}

std::vector<Trip> trips() {
  std::vector<Trip> all;
  for (int arrangement = 0; arrangement < 5; ++arrangement)
    for (const std::uint32_t block_pages : {1U, 3U})
      for (const std::uint32_t group_layers : {1U, 2U, 3U})
        all.push_back({static_cast<KvArrangement>(arrangement), block_pages, group_layers});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Kv, RoundTrip, ::testing::ValuesIn(trips()), [](const auto& trip) {
  return fmt::format("{}_{}_pages_{}_layers", to_string(trip.param.arrangement), trip.param.block_pages,
                     trip.param.group_layers);
});

}  // namespace
}  // namespace harvest::kv
