// SPDX-License-Identifier: Apache-2.0
#include "moe_server/world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "moe_server/cpu_compute.hpp"
#include "moe_server/experts.hpp"
#include "moe_server/kernels.hpp"
#include "moe_server/random.hpp"

namespace harvest::moe_server {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kSegmentBytes = 2 * kMiB;  // small, as the model is
constexpr std::uint64_t kReserveBytes = 32 * kMiB;

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
  return set_faults();
}

Status World::make_machine() {
  auto machine = load_machine(options_.system);
  if (!machine) return tl::unexpected(machine.error());
  auto backend = make_simulated_backend(std::move(*machine), {.seed = seed_of(options_.seed, kFaults)});
  if (!backend) return tl::unexpected(backend.error());
  backend_ = std::move(*backend);
  const std::uint64_t half_bytes = std::max(model_.all_expert_bytes() / 2, 4 * kSegmentBytes);
  return fill_peers((options_.peer_bytes == 0 ? half_bytes : options_.peer_bytes) + kReserveBytes);
}

/// The model is small and the peers are large: their owners hold nearly all of them.
Status World::fill_peers(std::uint64_t idle_bytes) {
  for (const DeviceInfo& device : backend_->devices()) {
    if (device.id == kHost || device.id == 0) continue;
    const auto memory = backend_->query_memory(device.id);
    if (!memory) return tl::unexpected(memory.error());
    if (memory->free_bytes <= idle_bytes) continue;
    if (Status held = backend_->tenant_allocate(device.id, memory->free_bytes - idle_bytes); !held)
      return held;
  }
  return {};
}

Status World::make_caches() {
  PeerCacheConfig config{.consumer = 0, .host_budget_bytes = 64 * kMiB};
  config.segment_min_bytes = kSegmentBytes;
  config.segment_max_bytes = 4 * kSegmentBytes;
  config.pressure = {.sample_interval_ns = 200'000,
                     .reserve_bytes = kReserveBytes,
                     .regrow_delay_ns = 1'000'000,
                     .hysteresis_bytes = 0};
  auto cache = PeerCache::create(*backend_, config);
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

Status World::set_faults() {
  if (options_.fault_rate == 0) return {};
  FaultPlan plan;
  plan.fail_copy.rate = options_.fault_rate;
  plan.refuse_copy.rate = options_.fault_rate;
  plan.slow_copy.rate = options_.fault_rate;
  plan.fail_map.rate = options_.fault_rate;
  return backend_->set_faults(plan);
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
  CpuCompute compute(model_, *kernels_, options_.limits.sequences,
                     options_.longest_prompt + options_.most_new_tokens);
  CachedExperts experts(*experts_, kernels_->stream(), [this] { return let_others_act(); });
  Server server(model_, compute, experts, options_.limits,
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
  CpuCompute compute(model, kernels, 1, options.longest_prompt + options.most_new_tokens);
  ResidentExperts experts(model);
  Server server(model, compute, experts, {.sequences = 1, .tokens_per_step = options.longest_prompt},
                {options.temperature, seed_of(options.seed, kSampling)});
  for (const Request& request : requests) server.submit(request);
  while (!server.idle() && server.step()) report(server.stats().new_tokens);
  return server.answers();
}

std::string compare(const std::vector<Answer>& answers, const std::vector<Answer>& expected) {
  if (answers.size() != expected.size())
    return fmt::format("{} requests were answered, {} were expected", answers.size(), expected.size());
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const Answer& a = answers[i];
    const Answer& b = expected[i];
    if (a.id != b.id) return fmt::format("request {} has no answer", b.id);
    const std::size_t tokens = std::min(a.tokens.size(), b.tokens.size());
    const std::size_t vocabulary = b.tokens.empty() ? 0 : b.logits.size() / b.tokens.size();
    for (std::size_t token = 0; token < tokens; ++token) {
      const auto* left = a.logits.data() + token * vocabulary;
      const auto* right = b.logits.data() + token * vocabulary;
      for (std::size_t score = 0; score < vocabulary; ++score)
        if (std::memcmp(left + score, right + score, sizeof(float)) != 0)
          return fmt::format(
              "request {}, new token {}: the score of {} is {}, with all experts resident it is {}", a.id,
              token, score, left[score], right[score]);
      if (a.tokens[token] != b.tokens[token])
        return fmt::format("request {}: new token {} is {}, with all experts resident it is {}", a.id, token,
                           a.tokens[token], b.tokens[token]);
    }
    if (a.tokens.size() != b.tokens.size())
      return fmt::format("request {} has {} new tokens, expected are {}", a.id, a.tokens.size(),
                         b.tokens.size());
  }
  return {};
}

}  // namespace harvest::moe_server
