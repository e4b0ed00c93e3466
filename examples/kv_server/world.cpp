// SPDX-License-Identifier: Apache-2.0
#include "kv_server/world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "transformer/cpu_compute.hpp"
#include "transformer/experts.hpp"
#include "transformer/random.hpp"
#include "transformer/surroundings.hpp"

namespace harvest::kv_server {
namespace {

constexpr TimeNs kSettleNs = 10'000'000'000;
constexpr std::uint32_t kMostBlockTokens = 65'536;

/// What the seed is for.
enum SeedOf : std::uint64_t { kWeights, kTalk, kOwners, kFaults, kKernels, kSampling, kPages };

Conversations draw_conversations(const Options& options) {
  return {options.talk, options.shape.vocabulary, seed_of(options.seed, kTalk)};
}

}  // namespace

World::World(const Options& options, const Model& model) : options_(options), model_(model) {}

World::~World() {
  hears_ = nullptr;
}

Result<std::unique_ptr<World>> World::create(const Options& options, const Model& model) {
  std::unique_ptr<World> world(new World(options, model));
  if (Status built = world->build(); !built) return tl::unexpected(built.error());
  return world;
}

Status World::build() {
  if (Status made = make_machine(); !made) return made;
  if (Status made = make_caches(); !made) return made;
  const auto stream = backend_->create_stream(0);
  if (!stream) return tl::unexpected(stream.error());
  kernels_ = std::make_unique<Kernels>(*backend_, *stream, static_cast<TimeNs>(options_.kernel_us * 1e3),
                                       seed_of(options_.seed, kKernels));
  if (options_.bursty_owners)
    owners_ = std::make_unique<BurstyOwners>(*backend_, *cache_,
                                             static_cast<TimeNs>(options_.owner_period_us * 1e3),
                                             seed_of(options_.seed, kOwners));
  return options_.fault_rate == 0 ? Status() : backend_->set_faults(faults_of_copies(options_.fault_rate));
}

Status World::make_machine() {
  auto backend = make_small_machine(options_.system, options_.peer_bytes, seed_of(options_.seed, kFaults));
  if (!backend) return tl::unexpected(backend.error());
  backend_ = std::move(*backend);
  const auto arrangement = kv::kv_arrangement_from(options_.arrangement);
  if (!arrangement) return tl::unexpected(arrangement.error());
  auto pages =
      KvPages::create(*backend_, options_.shape, *arrangement, options_.page_tokens, options_.page_count());
  if (!pages) return tl::unexpected(pages.error());
  pages_ = std::move(*pages);
  return {};
}

Status World::make_caches() {
  PeerCacheConfig config = small_cache_config();
  config.host_budget_bytes = options_.host_bytes;
  config.on_event = [this](const CacheEvent& event) {
    if (hears_ != nullptr) hears_->hear(event);
  };
  auto cache = PeerCache::create(*backend_, config);
  if (!cache) return tl::unexpected(cache.error());
  cache_ = std::move(*cache);
  if (!options_.cache) return {};

  const auto backing = backing_from(options_.backing);
  if (!backing) return tl::unexpected(backing.error());
  auto blocks = kv::BlockCache::create(*cache_, {.layout = pages_->layout(),
                                                 .block_pages = options_.block_pages,
                                                 .backing = *backing,
                                                 .recompute_ns_per_token = options_.recompute_us * 1e3,
                                                 .group_layers = options_.group_layers,
                                                 .ahead_ns = static_cast<TimeNs>(options_.ahead_us * 1e3),
                                                 .store_buffers = options_.store_buffers,
                                                 .on_event = [this](const kv::BlockEvent& event) {
                                                   ++events_[static_cast<std::size_t>(event.kind)];
                                                 }});
  if (!blocks) return tl::unexpected(blocks.error());
  blocks_ = std::move(*blocks);
  hears_ = blocks_.get();
  return {};
}

/// They move virtual time, and a kernel's function must be called in its own.
Status World::let_others_act() {
  if (Status done = kernels_->wait(); !done) return done;
  if (owners_ && owners_->due()) owners_->act();
  cache_->poll();
  if (blocks_) blocks_->poll();
  return {};
}

Result<Outcome> World::serve(const ProgressReport& report) {
  PagedKv kv(
      *pages_, blocks_.get(),
      {.sequences = options_.limits.sequences,
       .block_pages = options_.block_pages,
       .seed = seed_of(options_.seed, kPages)},
      kernels_->stream(),
      {.before_layer = [this] { return let_others_act(); },
       .before_load =
           [this] {
             backend_->sleep_until(backend_->now_ns() + static_cast<TimeNs>(options_.schedule_us * 1e3));
             return let_others_act();
           }});
  CpuCompute compute(model_, *kernels_, kv);
  ResidentExperts experts(model_);
  Server server(model_, compute, experts, kv, options_.limits,
                {options_.temperature, seed_of(options_.seed, kSampling)});
  Conversations conversations = draw_conversations(options_);
  Outcome outcome;
  if (Status served = serve(conversations, server, outcome, report); !served)
    return tl::unexpected(served.error());
  outcome.answers = server.answers();
  outcome.server = server.stats();
  outcome.pages = kv.stats();
  outcome.page_bytes = pages_->layout().page_bytes();
  std::ranges::sort(outcome.answers, {}, &Answer::id);
  if (Status right = check_books(outcome); !right) return tl::unexpected(right.error());
  return outcome;
}

Status World::serve(Conversations& conversations, Server& server, Outcome& outcome,
                    const ProgressReport& report) {
  const TimeNs begin_ns = backend_->now_ns();
  const auto now_ns = [&] { return backend_->now_ns() - begin_ns; };
  std::vector<TimeNs> came_ns(std::size_t{options_.talk.conversations} * options_.talk.most_turns);
  std::size_t heard = 0;
  while (!conversations.over()) {
    for (Request& request : conversations.due(now_ns())) {
      came_ns[request.id] = request.arrival_ns;
      outcome.prompt_tokens += request.prompt.size();
      server.submit(std::move(request));
    }
    if (server.idle())
      backend_->sleep_until(begin_ns + conversations.next_ns());
    else if (Status done = server.step(); !done)
      return done;
    if (Status done = let_others_act(); !done) return done;
    for (; heard < server.answers().size(); ++heard) {
      const Answer& answer = server.answers()[heard];
      outcome.waited_ns += now_ns() - came_ns[answer.id];
      conversations.hear(answer, now_ns());
    }
    report(server.stats().new_tokens);
  }
  outcome.duration_ns = now_ns();
  return {};
}

Status World::check_books(Outcome& outcome) {
  outcome.copies_failed = backend_->counters().copy_batches_failed;
  if (owners_) outcome.owners = owners_->stats();
  if (Status whole = cache_->audit(); !whole || !blocks_) return whole;
  if (Status settled = blocks_->settle(backend_->now_ns() + kSettleNs); !settled) return settled;
  outcome.events = events_;
  const kv::BlockCacheStats& stats = outcome.blocks = blocks_->stats();
  const std::uint64_t ended =
      stats.stored + stats.stores_known + stats.stores_refused + stats.stores_given_up;
  if (stats.stores_asked != ended)
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} stores were asked for, {} have ended", stats.stores_asked, ended));
  const std::uint64_t found = std::accumulate(stats.found.begin(), stats.found.end(), std::uint64_t{0});
  if (stats.looked_up != found + stats.not_found)
    return fail(ErrorCode::invalid_argument, fmt::format("{} blocks were looked up, {} found and {} not",
                                                         stats.looked_up, found, stats.not_found));
  if (stats.recompute != outcome.pages.lost_blocks)
    return fail(ErrorCode::invalid_argument, fmt::format("{} blocks were lost, the cache counts {}",
                                                         outcome.pages.lost_blocks, stats.recompute));
  return {};
}

