// SPDX-License-Identifier: Apache-2.0
#include <spdlog/sinks/null_sink.h>
#include <spdlog/spdlog.h>

#include <array>
#include <cstdlib>
#include <set>

#include "backend/checked.hpp"
#include "core/random.hpp"
#include "kv/world.hpp"

/// Random lives of a cache of blocks: an engine that stores, loads and reuses its pages, owners that reclaim,
/// copies that fail. Whatever happens, a block that is not said to be lost holds its own bytes, and the
/// statistics add up. For a campaign:
///     HARVEST_BLOCK_LIFE_SEEDS=3000 HARVEST_BLOCK_LIFE_OPERATIONS=600 kv_test --gtest_filter=BlockLife*
namespace harvest::kv {
namespace {

using testing::Random;

constexpr std::uint32_t kPages = 96;
constexpr std::uint32_t kBlockPages = 2;
constexpr std::size_t kBlocks = 40;  ///< that there are keys for

WorldOptions draw(Random& random) {
  WorldOptions options;
  options.machine = random.chance(0.5) ? "2xh100-nvl" : "4x4090-pcie";
  options.arrangement = static_cast<KvArrangement>(random.below(5));
  options.pages = kPages;
  options.block_pages = kBlockPages;
  options.layers.clear();
  for (std::uint64_t i = 0, layers = 1 + random.below(5); i < layers; ++i)
    options.layers.push_back(KvLayer{.heads = static_cast<std::uint32_t>(1 + random.below(3)),
                                     .head_size = static_cast<std::uint32_t>(8 * (1 + random.below(40))),
                                     .parts = static_cast<std::uint32_t>(1 + random.below(2))});
  if (random.chance(0.7)) {
    options.faults.fail_copy.rate = random.chance(0.5) ? 0.02 : 0;
    options.faults.refuse_copy.rate = random.chance(0.5) ? 0.02 : 0;
    options.faults.slow_copy.rate = random.chance(0.3) ? 0.1 : 0;
    options.faults.late_event.rate = random.chance(0.3) ? 0.05 : 0;
    options.faults.fail_map.rate = random.chance(0.2) ? 0.2 : 0;
  }
  const auto backing = random.below(3);
  const auto group = static_cast<std::uint32_t>(random.below(options.layers.size() + 1));
  const TimeNs ahead = random.chance(0.5) ? 0 : 1'000'000;
  const auto buffers = static_cast<std::uint32_t>(1 + random.below(3));
  const std::uint32_t tenant = random.chance(0.3) ? 7 : 0;
  options.with = [=](BlockCacheConfig& config) {
    config.backing = std::array{Backing::managed_host, Backing::spill, Backing::lossy}[backing];
    config.group_layers = group;
    config.ahead_ns = ahead;
    config.store_buffers = buffers;
    config.tenant = tenant;
  };
  const bool small = random.chance(0.5);
  options.with_peers = [=](PeerCacheConfig& config) {
    config.verify_paths = false;
    config.pressure.regrow_delay_ns = 1'000'000;
    if (small) config.peer_budget_bytes = config.host_budget_bytes = 2ULL << 20;
  };
  options.between = [](SimulatedBackend& backend) {
    return make_checked_backend(backend, {.on_violation = [](const std::string& what) {
                                  ADD_FAILURE() << "the contract of the backend: " << what;
                                }});
  };
  return options;
}

class Life {
 public:
  explicit Life(std::uint64_t seed) : random_(seed), world_(draw(random_)) {
    for (std::uint32_t page = 0; page < kPages; ++page) free_.insert(page);
  }

