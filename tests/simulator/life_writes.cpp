// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "simulator/life.hpp"
#include "simulator/violation.hpp"
#include "simulator/words.hpp"

/// What a life writes, and what it is told of it.
namespace harvest::simulator {
namespace {

constexpr std::uint64_t kKiB = 1ULL << 10;

std::uint64_t tag_of(const Stored& content) {
  return static_cast<std::uint64_t>(content.version) << 8 | 1;
}

}  // namespace

Stored Life::draw_object(std::uint64_t key) {
  Stored what;
  what.key = key;
  what.version = next_version_++;
  backend_->note_versions(next_version_);
  switch (random_.weighted({35, 45, 20})) {
    case 0: what.bytes = random_.between(1, 512); break;
    case 1: what.bytes = random_.between(512, 16 * kKiB); break;
    default: what.bytes = random_.between(16 * kKiB, plan_.largest_object_bytes);
  }
  what.backing = static_cast<Backing>(random_.below(4));
  what.evictable = random_.chance(0.4);
  if (plan_.tenants && random_.chance(0.6)) what.tenant = static_cast<std::uint8_t>(random_.between(1, 3));
  return what;
}

void Life::write(std::byte* to, const Stored& content) {
  if (plan_.phantom)
    simulated_->stamp(to, content.bytes, tag_of(content));
  else
    write_words(to, content.bytes, content.version, content.tenant);
}

/// The caller's own memory; the simulation stops the process if it goes while work still reads it.
std::byte* Life::host_memory(std::uint64_t bytes, const Stored& content) {
  std::byte* const memory = *simulated_->reserve_host_range(bytes);
  write(memory, content);
  return memory;
}

void Life::put() {
  put_key(random_key());
}

void Life::put_key(std::uint64_t key) {
  Stored what = draw_object(key);
  PutOptions options;
  options.backing = what.backing;
  options.evictable = what.evictable;
  options.tenant = what.tenant;
  options.recompute_cost_ns = random_.chance(0.3) ? 1e6 : 0;
  if (key % 3 != 0) options.parent = Key(key / 2);  // a forest, of which some is missing
  std::byte* const memory = host_memory(what.bytes, what);
  const bool external = what.backing == Backing::external_host;
  if (external) what.external = memory;
  const bool waited = !external && random_.chance(0.5);
  if (!external && !waited) options.stream = random_stream().id;

  const Generation latest = model_.latest();
  const std::uint64_t failed = failures();
  putting_ = true;
  const auto generation = cache_->put(key, memory, what.bytes, options);
  putting_ = false;
  stored(generation, what, latest, failed, waited || external);
  if (external) return;
  if (waited) {
    static_cast<void>(simulated_->release_host_range(memory));
    return;
  }
  sources_.push_back(
      {*backend_->record_event(options.stream), memory, generation.value_or(0), EventId::none});
}

void Life::put_from_gpu() {
  put_key_from_gpu(random_key());
}

/// The bytes are written by work on the stream itself, as a model's own kernel would.
void Life::put_key_from_gpu(std::uint64_t key) {
  Stored what = draw_object(key);
  if (what.backing == Backing::external_host) what.backing = Backing::managed_host;
  const Stream& stream = random_stream();
  PutOptions options;
  options.backing = what.backing;
  options.evictable = what.evictable;
  options.tenant = what.tenant;
  options.source_device = plan_.config.consumer;
  options.stream = stream.id;
  std::byte* const memory = host_memory(what.bytes, what);
  const Copy upload{stream.source, memory, what.bytes};
  // Where the upload fails, no earlier object's bytes are put in its stead.
  static_cast<void>(
      simulated_->fill(stream.id, plan_.config.consumer, stream.source, plan_.largest_object_bytes, 0xCD));
  const Generation latest = model_.latest();
  const std::uint64_t failed = failures();
  if (!backend_->copy(stream.id, {kHost, plan_.config.consumer}, {&upload, 1})) {
    static_cast<void>(simulated_->release_host_range(memory));
    return;
  }
  const EventId uploaded = *backend_->record_event(stream.id);
  backend_->forget_copies();
  putting_ = true;
  const auto generation = cache_->put(what.key, stream.source, what.bytes, options);
  putting_ = false;
  for (const DeviceId peer : peers_)
    if (const auto written = backend_->written().find(peer); written != backend_->written().end()) {
      what.on_peer = written->second;
      what.peer = peer;
    }
  stored(generation, what, latest, failed, false);
  sources_.push_back({*backend_->record_event(stream.id), memory, generation.value_or(0), uploaded});
}

void Life::stored(const Result<Generation>& generation, Stored what, Generation latest_before,
                  std::uint64_t failures_before, bool waited) {
  std::vector<CacheEvent> told;
  told.swap(unknown_);
  if (generation) {
    what.under_way = !waited;
    what.failures_before = failures_before;
    model_.store(*generation, what, latest_before);
    observe(*generation, what.bytes);
    for (const CacheEvent& event : told) model_.hear(event, lost_, failures());
    return;
  }
  const ErrorCode code = generation.error().code;
  const bool failed = failures() != failures_before || !lost_.empty() || !down_.empty();
  observe(static_cast<std::uint64_t>(code));
  for (const CacheEvent& event : told)
    require(event.kind == CacheEvent::Kind::lost && event.generation > latest_before &&
                event.key == Key(what.key),
            "I4", "{} is told of generation {}, which was never stored", to_string(event.kind),
            event.generation);
  require(code == ErrorCode::out_of_memory ||
              (failed && (code == ErrorCode::copy_failed || code == ErrorCode::unavailable)),
          "I10", "a put is answered with {}: {}", to_string(code), generation.error().message);
  if (what.backing == Backing::external_host)
    require(code == ErrorCode::out_of_memory && plan_.config.max_objects < 1000, "I10",
            "a put of the caller's own memory is refused: {}", generation.error().message);
  if (what.external != nullptr) static_cast<void>(simulated_->release_host_range(what.external));
  // A copy that was accepted and failed afterwards has replaced the old content before that was known.
  if (waited && code == ErrorCode::copy_failed && !told.empty()) model_.remove(what.key);
}

void Life::erase() {
  erase_key(random_key());
}

void Life::erase_key(std::uint64_t key) {
  const Status erased = cache_->erase(key);
  observe(erased ? 1 : 0);
  if (erased) {
    require(model_.current(key) != 0, "I4", "key {} is erased, and was gone before", key);
    model_.remove(key);
  } else {
    require(erased.error().code == ErrorCode::not_found, "I4", "erase answers {}", erased.error().message);
    expect_missing(key);
  }
}

/// A key changes while its own fetch is under way.
void Life::race_on_key() {
  const std::uint64_t key = random_key();
  const Stream& stream = random_stream();
  if (random_.chance(0.5))
    static_cast<void>(
        simulated_->submit_kernel(stream.id, static_cast<TimeNs>(random_.between(1'000, 5'000'000))));
  fetch_keys(stream, {key}, false);
  if (random_.chance(0.6)) erase_key(key);
  if (random_.chance(0.6)) put_key(key);
  fetch_keys(random_stream(), {key}, false);
}

/// A put from the GPU writes more than one copy. While they are under way they are copied on and revoked, and
/// some of them fail.
void Life::disturb_put() {
  const std::uint64_t key = random_key();
  const StreamId stream = random_stream().id;
  std::vector<Lease> local;  // what is leased cannot make room, so that the put goes to a peer
  const bool leases = random_.chance(0.5);
  for (std::uint64_t other = 1; leases && other <= plan_.keys; ++other)
    if (Lease lease = cache_->acquire(other, stream); lease.tier() == Tier::local)
      local.push_back(std::move(lease));
  static_cast<void>(simulated_->submit_kernel(stream, static_cast<TimeNs>(random_.below(1'000'000))));
  FaultPlan one_fails =
      planned_;  // the upload, the host's copy, the faster copy, or what is copied on from those
  one_fails.fail_copy.at = random_.chance(0.5) ? 3 : random_.between(1, 4);
  const bool fails = plan_.faults.has(Fault::fail_copy) && !case_.nth && random_.chance(0.5);
  if (fails) simulated_->set_faults(one_fails);
  put_key_from_gpu(key);
  local.clear();
  if (random_.chance(0.9)) {  // into the tier in which it is not
    const Key keys[] = {key};
    observe(cache_->prefetch(keys, cache_->locate(key) == Tier::local ? Tier::peer : Tier::local));
  }
  if (fails) simulated_->set_faults(planned_);
  const auto peer = random_peer();
  const DeviceId end = peer && random_.chance(0.5) ? *peer : kHost;
  const bool breaks = plan_.faults.has(Fault::break_link) && random_.chance(0.7) &&
                      !down_.contains({plan_.config.consumer, end});
  if (breaks) static_cast<void>(simulated_->set_link_up(plan_.config.consumer, end, false));
  for (const DeviceId device : peers_)
    if (random_.chance(0.3)) reclaim_all(device);
  backend_->sleep_until(backend_->now_ns() +
                        static_cast<TimeNs>(random_.below(20'000'000) >> random_.below(8)));
  if (breaks) static_cast<void>(simulated_->set_link_up(plan_.config.consumer, end, true));
  if (random_.chance(0.5)) static_cast<void>(cache_->poll());
  if (random_.chance(0.7)) fetch_keys(random_stream(), {key}, true);
}

// --- what is told
// -------------------------------------------------------------------------------------------

void Life::on_event(const CacheEvent& event) {
  require(!reading_, "I8", "{} is told on the read path", to_string(event.kind));
  observe(static_cast<std::uint64_t>(event.kind), event.key.low, event.generation,
          static_cast<std::uint64_t>(event.device));
  coverage_.lost += event.kind == CacheEvent::Kind::lost ? 1 : 0;
  coverage_.spilled += event.kind == CacheEvent::Kind::spilled ? 1 : 0;
  coverage_.evicted += event.kind == CacheEvent::Kind::evicted ? 1 : 0;
  if (model_.find(event.generation) == nullptr && putting_) {
    unknown_.push_back(event);
  } else {
    model_.hear(event, lost_, failures());
    if (event.kind == CacheEvent::Kind::settled) {
      Stored& what = model_.at(event.generation);
      static_cast<void>(simulated_->release_host_range(what.external));
      what.external = nullptr;
    }
  }
  if (plan_.reentrant && callbacks_ == 0) {
    ++callbacks_;
    call_back(event);
    --callbacks_;
  }
}

/// A callback may call the cache (I8): a lock of the cache's that is held would never be had.
void Life::call_back(const CacheEvent& event) {
  switch (callback_random_.weighted({40, 20, 10, 10, 10, 10})) {
    case 0: {
      const Lease lease = cache_->acquire(event.key, StreamId::none);
      return observe(lease ? 1 : 0);
    }
    case 1: return observe(static_cast<std::uint64_t>(cache_->locate(event.key)));
    case 2: return observe(cache_->stats().objects);
    case 3: {
      if (putting_) return;  // one put at a time has an unknown generation
      std::swap(random_, callback_random_);
      put_key(kCallbackKeys + random_.below(4));
      std::swap(random_, callback_random_);
      return;
    }
    case 4: {
      const std::uint64_t key = kCallbackKeys + callback_random_.below(4);
      if (cache_->erase(key)) model_.remove(key);
      return;
    }
    default: {
      std::swap(random_, callback_random_);
      begin_reclaim();
      std::swap(random_, callback_random_);
    }
  }
}

}  // namespace harvest::simulator
