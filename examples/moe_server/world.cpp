// SPDX-License-Identifier: Apache-2.0
#include "moe_server/world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "moe_server/cached_experts.hpp"
#include "transformer/cpu_compute.hpp"
#include "transformer/random.hpp"
#include "transformer/surroundings.hpp"

namespace harvest::moe_server {
namespace {

/// What the seed is for.
enum SeedOf : std::uint64_t { kWeights, kRequests, kOwners, kFaults, kKernels, kSampling };

}  // namespace

World::World(const Options& options, const Model& model) : options_(options), model_(model) {}
World::~World() = default;

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
  const std::uint64_t half_bytes = std::max(model_.all_expert_bytes() / 2, kSmallestIdleBytes);
  auto backend =
      make_small_machine(options_.system, options_.peer_bytes == 0 ? half_bytes : options_.peer_bytes,
                         seed_of(options_.seed, kFaults));
  if (!backend) return tl::unexpected(backend.error());
  backend_ = std::move(*backend);
  return {};
}

Status World::make_caches() {
  auto cache = PeerCache::create(*backend_, small_cache_config());
  if (!cache) return tl::unexpected(cache.error());
  cache_ = std::move(*cache);

  moe::ExpertCacheConfig experts_config{
      .model = model_.description(),
      .local_budget_bytes = options_.local_bytes == 0 ? model_.all_expert_bytes() / 4 : options_.local_bytes,
      .eviction = options_.eviction,
      .predictor = options_.predictor,
      .prefetch_probability = options_.prefetch_probability,
      .prefetch_layers = options_.prefetch_layers};
  if (options_.piece_bytes != 0) experts_config.piece_bytes = options_.piece_bytes;
  auto experts = moe::ExpertCache::create(*cache_, std::move(experts_config));
  if (!experts) return tl::unexpected(experts.error());
  experts_ = std::move(*experts);
  for (std::uint32_t layer = 0; layer < model_.shape().layers; ++layer)
    for (std::uint32_t expert = 0; expert < model_.shape().experts; ++expert)
      if (Status added = experts_->add_expert(layer, expert, model_.expert(layer, expert)); !added)
        return added;
  return {};
}

Status World::let_others_act() {
  if (!owners_ || !owners_->due()) return {};
  // Others move virtual time, and a kernel's function must be called in its own.
  if (Status done = kernels_->wait(); !done) return done;
  owners_->act();
  cache_->poll();
  return {};
}

Result<Outcome> World::serve(const std::vector<Request>& requests, const ProgressReport& report) {
  PlainKv kv(options_.shape, options_.limits.sequences, options_.longest_prompt + options_.most_new_tokens);
  CpuCompute compute(model_, *kernels_, kv);
  CachedExperts experts(
      *experts_, kernels_->stream(), [this] { return let_others_act(); }, options_.lookahead);
  Server server(model_, compute, experts, kv, options_.limits,
                {options_.temperature, seed_of(options_.seed, kSampling)});
  const TimeNs begin_ns = backend_->now_ns();
  auto next = requests.begin();
  while (next != requests.end() || !server.idle()) {
    for (; next != requests.end() && begin_ns + next->arrival_ns <= backend_->now_ns(); ++next)
      server.submit(*next);
    if (server.idle())
      backend_->sleep_until(begin_ns + next->arrival_ns);
    else if (Status done = server.step(); !done)
      return tl::unexpected(done.error());
    if (Status done = let_others_act(); !done) return tl::unexpected(done.error());
    experts_->poll();
    cache_->poll();
    report(server.stats().new_tokens);
  }
  Outcome outcome{.answers = server.answers(),
                  .duration_ns = backend_->now_ns() - begin_ns,
                  .server = server.stats(),
                  .experts = experts_->stats(),
                  .copies_failed = backend_->counters().copy_batches_failed};
  if (owners_) outcome.owners = owners_->stats();
  std::ranges::sort(outcome.answers, {}, &Answer::id);
  if (Status whole = cache_->audit(); !whole) return tl::unexpected(whole.error());
  return outcome;
}

Status Options::validate() const {
  const auto check = [](const char* name, double value, double low, double high) -> Status {
    if (value >= low && value <= high) return {};
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} is {}, it must be from {} to {}", name, value, low, high));
  };
  for (const Status& status :
       {shape.validate(), check("requests", requests, 1, 1e6),
        check("longest_prompt", longest_prompt, 1, 1e5), check("most_new_tokens", most_new_tokens, 1, 1e5),
        check("arrival_us", arrival_us, 0, 1e9), check("temperature", temperature, 0, 100),
        check("sequences", limits.sequences, 1, 1024),
        check("tokens_per_step", limits.tokens_per_step, limits.sequences, 1e5),
        check("kernel_us", kernel_us, 0.001, 1e6), check("owner_period_us", owner_period_us, 1, 1e9),
        check("fault_rate", fault_rate, 0, 0.5)})
    if (!status) return status;
  // All of them are drawn, and moved for real.
  const double all_bytes =
      static_cast<double>(shape.description().expert_bytes()) * shape.layers * shape.experts;
  return check("the experts' GiB", all_bytes / static_cast<double>(1ULL << 30), 0, 64);
}

std::vector<Request> draw_requests(const Options& options) {
  Random random(seed_of(options.seed, kRequests));
  std::vector<Request> requests(options.requests);
  TimeNs arrival_ns = 0;
  for (std::uint32_t id = 0; id < options.requests; ++id) {
    Request& request = requests[id];
    request.id = id;
    request.arrival_ns = arrival_ns;
    request.prompt.resize(random.between(1, options.longest_prompt));
    for (std::uint32_t& token : request.prompt)
      token = static_cast<std::uint32_t>(random.below(options.shape.vocabulary));
    request.new_tokens = static_cast<std::uint32_t>(random.between(1, options.most_new_tokens));
    arrival_ns += static_cast<TimeNs>(random.exponential() * options.arrival_us * 1e3);
  }
  return requests;
}

std::vector<Answer> serve_alone(const Options& options, const Model& model,
                                const std::vector<Request>& requests, const ProgressReport& report) {
  Kernels kernels;
  PlainKv kv(options.shape, 1, options.longest_prompt + options.most_new_tokens);
  CpuCompute compute(model, kernels, kv);
  ResidentExperts experts(model);
  Server server(model, compute, experts, kv, {.sequences = 1, .tokens_per_step = options.longest_prompt},
                {options.temperature, seed_of(options.seed, kSampling)});
  for (const Request& request : requests) server.submit(request);
  while (!server.idle() && server.step()) report(server.stats().new_tokens);
  return server.answers();
}

}  // namespace harvest::moe_server