std::uint32_t Options::least_pages() const {
  const std::uint32_t block_tokens = page_tokens * block_pages;
  return block_pages * ((talk.positions() + block_tokens - 1) / block_tokens);
}

std::uint32_t Options::page_count() const {
  return pages == 0 ? least_pages() + least_pages() / 2 : pages;
}

Status Options::validate() const {
  const auto check = [](const char* name, double value, double low, double high) -> Status {
    if (value >= low && value <= high) return {};
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} is {}, it must be from {} to {}", name, value, low, high));
  };
  for (const Status& status :
       {shape.validate(),
        check("conversations", talk.conversations, 1, 1e5),
        check("most_turns", talk.most_turns, 1, 1'000),
        check("system_prompts", talk.system_prompts, 1, 1e5),
        check("longest_system", talk.longest_system, 1, 1e5),
        check("longest_said", talk.longest_said, 1, 1e5),
        check("most_new_tokens", talk.most_new_tokens, 1, 1e5),
        check("arrival_us", talk.arrival_us, 0, 1e9),
        check("pause_us", talk.pause_us, 0, 1e9),
        check("temperature", temperature, 0, 100),
        check("sequences", limits.sequences, 1, 1024),
        check("tokens_per_step", limits.tokens_per_step, limits.sequences, 1e5),
        check("page_tokens", page_tokens, 1, kMostBlockTokens),
        check("block_pages", block_pages, 1, kMostBlockTokens / std::max(page_tokens, 1U)),
        check("ahead_us", ahead_us, 0, 1e9),
        check("recompute_us", recompute_us, 0, 1e9),
        check("schedule_us", schedule_us, 0, 1e6),
        check("kernel_us", kernel_us, 0.001, 1e6),
        check("owner_period_us", owner_period_us, 1, 1e9),
        check("fault_rate", fault_rate, 0, 0.5)})
    if (!status) return status;
  if (Status status = check("pages", page_count(), least_pages(), 1e6); !status) return status;
  if (const auto known = backing_from(backing); !known) return tl::unexpected(known.error());
  const auto known = kv::kv_arrangement_from(arrangement);
  return known ? Status() : tl::unexpected(known.error());
}

Result<Backing> backing_from(const std::string& name) {
  for (const Backing backing : kBackings)
    if (name == to_string(backing)) return backing;
  return fail(ErrorCode::not_found,
              fmt::format("no backing for blocks is named '{}'; known are managed_host, spill, lossy", name));
}

std::vector<Answer> serve_alone(const Options& options, const Model& model, const ProgressReport& report) {
  Kernels kernels;
  PlainKv kv(options.shape, 1, options.talk.positions());
  CpuCompute compute(model, kernels, kv);
  ResidentExperts experts(model);
  Server server(model, compute, experts, kv, {.sequences = 1, .tokens_per_step = options.talk.positions()},
                {options.temperature, seed_of(options.seed, kSampling)});
  Conversations conversations = draw_conversations(options);
  while (!conversations.over()) {
    const TimeNs now_ns = conversations.next_ns();
    for (Request& request : conversations.due(now_ns)) {
      server.submit(std::move(request));
      while (!server.idle() && server.step()) report(server.stats().new_tokens);
      conversations.hear(server.answers().back(), now_ns);
    }
  }
  std::vector<Answer> answers = server.answers();
  std::ranges::sort(answers, {}, &Answer::id);
  return answers;
}

}  // namespace harvest::kv_server