  void run(int operations) {
    for (int i = 0; i < operations && !::testing::Test::HasFailure(); ++i) step();
    while (!loads_.empty()) end_load();
    static_cast<void>(world_.backend->set_faults({}));
    EXPECT_TRUE(world_.blocks->settle(world_.backend->now_ns() + 60'000'000'000));
    check_statistics();
  }

  std::uint64_t verified = 0;
  std::uint64_t lost = 0;

 private:
  struct Loading {
    std::vector<Key> keys;
    std::vector<std::uint32_t> pages;
    BlockLoad load;
    bool cancelled = false;
  };

  std::vector<std::uint32_t> take_pages(std::size_t blocks) {
    std::vector<std::uint32_t> pages;
    if (free_.size() < blocks * kBlockPages) return pages;
    while (pages.size() < blocks * kBlockPages) {
      const auto page = std::next(free_.begin(), static_cast<std::ptrdiff_t>(random_.below(free_.size())));
      pages.push_back(*page);
      free_.erase(page);
    }
    return pages;
  }
  std::vector<Key> some_keys() {
    const std::uint64_t first = random_.below(kBlocks);
    std::vector<Key> keys;
    for (std::uint64_t i = first; i < std::min(kBlocks, first + 1 + random_.below(6)); ++i)
      keys.emplace_back(i, 3);
    return keys;
  }

  /// The engine "computes" into pages with nothing under way there, and stores.
  void store() {
    const auto keys = some_keys();
    const auto pages = take_pages(keys.size());
    if (pages.empty()) return;
    for (std::size_t i = 0; i < keys.size(); ++i)
      world_.fill(keys[i], std::span(pages).subspan(i * kBlockPages, kBlockPages));
    EXPECT_TRUE(world_.blocks->store(keys, pages, world_.stream));
    if (random_.chance(0.5))
      give_pages_back(pages);
    else
      stored_.push_back(pages);
  }
  /// The next content is written by the host: it waits until nothing reads the pages any more.
  void give_pages_back(const std::vector<std::uint32_t>& pages) {
    EXPECT_TRUE(world_.blocks->order_behind_stores(pages, world_.stream));
    world_.wait_for(world_.stream);
    world_.wipe(pages);
    free_.insert(pages.begin(), pages.end());
  }
  void free_stored() {
    if (stored_.empty()) return;
    give_pages_back(stored_.back());
    stored_.pop_back();
  }

  void begin_load() {
    auto keys = some_keys();
    const PrefixMatch match = world_.blocks->lookup(keys);
    EXPECT_LE(match.blocks, keys.size());
    if (random_.chance(0.8)) keys.resize(match.blocks);
    const auto pages = take_pages(keys.size());
    if (pages.empty()) return;
    auto load = world_.blocks->load(keys, pages, world_.stream);
    ASSERT_TRUE(load);
    loads_.push_back({keys, pages, std::move(*load)});
    Loading& begun = loads_.back();
    if (random_.chance(0.4)) {
      const auto layer = static_cast<std::uint32_t>(random_.below(world_.layout.layers.size()));
      EXPECT_TRUE(begun.load.order_behind(layer, world_.stream));
    }
  }
  void end_load() {
    if (loads_.empty()) return;
    Loading ending = std::move(loads_.front());
    loads_.erase(loads_.begin());
    if (random_.chance(0.1)) {
      EXPECT_TRUE(ending.load.cancel(world_.stream));
    } else if (random_.chance(0.1)) {
      static_cast<void>(ending.load.done());
    }
    const auto answer = ending.load.finish();
    const std::set<std::uint32_t> gone(answer.begin(), answer.end());
    EXPECT_EQ(gone.size(), answer.size());
    for (std::uint32_t i = 0; i < ending.keys.size(); ++i) {
      if (gone.contains(i)) {
        ++lost;
        continue;
      }
      ++verified;
      EXPECT_EQ(
          world_.wrong_bytes(ending.keys[i], std::span(ending.pages).subspan(i * kBlockPages, kBlockPages)),
          0U)
          << "block " << i << " of a load was said to be there";
    }
    ending.load = BlockLoad();
    world_.wait_for(world_.stream);
    world_.wipe(ending.pages);
    free_.insert(ending.pages.begin(), ending.pages.end());
  }

  void reclaim() {
    const auto peers = world_.cache->stats().pools;
    const PoolStats& pool = peers[random_.below(peers.size())];
    if (pool.tier != Tier::peer) return;
    const TimeNs deadline = world_.backend->now_ns() + static_cast<TimeNs>(random_.below(5'000'000));
    static_cast<void>(world_.cache->reclaim(pool.device, 1 + random_.below(8ULL << 20), deadline));
  }

  void step() {
    const auto roll = random_.below(100);
    if (roll < 22)
      store();
    else if (roll < 34)
      free_stored();
    else if (roll < 56)
      begin_load();
    else if (roll < 74)
      end_load();
    else if (roll < 80)
      world_.pass(static_cast<TimeNs>(random_.below(3'000'000)));
    else if (roll < 86)
      world_.blocks->poll();
    else if (roll < 90)
      reclaim();
    else if (roll < 93)
      static_cast<void>(world_.blocks->erase(Key(random_.below(kBlocks), 3)));
    else if (roll < 95)
      static_cast<void>(world_.backend->submit_kernel(world_.stream, 100'000));
    else if (roll < 97)
      static_cast<void>(world_.backend->set_link_up(1, 0, roll == 95));
    else
      check_statistics();
  }

  void check_statistics() {
    const BlockCacheStats stats = world_.blocks->stats();
    EXPECT_EQ(stats.looked_up, stats.found[0] + stats.found[1] + stats.found[2] + stats.not_found);
    const std::uint64_t told =
        stats.stored + stats.stores_known + stats.stores_refused + stats.stores_given_up;
    EXPECT_LE(told, stats.stores_asked);
    EXPECT_EQ(stats.stored_bytes, stats.stored * world_.blocks->block_bytes());
    const Status whole = world_.cache->audit();
    EXPECT_TRUE(whole) << (whole ? "" : whole.error().message);
  }

  Random random_;
  World world_;
  std::set<std::uint32_t> free_;
  std::vector<std::vector<std::uint32_t>> stored_;
  std::vector<Loading> loads_;
};

std::uint64_t from_environment(const char* name, std::uint64_t usual) {
  const char* const text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): one thread
  return text == nullptr ? usual : std::strtoull(text, nullptr, 10);
}

class BlockLifeTest : public ::testing::Test {
 protected:
  /// The library's warnings about devices that fail are what these lives are made of.
  static void SetUpTestSuite() {
    if (spdlog::get("harvest") == nullptr)
      spdlog::register_logger(
          std::make_shared<spdlog::logger>("harvest", std::make_shared<spdlog::sinks::null_sink_mt>()));
  }
};

TEST_F(BlockLifeTest, EveryByteIsRightWhateverHappens) {
  const std::uint64_t first = from_environment("HARVEST_BLOCK_LIFE_SEED", 1);
  const std::uint64_t seeds = from_environment("HARVEST_BLOCK_LIFE_SEEDS", 60);
  const auto operations = static_cast<int>(from_environment("HARVEST_BLOCK_LIFE_OPERATIONS", 250));
  std::uint64_t verified = 0, lost = 0;
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    Life life(seed);
    life.run(operations);
    verified += life.verified;
    lost += life.lost;
    ASSERT_FALSE(HasFailure()) << "HARVEST_BLOCK_LIFE_SEED=" << seed
                               << " HARVEST_BLOCK_LIFE_SEEDS=1 HARVEST_BLOCK_LIFE_OPERATIONS=" << operations
                               << " replays it";
  }
  fmt::print("{} blocks verified, {} lost\n", verified, lost);
  EXPECT_GT(verified, seeds * 10) << "lives in which nothing is read prove nothing";
  EXPECT_GT(lost, seeds) << "nor lives in which nothing is lost";
}

}  // namespace
}  // namespace harvest::kv
