// SPDX-License-Identifier: Apache-2.0
#include "core/object_table.hpp"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <deque>
#include <set>
#include <thread>
#include <vector>

/// The table that readers walk without a lock while one writer changes it.
namespace harvest::core {
namespace {

/// An object with one copy in `tier`, as readers see it after a put.
Object* add(ObjectTable& table, const Key& key, Generation generation, Tier tier, std::byte* address) {
  Object* object = table.create(key, generation);
  if (object == nullptr) return nullptr;
  Copy& copy = object->copy(tier);
  copy.become(CopyState::live);
  copy.slot.address = address;
  object->bytes.store(generation, std::memory_order_relaxed);
  ObjectTable::show(*object, tier, false);
  table.link(*object);
  return object;
}

void take_out(ObjectTable& table, Object& object, Tier tier) {
  table.unlink(object);
  ObjectTable::hide(object, tier);
}

void recycle(ObjectTable& table, Object& object) {
  for (Copy& copy : object.copies) {
    if (copy.state() == CopyState::live) copy.become(CopyState::leaving);
    copy.clear();
  }
  table.recycle(object);
}

TEST(ObjectTableTest, FindsTheFirstTierThatIsAllowed) {
  ObjectTable table(8);
  std::array<std::byte, 3> bytes{};
  Object* object = add(table, 1, 1, Tier::host, &bytes[2]);
  object->copy(Tier::peer).become(CopyState::live);
  object->copy(Tier::peer).slot.address = &bytes[1];
  ObjectTable::show(*object, Tier::peer, true);

  EXPECT_EQ(table.peek(1), Tier::peer);
  EXPECT_EQ(table.peek(2), Tier::none);
  const Pinned best = table.find_and_pin(1, kAllTiers);
  ASSERT_EQ(best.object, object);
  EXPECT_EQ(best.tier, Tier::peer);
  EXPECT_TRUE(best.pending);
  EXPECT_EQ(pins(*object, Tier::peer), 1U);
  EXPECT_EQ(object->address[1].load(), &bytes[1]);
  const Pinned host = table.find_and_pin(1, tier_bit(Tier::host));
  EXPECT_EQ(host.tier, Tier::host);
  EXPECT_FALSE(host.pending);
  EXPECT_EQ(table.find_and_pin(1, tier_bit(Tier::local)).object, nullptr);

  ObjectTable::clear_pending(*object, Tier::peer);
  EXPECT_FALSE(table.find_and_pin(1, kAllTiers).pending);
  ObjectTable::hide(*object, Tier::peer);
  EXPECT_EQ(table.peek(1), Tier::host) << "who has pinned it keeps it, new readers go on";
  EXPECT_EQ(pins(*object, Tier::peer), 2U);
  unpin(*object, Tier::peer);
  unpin(*object, Tier::peer);
  unpin(*object, Tier::host);
  EXPECT_EQ(pins(*object, Tier::peer) + pins(*object, Tier::host), 0U);
}

TEST(ObjectTableTest, KeysOfOneBucketAndEveryBitOfAKeyAreToldApart) {
  ObjectTable table(256);
  std::byte byte{};
  std::vector<Object*> objects;
  std::vector<Key> keys;
  for (std::uint64_t bit = 0; bit < 64; ++bit) {
    keys.emplace_back(0, 1ULL << bit);
    keys.emplace_back(1ULL << bit, 0);
  }
  for (std::size_t i = 0; i < keys.size(); ++i)
    objects.push_back(add(table, keys[i], i + 1, Tier::host, &byte));
  for (std::size_t i = 0; i < keys.size(); ++i) EXPECT_EQ(table.find(keys[i]), objects[i]);
  for (std::size_t i = 0; i < keys.size(); i += 2) take_out(table, *objects[i], Tier::host);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    EXPECT_EQ(table.find(keys[i]), i % 2 == 0 ? nullptr : objects[i]);
    EXPECT_EQ(table.peek(keys[i]), i % 2 == 0 ? Tier::none : Tier::host);
  }
}

TEST(ObjectTableTest, ANewGenerationIsFoundBeforeTheOldOneGoes) {
  ObjectTable table(4);
  std::byte byte{};
  Object* old = add(table, 1, 1, Tier::host, &byte);
  Object* fresh = add(table, 1, 2, Tier::host, &byte);
  EXPECT_EQ(table.find(1), fresh);
  EXPECT_EQ(table.find_and_pin(1, kAllTiers).object, fresh);
  take_out(table, *old, Tier::host);
  EXPECT_EQ(table.find(1), fresh);
  unpin(*fresh, Tier::host);
}

TEST(ObjectTableTest, IsFullAtItsLimitAndReusesWhatIsRecycled) {
  ObjectTable table(3);
  std::byte byte{};
  std::set<Object*> objects;
  for (std::uint64_t key = 1; key <= 3; ++key) objects.insert(add(table, key, key, Tier::host, &byte));
  EXPECT_EQ(table.create(4, 4), nullptr);
  Object* second = table.find(2);
  take_out(table, *second, Tier::host);
  recycle(table, *second);
  std::vector<Generation> visited;
  table.for_each([&](Object& object) { visited.push_back(object.generation.load()); });
  EXPECT_EQ(visited, (std::vector<Generation>{1, 3}));
  EXPECT_EQ(add(table, 5, 5, Tier::host, &byte), second);
  EXPECT_EQ(table.peek(2), Tier::none);
  EXPECT_EQ(table.peek(5), Tier::host);
  EXPECT_EQ(table.create(6, 6), nullptr);
}

TEST(ObjectTableTest, PinsOfOneTierEndAtTheirLimitAndTouchNoOther) {
  ObjectTable table(2);
  std::byte byte{};
  Object* object = add(table, 1, 1, Tier::peer, &byte);
  for (std::uint64_t i = 0; i < kMaxPins; ++i) ASSERT_EQ(table.find_and_pin(1, kAllTiers).object, object);
  for (int i = 0; i < 3; ++i) {
    const Pinned refused = table.find_and_pin(1, kAllTiers);
    EXPECT_EQ(refused.object, nullptr);
    EXPECT_TRUE(refused.too_many);
  }
  EXPECT_EQ(pins(*object, Tier::peer), kMaxPins);
  EXPECT_EQ(pins(*object, Tier::local), 0U);
  EXPECT_EQ(pins(*object, Tier::host), 0U);
  unpin(*object, Tier::peer);
  EXPECT_EQ(table.find_and_pin(1, kAllTiers).object, object);
  for (std::uint64_t i = 0; i < kMaxPins; ++i) unpin(*object, Tier::peer);
  EXPECT_EQ(object->meta.load() & ~visible_bit(Tier::peer), 0U);
}

/// One writer replaces generations of a few keys over and over, as the cache does: links the new one,
/// unlinks the old one, and recycles it when nobody pins it. Keys share buckets, objects wander between keys.
class Replacer {
 public:
  static constexpr std::uint64_t kKeys = 6;

