// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/kv/turns.hpp>

#include <memory>
#include <optional>
#include <vector>

#include "cli/kv/local_pages.hpp"
#include "cli/kv/lower_tiers.hpp"
#include "cli/kv/serve.hpp"

namespace harvest::cli {

/// A request on its way. Of its tokens `computed` have keys and values in `pages`.
struct Sequence {
  const ServedRequest* request = nullptr;
  kv::Turns::Id id = 0;
  std::vector<Key> keys;  ///< of the prompt's full blocks
  std::vector<std::uint32_t> pages;
  std::uint64_t target = 0;  ///< tokens to compute before the next one is drawn
  std::uint64_t computed = 0;
  std::uint64_t produced = 0;  ///< tokens drawn
  std::size_t named = 0;       ///< blocks that are the prefix cache's, too
  TimeNs last_token_ns = 0;
  TimeNs begun_answer_ns = 0;
  std::uint32_t times_left = 0;
  /// Of its blocks while it waits for its next turn, of the last too, which may not be full.
  std::vector<Key> parked{};
  std::optional<kv::BlockLoad> load{};
  struct Loading {
    std::size_t block;
    Tier tier;
    Key key;  ///< of its content
  };
  std::vector<Loading> loading{};  ///< in the order of `load`
  TimeNs load_due_ns = 0;          ///< when it is expected to be there
};

/// One run of a server. Passes follow each other; in each all running sequences get a token, and what is left
/// of its tokens goes to prompts, first come, first served. `kv::Turns` says who is on the GPU.
class Server {
 public:
  Server(const ServeRun& run, ServeStrategy strategy) : run_(run), strategy_(strategy) {}
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  [[nodiscard]] Status prepare();
  [[nodiscard]] Status serve(Progress& progress);
  /// Requires: all is served.
  [[nodiscard]] ServeFigures figures();

 private:
  struct Chunk {
    Sequence* sequence;
    std::uint64_t tokens;
  };

  // --- admission.cpp: who comes in, with what, and who goes ---
  [[nodiscard]] Status hear_of_arrivals();
  [[nodiscard]] Status follow_turns();
  [[nodiscard]] Status begin(Sequence& sequence);
  [[nodiscard]] kv::PrefixMatch known_prefix(std::span<const Key> keys);
  void count_blocks(const Sequence& sequence, const kv::PrefixMatch& match);
  [[nodiscard]] Status begin_load(Sequence& sequence, const kv::PrefixMatch& match);
  [[nodiscard]] Status give_load(Sequence& sequence, kv::BlockCache& cache, std::span<const Key> keys,
                                 std::span<const std::uint32_t> pages, const kv::PrefixMatch& match);
  void grow(Sequence& sequence);
  void take_pages(Sequence& sequence);
  [[nodiscard]] Status come_back(Sequence& sequence);
  [[nodiscard]] Status begin_to_leave(Sequence& sequence);
  bool has_left(Sequence& sequence);
  void let_go(Sequence& sequence);
  [[nodiscard]] Key content_of(const Sequence& sequence, std::size_t block) const;
  void unpark(Sequence& sequence);
  [[nodiscard]] std::uint64_t pages_for(std::uint64_t tokens) const {
    return (tokens + run_.block_tokens - 1) / run_.block_tokens;
  }

  // --- server.cpp: passes ---
  void compose();
  void add_next_tokens();
  void add_chunks(bool loading);
  [[nodiscard]] Status run_pass();
  [[nodiscard]] Status submit();
  [[nodiscard]] Status wait_for_pass();
  [[nodiscard]] Status after_chunk(const Chunk& chunk);
  [[nodiscard]] Status name_blocks(Sequence& sequence);
  bool finish_load(Sequence& sequence);
  void forget_from(Sequence& sequence, std::size_t first);
  void draw_token(Sequence& sequence);
  void finish_served();
  void idle();
  void poll();
  [[nodiscard]] std::uint64_t away_tokens() const;
  [[nodiscard]] bool takes_turns() const { return run_.takes_turns(strategy_); }
  [[nodiscard]] std::uint32_t quantum_tokens() const;
  [[nodiscard]] bool waits_for_all() const { return strategy_ == ServeStrategy::peer_host; }

  const ServeRun& run_;
  ServeStrategy strategy_;
  std::unique_ptr<SimulatedBackend> backend_;
  StreamId compute_ = StreamId::none;
  std::optional<LocalPages> pages_;
  std::unique_ptr<LowerTiers> lower_;
  TimeNs begin_ns_ = 0;
  TimeNs next_poll_ns_ = 0;

  std::size_t next_arrival_ = 0;
  std::vector<std::unique_ptr<Sequence>> sequences_;  ///< by request; null before and after
  std::optional<kv::Turns> turns_;
  std::vector<Sequence*> leaving_;     ///< on the GPU still, and do not run
  std::vector<Sequence*> prefilling_;  ///< on the GPU, in the order in which they came

  std::vector<Sequence*> decoding_;  ///< in the pass, as the chunks
  std::vector<Chunk> chunks_;
  PassWork work_;
  std::vector<std::uint32_t> taken_;
  std::vector<kv::Turns::Id> served_;

  ServeFigures figures_;
  std::vector<TimeNs> ttft_ns_;
  std::vector<TimeNs> tbt_ns_;
  std::uint64_t good_ = 0;
  TimeNs pass_ns_ = 0;      ///< of all passes
  TimeNs computed_ns_ = 0;  ///< of that, spent computing
};

}  // namespace harvest::cli
