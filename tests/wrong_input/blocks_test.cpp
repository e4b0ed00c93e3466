// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "backend/forwarding_backend.hpp"
#include "kv/world.hpp"
#include "wrong_input/table.hpp"

/// What engines say of their pages, and caches of blocks.
namespace harvest::testing {
namespace {

using kv::BlockCache;
using kv::BlockCacheConfig;
using kv::KvArrangement;
using kv::KvLayer;
using kv::KvLayout;
using kv::KvTensor;
using kv::World;
using Keys = std::vector<Key>;
using Pages = std::vector<std::uint32_t>;

constexpr StreamId kNoStream{4711};

// --- layouts ----------------------------------------------------------------------------------------------

/// A valid description, of which each row changes something.
struct Description {
  KvArrangement arrangement = KvArrangement::layer_first;
  std::vector<KvLayer> layers{2, KvLayer{.heads = 2, .head_size = 8}};
  std::uint32_t page_tokens = 16;
  std::uint32_t pages = 10;
  std::vector<KvTensor> tensors{2, KvTensor{reinterpret_cast<std::byte*>(4096), 10240}};

  [[nodiscard]] Result<KvLayout> describe() const {
    return KvLayout::describe(arrangement, layers, page_tokens, pages, tensors);
  }
};

template <typename Change>
Outcome described(Change change) {
  Description description;
  change(description);
  return description.describe();
}

template <typename Change>
Outcome validated(Change change) {
  KvLayout layout = *Description().describe();
  change(layout);
  return layout.validate();
}

void show_parts(Table& table) {
  table.shows("`validate`: a part too few", validated([](auto& layout) { layout.parts.pop_back(); }));
  table.shows("`validate`: a part of layer 9", validated([](auto& layout) { layout.parts[3].layer = 9; }));
  table.shows("`validate`: parts in another order",
              validated([](auto& layout) { std::swap(layout.parts[1], layout.parts[2]); }));
  table.shows("`validate`: a part without memory",
              validated([](auto& layout) { layout.parts[3].base = nullptr; }));
  table.shows("`validate`: a part of 2^32 - 1 runs",
              validated([](auto& layout) { layout.parts[3].runs = UINT32_MAX; }));
  table.shows("`validate`: pages every 0 bytes",
              validated([](auto& layout) { layout.parts[3].page_stride_bytes = 0; }));
  table.shows("`validate`: pages every 2^62 bytes",
              validated([](auto& layout) { layout.parts[3].page_stride_bytes = 1ULL << 62; }));
}

TEST(WrongInput, KvLayouts) {
  Table table("`kv::KvLayout`");
  table.shows("`kv_arrangement_from(\"x\")`", kv::kv_arrangement_from("x"));
  table.shows("arrangement 9", described([](auto& d) { d.arrangement = static_cast<KvArrangement>(9); }));
  table.shows("no layers", described([](auto& d) { d.layers.clear(); }));
  table.shows("1,025 layers", described([](auto& d) { d.layers.resize(1025, d.layers[0]); }));
  table.shows("`page_tokens` 0", described([](auto& d) { d.page_tokens = 0; }));
  table.shows("`page_tokens` 65,537", described([](auto& d) { d.page_tokens = 65537; }));
  table.shows("`pages` 0", described([](auto& d) { d.pages = 0; }));
  table.shows("`heads` 0", described([](auto& d) { d.layers[1].heads = 0; }));
  table.shows("`head_size` 2^32 - 1", described([](auto& d) { d.layers[1].head_size = UINT32_MAX; }));
  table.shows("`element_bytes` 17", described([](auto& d) { d.layers[1].element_bytes = 17; }));
  table.shows("`parts` 3", described([](auto& d) { d.layers[1].parts = 3; }));
  table.shows("a page of more than 1 GiB",
              described([](auto& d) { d.layers[1].heads = d.layers[1].head_size = 1U << 20; }));
  table.shows("a tensor too few", described([](auto& d) { d.tensors.pop_back(); }));
  table.shows("a tensor that is null", described([](auto& d) { d.tensors[1].address = nullptr; }));
  table.shows("a tensor of another size", described([](auto& d) { --d.tensors[1].bytes; }));
  show_parts(table);
}

// --- caches of blocks -------------------------------------------------------------------------------------

TEST(WrongInput, BlockCacheCreate) {
  Table table("`kv::BlockCache::create`");
  World world;
  const auto created = [&](const std::function<void(BlockCacheConfig&)>& change) -> Outcome {
    BlockCacheConfig config;
    config.layout = world.layout;
    change(config);
    return BlockCache::create(*world.cache, config);
  };
  table.shows("a layout that is not valid", created([](auto& c) { c.layout.pages = 0; }));
  table.shows("`block_pages` 2^32 - 1", created([](auto& c) { c.block_pages = UINT32_MAX; }));
  table.shows("`backing` `external_host`", created([](auto& c) { c.backing = Backing::external_host; }));
  table.shows("`recompute_ns_per_token` -1", created([](auto& c) { c.recompute_ns_per_token = -1; }));
  table.shows("`recompute_ns_per_token` not a number",
              created([](auto& c) { c.recompute_ns_per_token = std::numeric_limits<double>::quiet_NaN(); }));
  table.shows("`group_layers` 5 of 4 layers", created([](auto& c) { c.group_layers = 5; }));
  table.shows("`ahead_ns` -1", created([](auto& c) { c.ahead_ns = -1; }));
  table.shows("`ahead_ns` 0", created([](auto& c) { c.ahead_ns = 0; }));
  table.shows("`store_buffers` 0", created([](auto& c) { c.store_buffers = 0; }));
  table.shows("`store_buffers` 65", created([](auto& c) { c.store_buffers = 65; }));
  PeerCacheConfig local;
  local.local_budget_bytes = 4ULL << 20;
  const auto with_local = std::move(*PeerCache::create(*world.backend, local));
  BlockCacheConfig config;
  config.layout = world.layout;
  table.shows("a PeerCache with `local_budget_bytes`", BlockCache::create(*with_local, config));
  table.stops("`default_block_tokens` of pages of 0 tokens",
              [&] { static_cast<void>(kv::default_block_tokens(world.layout.layers, 0)); });
  table.stops("`BlockKeys` of blocks of 0 tokens", [] { kv::BlockKeys keys(0); });
}

/// Says that a stream is being captured.
class Capturing final : public test::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  bool is_capturing(StreamId stream) const override { return stream == captured; }
  StreamId captured = StreamId::none;
};

class BlockCacheTable : public ::testing::Test {
 protected:
  BlockCacheTable()
      : world_({.between =
                    [this](SimulatedBackend& machine) {
                      auto made = std::make_unique<Capturing>(machine);
                      capturing_ = made.get();
                      return made;
                    }}),
        theirs_(*world_.backend->create_stream(1)) {
    world_.keep(Keys{1});
  }