  explicit Replacer(ObjectTable& table) : table_(table) {
    for (std::uint64_t key = 1; key <= kKeys; ++key) replace(key);
  }

  void replace(std::uint64_t key) {
    const Generation generation = next_++;
    Object* object = nullptr;
    while ((object = add(table_, key, generation, Tier::host, &bytes_[generation % bytes_.size()])) ==
           nullptr)
      recycle_unpinned();
    if (Object* old = std::exchange(current_[key - 1], object); old != nullptr) {
      take_out(table_, *old, Tier::host);
      leaving_.push_back(old);
    }
    recycle_unpinned();
  }

  const std::byte* address_of(Generation generation) const { return &bytes_[generation % bytes_.size()]; }

 private:
  void recycle_unpinned() {
    std::erase_if(leaving_, [&](Object* object) {
      if (pins(*object, Tier::host) != 0) return false;
      recycle(table_, *object);
      return true;
    });
  }

  ObjectTable& table_;
  Generation next_ = 1;
  std::array<Object*, kKeys> current_{};
  std::array<std::byte, 64> bytes_{};
  std::vector<Object*> leaving_;
};

TEST(ObjectTableTest, AKeyThatExistsIsAlwaysFoundWhileItIsReplaced) {
  constexpr int kReplacements = 60'000;
  ObjectTable table(24);
  Replacer replacer(table);
  std::atomic<bool> over{false};
  std::atomic<std::uint64_t> reads{0};
  const auto read = [&](std::uint64_t seed) {
    std::array<Generation, Replacer::kKeys> seen{};
    std::deque<Object*> held;  // stale pins: objects that were replaced long ago
    std::uint64_t i = seed;
    while (!over.load(std::memory_order_relaxed)) {
      const std::uint64_t key = i++ % Replacer::kKeys;
      const Pinned pinned = table.find_and_pin(key + 1, kAllTiers);
      if (pinned.object == nullptr) {
        ADD_FAILURE() << "key " << key + 1 << " exists and was not found";
        break;
      }
      const Object& object = *pinned.object;
      const Generation generation = object.generation.load(std::memory_order_relaxed);
      EXPECT_GE(generation, seen[key]) << "a reader never goes back to an older generation";
      EXPECT_EQ(object.key_low.load(std::memory_order_relaxed), key + 1);
      EXPECT_EQ(object.bytes.load(std::memory_order_relaxed), generation) << "all of one generation";
      EXPECT_EQ(object.address[2].load(std::memory_order_relaxed), replacer.address_of(generation));
      seen[key] = generation;
      held.push_back(pinned.object);
      if (held.size() > 4) {
        unpin(*held.front(), Tier::host);
        held.pop_front();
      }
    }
    for (Object* object : held) unpin(*object, Tier::host);
    reads += i - seed;
  };
  std::thread first(read, 0);
  std::thread second(read, 3);
  for (int i = 0; i < kReplacements; ++i) {
    replacer.replace(static_cast<std::uint64_t>(i) * 7 % Replacer::kKeys + 1);
    if (i % 64 == 0) std::this_thread::yield();
  }
  over = true;
  first.join();
  second.join();
  EXPECT_GT(reads.load(), 0U);
}

}  // namespace
}  // namespace harvest::core
