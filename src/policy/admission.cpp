// SPDX-License-Identifier: Apache-2.0
#include "policy/entry_table.hpp"
#include "policy/policies.hpp"

namespace harvest::policy {
namespace {

class Always final : public AdmissionPolicy {
 public:
  std::string_view name() const override { return "always"; }
  void set_capacity(std::uint64_t) override {}
  void record(const Key&, const ObjectFacts&) override {}
  bool admit(const Key&, const ObjectFacts&, bool) override { return true; }
};

/// Where something would have to go for it, lets in only what was asked for at least twice within
/// the history: what is read once never pushes out what is read again. While there is room
/// everything comes in, for then it costs nobody anything but the write.
class SecondHit final : public AdmissionPolicy {
 public:
  explicit SecondHit(std::uint64_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}

  std::string_view name() const override { return "second_hit"; }

  void set_capacity(std::uint64_t capacity_bytes) override {
    capacity_bytes_ = capacity_bytes;
    trim();
  }

  void record(const Key& key, const ObjectFacts& facts) override {
    if (Seen* seen = table_.find(key)) {
      seen->again = true;
      history_.push(*seen);
      return;
    }
    history_.push(table_.admit(key, facts));
    trim();
  }

  bool admit(const Key& key, const ObjectFacts&, bool has_room) override {
    if (has_room) return true;
    const Seen* seen = table_.find(key);
    return seen != nullptr && seen->again;
  }

 private:
  struct Again {
    bool again = false;
  };
  using Seen = Entry<Again>;

  /// The history reaches back over this many times what the tier holds. Chat traffic comes back
  /// after about ten times as much else as a small tier holds; more history admits hardly more.
  static constexpr std::uint64_t kHistoryMultiple = 16;
  static constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 56U;

  void trim() { table_.trim(history_, std::min(capacity_bytes_, kMaxBytes) * kHistoryMultiple); }

  std::uint64_t capacity_bytes_;
  EntryTable<Seen> table_;
  EntryList<Seen> history_;  ///< by the last time that they were asked for
};

}  // namespace

std::unique_ptr<AdmissionPolicy> make_always(std::uint64_t) {
  return std::make_unique<Always>();
}

std::unique_ptr<AdmissionPolicy> make_second_hit(std::uint64_t capacity_bytes) {
  return std::make_unique<SecondHit>(capacity_bytes);
}

}  // namespace harvest::policy