  Outcome load(const Keys& keys, const Pages& pages, StreamId stream) {
    return world_.blocks->load(keys, pages, stream);
  }
  Outcome store(const Keys& keys, const Pages& pages, StreamId stream) {
    return world_.blocks->store(keys, pages, stream);
  }
  std::size_t missing(const Keys& keys, const Pages& pages) {
    auto load = world_.blocks->load(keys, pages, world_.stream);
    return load ? load->finish().size() : SIZE_MAX;
  }
  void show_loads();
  void show_stores();
  void show_one_load();

  Capturing* capturing_ = nullptr;
  World world_;
  StreamId theirs_;
  Table table_{"`kv::BlockCache`"};
};

void BlockCacheTable::show_loads() {
  const StreamId stream = world_.stream;
  EXPECT_EQ(missing({}, {}), 0U);
  table_.shows("`load` of no blocks", load({}, {}, stream));
  EXPECT_EQ(missing({42}, {0, 1}), 1U);
  table_.shows("`load` of a key that is not there", load({42}, {0, 1}, stream));
  EXPECT_EQ(missing({1, 1}, {20, 21, 22, 23}), 0U);
  EXPECT_EQ(world_.wrong_bytes(1, Pages{20, 21}) + world_.wrong_bytes(1, Pages{22, 23}), 0U);
  table_.shows("`load` of a key twice, into pages of its own each", load({1, 1}, {20, 21, 22, 23}, stream));
  table_.shows("`load` into a page too few", load({1}, {0}, stream));
  table_.shows("`load` into page 64", load({1}, {0, 64}, stream));
  table_.shows("`load` into a page twice", load({1}, {5, 5}, stream));
  table_.shows("`load` with `stream` `none`", load({1}, {0, 1}, StreamId::none));
  table_.shows("`load` with `stream` 4711, which is none", load({1}, {0, 1}, kNoStream));
  table_.shows("`load` with `stream` of another device", load({1}, {0, 1}, theirs_));
  capturing_->captured = stream;
  table_.shows("`load` with `stream` that is being captured", load({1}, {0, 1}, stream));
  table_.shows("`store` with `stream` that is being captured", store({2}, {0, 1}, stream));
  capturing_->captured = StreamId::none;
}

void BlockCacheTable::show_stores() {
  BlockCache& blocks = *world_.blocks;
  const StreamId stream = world_.stream;
  table_.shows("`store` of a page too few", store({2}, {0}, stream));
  table_.shows("`store` of page 64", store({2}, {0, 64}, stream));
  table_.shows("`store` with `stream` 4711, which is none", store({2}, {0, 1}, kNoStream));
  EXPECT_EQ(blocks.stats().stores_asked, 1U) << "a call that was refused changes nothing";
  const auto coming = blocks.store(Keys{2, 2}, Pages{0, 1, 2, 3}, stream);
  EXPECT_EQ(coming, 1U);
  table_.shows("`store` of a key twice", coming);
  table_.shows("`settle` with deadline 0, a store under way", blocks.settle(0));
  EXPECT_TRUE(blocks.settle(world_.backend->now_ns() + 1'000'000'000));
  table_.shows("`order_behind_stores` with `stream` of another device",
               blocks.order_behind_stores(Pages{0}, theirs_));
  table_.shows("`order_behind_stores` of page 64", blocks.order_behind_stores(Pages{64}, stream));
  table_.shows("`note_local` of a page too few", blocks.note_local(Keys{1}, Pages{0}));
  blocks.forget_local(Keys{42});
  table_.shows("`forget_local` of a key that is not local", Status{});
  EXPECT_EQ(blocks.lookup(Keys{42}).blocks, 0U);
  table_.shows("`lookup` and `locate` of a key that is not there", std::string(to_string(blocks.locate(42))));
  table_.shows("`erase` of a key that is not there", blocks.erase(42));
}

void BlockCacheTable::show_one_load() {
  auto load = world_.blocks->load(Keys{1}, Pages{20, 21}, world_.stream);
  ASSERT_TRUE(load);
  table_.shows("`BlockLoad::order_behind` of layer 4 of 4", load->order_behind(4, world_.stream));
  table_.shows("`BlockLoad::order_behind` with `stream` 4711, which is none",
               load->order_behind(0, kNoStream));
  table_.shows("`BlockLoad::cancel` with `stream` 4711, which is none", load->cancel(kNoStream));
  EXPECT_TRUE(load->cancel(world_.stream));
  table_.shows("`BlockLoad::cancel` twice", load->cancel(world_.stream));
}

TEST_F(BlockCacheTable, IsTrue) {
  show_loads();
  show_stores();
  show_one_load();
  static_cast<void>(world_.backend->destroy_stream(theirs_));
  table_.stops("the cache of blocks ends before its loads", [] {
    World world;
    const auto load = world.blocks->load({}, {}, world.stream);
    world.blocks.reset();
  });
}

}  // namespace
}  // namespace harvest::testing
