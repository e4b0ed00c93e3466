// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/allocation_count.hpp"
#include "simulator/life.hpp"
#include "simulator/violation.hpp"
#include "simulator/words.hpp"

/// What a life reads, and what it must find.
namespace harvest::simulator {
namespace {

constexpr std::uint64_t kStagingBytes = 1ULL << 20;
constexpr std::size_t kMostLeases = 8;

/// I9, of what a read does outside of its backend: it allocates nothing, and no time passes.
class ReadPath {
 public:
  ReadPath(const Backend& backend, bool& reading)
      : backend_(backend), reading_(reading), began_ns_(backend.now_ns()) {
    reading_ = true;
  }
  ~ReadPath() {
    const std::uint64_t allocations = count_.stop();
    reading_ = false;
    require(allocations == 0, "I9", "a read asked for memory {} times", allocations);
    require(backend_.now_ns() == began_ns_, "I9", "a read took {} ns", backend_.now_ns() - began_ns_);
  }
  ReadPath(const ReadPath&) = delete;
  ReadPath& operator=(const ReadPath&) = delete;

 private:
  const Backend& backend_;
  bool& reading_;
  TimeNs began_ns_;
  testing::AllocationCount count_;
};

}  // namespace

// --- fetch
// --------------------------------------------------------------------------------------------------

void Life::fetch(bool waits) {
  const Stream& stream = random_stream();
  std::vector<std::uint64_t> keys(random_.between(1, random_.chance(0.1) ? 100 : 12));
  for (std::uint64_t& key : keys) key = random_key();
  fetch_keys(stream, std::move(keys), waits);
}

void Life::fetch_keys(const Stream& stream, std::vector<std::uint64_t> keys, bool waits) {
  std::vector<FetchItem> items;
  std::vector<std::uint64_t> offsets;
  std::uint64_t used = 0;
  for (const std::uint64_t key : keys) {
    const Generation generation = model_.current(key);
    const std::uint64_t bytes = generation == 0 ? 1 : model_.at(generation).bytes;
    FetchItem item;
    item.key = key;
    item.capacity_bytes = bytes + random_.below(2) * 100;
    if (used + item.capacity_bytes > kStagingBytes) break;
    if (random_.chance(0.02)) item.capacity_bytes = bytes - 1;
    item.destination = stream.staging + used;
    offsets.push_back(used);
    used += item.capacity_bytes;
    items.push_back(item);
  }
  const std::uint64_t failed = failures();
  Status status;
  if (waits) {
    reading_ = true;
    status = cache_->fetch_and_wait(items, stream.id);
    reading_ = false;
  } else {
    const ReadPath read_path(*backend_, reading_);
    status = cache_->fetch(items, stream.id);
  }
  require(status.has_value(), "I10", "a fetch is answered with {}",
          status ? std::string() : status.error().message);

  std::vector<std::pair<const std::byte*, Generation>> arrived;
  for (std::size_t i = 0; i < items.size(); ++i) {
    observe(static_cast<std::uint64_t>(items[i].outcome), static_cast<std::uint64_t>(items[i].served),
            items[i].generation, items[i].bytes);
    if (items[i].outcome != ErrorCode::ok) continue;
    check_item(items[i], waits, failed);
    arrived.emplace_back(stream.staging + offsets[i], items[i].generation);
  }
  if (waits) {  // it says itself what arrived
    for (const auto& [address, generation] : arrived) compare(address, generation, "fetch_and_wait", true);
  } else if (!arrived.empty()) {
    collect(stream, plan_.config.consumer, arrived, failed);
  }
  // Looking for the reason of a miss may tell of losses that came after the reads above.
  for (const FetchItem& item : items)
    if (item.outcome != ErrorCode::ok) check_item(item, waits, failed);
}

void Life::check_item(const FetchItem& item, bool waits, std::uint64_t failures_before) {
  const std::uint64_t key = item.key.low;
  const Generation current = model_.current(key);
  if (item.outcome == ErrorCode::ok) {
    require(current != 0, "I2", "key {} was erased or told gone, and is served", key);
    require(item.generation == current, "I2", "key {} is served in generation {}, it is in {}", key,
            item.generation, current);
    require(item.bytes == model_.at(current).bytes, "I2", "key {} has {} bytes, {} are served", key,
            model_.at(current).bytes, item.bytes);
    require(item.served != Tier::none, "I2", "key {} is served by no tier", key);
    return;
  }
  require(item.served == Tier::none, "I2", "key {} is not served, and names a tier", key);
  if (item.outcome == ErrorCode::not_found) return expect_missing(key);
  if (item.outcome == ErrorCode::invalid_argument) {
    require(current == 0 || item.capacity_bytes < model_.at(current).bytes, "I2",
            "key {} fits, and is answered as if it did not", key);
    return;
  }
  require(failures() != failures_before || !down_.empty() || !lost_.empty(), "I10",
          "key {} is answered with {} where nothing failed", key, to_string(item.outcome));
  // What is on the host is read from there, whatever happens on peers.
  if (!waits || current == 0 || !host_path_is_good()) return;
  const Stored& what = model_.at(current);
  const bool on_host = what.backing == Backing::external_host || what.backing == Backing::managed_host;
  require(!on_host || what.under_way || what.doubtful, "I10",
          "key {} is on the host, and is answered with {}", key, to_string(item.outcome));
}

/// Given to a stream behind the reads: copies of what they delivered, so that their buffers can be used
/// again.
void Life::collect(const Stream& stream, DeviceId from,
                   const std::vector<std::pair<const std::byte*, Generation>>& items,
                   std::uint64_t failures_before) {
  Check check;
  check.buffer = free_collector();
  check.failures_before = failures_before;
  check.on_lost_device = is_lost(from);
  std::vector<Copy> copies;
  std::uint64_t used = 0;
  for (const auto& [address, generation] : items) {
    const std::uint64_t bytes = model_.at(generation).bytes;
    copies.push_back({check.buffer + used, address, bytes});
    check.expected.push_back({used, generation});
    used += bytes;
  }
  if (!backend_->copy(stream.id, {from, plan_.config.consumer}, copies)) return;
  check.event = *backend_->record_event(stream.id);
  checks_.push_back(std::move(check));
}

std::byte* Life::free_collector() {
  while (checks_.size() >= collectors_.size()) {
    backend_->wait_event(checks_.front().event, kNever);
    check_arrivals();
  }
  for (std::byte* buffer : collectors_)
    if (std::none_of(checks_.begin(), checks_.end(),
                     [&](const Check& check) { return check.buffer == buffer; }))
      return buffer;
  violated("simulator", "no buffer is free");
}

/// `surely`: the bytes were promised to be there; else a failure that nobody could know of may explain it.
void Life::compare(const std::byte* bytes, Generation generation, std::string_view how, bool surely) {
  Stored& what = model_.at(generation);
  ++coverage_.reads_compared;
  coverage_.bytes_compared += what.bytes;
  std::uint64_t wrong = what.bytes;
  if (plan_.phantom) {
    if (simulated_->stamp_of(bytes, what.bytes) != (static_cast<std::uint64_t>(what.version) << 8 | 1))
      wrong = 0;
  } else {
    wrong = first_wrong_word(bytes, what.bytes, what.version, what.tenant);
  }
  if (wrong == what.bytes) return;
  if (is_garbled(generation)) return;
  // A read that did not wait may have been given a copy whose write failed on its way. Nobody tells the
  // reader.
  if (!surely) {
    static_cast<void>(cache_->poll());
    if (what.told_gone || what.doubtful || (what.under_way && failures() > what.failures_before)) return;
  }
  std::string found;
  if (!plan_.phantom && wrong + 8 <= what.bytes) {
    const auto word = read_word(bytes + wrong, next_version_);
    found = word ? fmt::format("version {}, word {}", word->version, word->index) : "no word of any object";
  }
  violated("I2", fmt::format(
                     "{}: wrong bytes from {} of {}, key {}, generation {} (version {}, {}); found: {}", how,
                     wrong, what.bytes, what.key, generation, what.version, to_string(what.backing), found));
}

bool Life::is_garbled(Generation generation) {
  for (const Source& source : sources_)
    if (source.generation == generation && source.uploaded != EventId::none)
      return backend_->query_event(source.uploaded) == EventState::failed;
  return model_.at(generation).garbled;
}

/// I4: what is not there was erased, or its end was told.
void Life::expect_missing(std::uint64_t key) {
  static_cast<void>(cache_->poll());
  require(model_.current(key) == 0, "I4", "key {} (generation {}, {}) is gone and nobody was told", key,
          model_.current(key),
          model_.current(key) == 0 ? "" : to_string(model_.at(model_.current(key)).backing));
}

void Life::read_everything() {
  const std::map<std::uint64_t, Generation> alive = model_.alive();
  for (const auto& [key, generation] : alive) {
    if (model_.current(key) != generation) continue;  // ended meanwhile
    const Stream& stream = streams_.front();
    FetchItem item;
    item.key = key;
    item.destination = stream.staging;
    item.capacity_bytes = kStagingBytes;
    require(cache_->fetch_and_wait({&item, 1}, stream.id).has_value(), "I10", "a fetch is refused");
    check_item(item, true, failures());
    if (item.outcome == ErrorCode::ok) compare(stream.staging, item.generation, "the last read", true);
  }
}

// --- leases
// -------------------------------------------------------------------------------------------------

void Life::acquire() {
  const std::uint64_t key = random_key();
  const StreamId stream = random_.chance(0.3) ? StreamId::none : random_stream().id;
  Held held;
  {
    const ReadPath read_path(*backend_, reading_);
    held.lease = cache_->acquire(key, stream);
  }
  Lease& lease = held.lease;
  observe(lease ? 1 : 0, static_cast<std::uint64_t>(lease.outcome()),
          static_cast<std::uint64_t>(lease.tier()));
  if (!lease) {
    if (lease.outcome() == ErrorCode::not_found && stream != StreamId::none) return expect_missing(key);
    require(lease.outcome() == ErrorCode::not_found || lease.outcome() == ErrorCode::busy, "I2",
            "a lease of key {} is answered with {}", key, to_string(lease.outcome()));
    return;
  }
  const Generation current = model_.current(key);
  require(current != 0, "I2", "key {} was erased or told gone, and is leased", key);
  require(lease.generation() == current, "I2", "key {} is leased in generation {}, it is in {}", key,
          lease.generation(), current);
  require(lease.bytes() == model_.at(current).bytes, "I2", "the lease of key {} has {} bytes", key,
          lease.bytes());
  held.stream = stream;
  held.generation = current;
  if (stream != StreamId::none) held.readable = *backend_->record_event(stream);
  compare_held(held, "a new lease");
  if (leases_.size() >= kMostLeases) drop(leases_.front()), leases_.erase(leases_.begin());
  leases_.push_back(std::move(held));
}

/// What is leased stays as it is for as long as the lease is held, whatever else happens.
void Life::compare_held(Held& held, std::string_view how) {
  require(held.lease.generation() == held.generation, "I2", "a lease changed its generation from {} to {}",
          held.generation, held.lease.generation());
  if (is_lost(held.lease.device())) return;
  if (held.readable != EventId::none && backend_->query_event(held.readable) == EventState::pending) return;
  compare(held.lease.data(), held.generation, how, false);
}

/// Work on the lease's stream reads the leased bytes; the lease may end long before that work runs.
void Life::use_lease() {
  if (leases_.empty()) return;
  Held& held = leases_[random_.below(leases_.size())];
  compare_held(held, "an old lease");
  if (held.stream == StreamId::none) return;
  const auto stream =
      std::find_if(streams_.begin(), streams_.end(), [&](const Stream& s) { return s.id == held.stream; });
  collect(*stream, held.lease.device(), {{held.lease.data(), held.generation}}, failures());
}

void Life::drop(Held& held) {
  compare_held(held, "a lease at its end");
  if (held.readable != EventId::none) backend_->release_event(held.readable);
  const ReadPath read_path(*backend_, reading_);
  held.lease.release();
}

void Life::release_lease() {
  if (leases_.empty()) return;
  const std::size_t at = random_.below(leases_.size());
  drop(leases_[at]);
  leases_.erase(leases_.begin() + static_cast<std::ptrdiff_t>(at));
}

void Life::release_all() {
  for (Held& held : leases_) drop(held);
  leases_.clear();
}

/// In the middle of a driver's call that the cache makes: reads do not wait for it (I9). What they find may
/// be changing, so only the host's bytes are compared, by the generation that is told.
void Life::read_meanwhile() {
  if (cache_ == nullptr || callbacks_ != 0) return;
  const bool was_reading = reading_;
  Random random(simulated_->now_ns());
  const Lease lease = cache_->acquire(random.between(1, plan_.keys), StreamId::none);
  if (lease && !plan_.phantom)
    if (const Stored* what = model_.find(lease.generation());
        what != nullptr && !what->under_way && !what->doubtful && !what->garbled)
      require(first_wrong_word(lease.data(), what->bytes, what->version, what->tenant) == what->bytes, "I2",
              "a lease in the middle of a driver's call has wrong bytes, key {}", what->key);
  reading_ = was_reading;
}

void Life::prefetch() {
  std::vector<Key> keys;
  for (std::uint64_t n = random_.between(1, 8); n > 0; --n) keys.emplace_back(random_key());
  const std::size_t coming = cache_->prefetch(keys, random_.chance(0.5) ? Tier::local : Tier::peer);
  require(coming <= keys.size(), "prefetch", "{} of {} keys are coming", coming, keys.size());
  observe(coming);
}

void Life::look() {
  const std::uint64_t key = random_key();
  const Tier tier = cache_->locate(key);
  observe(static_cast<std::uint64_t>(tier));
  if (tier == Tier::none) expect_missing(key);
  check_statistics(false);
}

}  // namespace harvest::simulator
