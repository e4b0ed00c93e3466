// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/peer_cache.hpp>

#include <CLI/CLI.hpp>
#include <array>
#include <barrier>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/bench/resources.hpp"
#include "cli/bench/timing.hpp"

/// `harvest bench lookup`: what a read costs the processor before any byte moves.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "Counts, for one thread and two, how often a second the processor can lease an object and release it,\n"
    "ask where one is, and find that one is not there; beside an std::unordered_map under a mutex that\n"
    "counts pins. The time is the processor's own, on simulated machines too: no GPU has a part in it.\n"
    "\n"
    "Example:\n"
    "  harvest bench lookup --system 2xh100-nvl\n"
    "  harvest bench lookup --objects 1000000 --json";

constexpr std::uint64_t kObjectBytes = 4096;
constexpr std::size_t kOrder = 1 << 14;
constexpr std::uint64_t kMostObjects = 1ULL << 24;

struct Options {
  CommonOptions common;
  std::vector<std::uint64_t> objects{1024, 65536};
};

/// A number that is not known to the compiler to be useless.
void keep(std::uint64_t value) {
  static std::atomic<std::uint64_t> sink{0};
  sink.store(value, std::memory_order_relaxed);
}

Key key_of(std::uint64_t i) {
  return {i * 0x9E3779B97F4A7C15ULL, i};
}

/// The keys that one thread asks for, again and again.
std::vector<Key> random_keys(std::uint64_t first, std::uint64_t count, std::uint64_t seed) {
  std::vector<Key> keys(kOrder);
  for (Key& key : keys) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    key = key_of(first + seed % count);
  }
  return keys;
}

/// What one would write first.
class LockedMap {
 public:
  explicit LockedMap(std::uint64_t objects) {
    for (std::uint64_t i = 0; i < objects; ++i) map_[key_of(i)].address = i + 1;
  }
  std::uint64_t pin(const Key& key) {
    const std::lock_guard lock(mutex_);
    const auto found = map_.find(key);
    if (found == map_.end()) return 0;
    ++found->second.pins;
    return found->second.address;
  }
  void unpin(const Key& key) {
    const std::lock_guard lock(mutex_);
    --map_.find(key)->second.pins;
  }
  std::uint64_t find(const Key& key) {
    const std::lock_guard lock(mutex_);
    const auto found = map_.find(key);
    return found == map_.end() ? 0 : found->second.address;
  }

 private:
  struct Entry {
    std::uint64_t address = 0;
    std::uint64_t pins = 0;
  };
  struct Hash {
    std::size_t operator()(const Key& key) const { return key.high ^ key.low; }
  };
  std::mutex mutex_;
  std::unordered_map<Key, Entry, Hash> map_;
};

struct Operation {
  std::string name;
  std::string of;  ///< "harvest", or the baseline
  bool misses = false;
  std::function<std::uint64_t(std::span<const Key>)> go_through;  ///< all keys once
};

struct Row {
  std::string operation;
  std::string of;
  std::uint64_t objects = 0;
  std::uint64_t threads = 0;
  Spread per_s;
};

/// How many operations a second `threads` threads do together.
double measure_once(const Operation& operation, std::uint64_t objects, std::uint64_t threads,
                    std::chrono::nanoseconds at_least) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> rates(threads);
  std::barrier together(static_cast<std::ptrdiff_t>(threads));
  const auto work = [&](std::uint64_t thread) {
    const auto keys = random_keys(operation.misses ? objects : 0, objects, 7 + thread);
    std::uint64_t answer = operation.go_through(keys);  // warms up
    together.arrive_and_wait();
    std::uint64_t rounds = 0;
    const auto begin = Clock::now();
    auto now = begin;
    for (; now - begin < at_least; now = Clock::now(), ++rounds) answer += operation.go_through(keys);
    keep(answer);
    rates[thread] =
        static_cast<double>(rounds * keys.size()) / std::chrono::duration<double>(now - begin).count();
  };
  std::vector<std::thread> running;
  for (std::uint64_t thread = 1; thread < threads; ++thread) running.emplace_back(work, thread);
  work(0);
  for (std::thread& thread : running) thread.join();
  double sum = 0;
  for (const double rate : rates) sum += rate;
  return sum;
}

std::vector<Operation> operations_of(PeerCache& cache, StreamId stream, LockedMap& map) {
  const auto acquire = [&cache, stream](std::span<const Key> keys) {
    std::uint64_t sum = 0;
    for (const Key& key : keys) {
      const Lease lease = cache.acquire(key, stream);
      sum += lease ? 1 : 0;
    }
    return sum;
  };
  const auto locate = [&cache](std::span<const Key> keys) {
    std::uint64_t sum = 0;
    for (const Key& key : keys) sum += static_cast<std::uint64_t>(cache.locate(key));
    return sum;
  };
  const auto pin = [&map](std::span<const Key> keys) {
    std::uint64_t sum = 0;
    for (const Key& key : keys) {
      sum += map.pin(key);
      map.unpin(key);
    }
    return sum;
  };
  const auto find = [&map](std::span<const Key> keys) {
    std::uint64_t sum = 0;
    for (const Key& key : keys) sum += map.find(key);
    return sum;
  };
  return {{"acquire_release", "harvest", false, acquire},
          {"acquire_release", "locked_map", false, pin},
          {"locate", "harvest", false, locate},
          {"locate", "locked_map", false, find},
          {"miss", "harvest", true, acquire},
          {"miss", "locked_map", true, find}};
}

Result<std::unique_ptr<PeerCache>> filled_cache(Backend& backend, const Segment& host,
                                                std::uint64_t objects) {
  PeerCacheConfig config;
  config.verify_paths = false;
  config.host_budget_bytes = 0;
  config.peer_budget_bytes = 0;
  config.max_objects = static_cast<std::uint32_t>(objects) + 16;
  auto cache = PeerCache::create(backend, config);
  if (!cache) return cache;
  PutOptions options;
  options.backing = Backing::external_host;
  for (std::uint64_t i = 0; i < objects; ++i)
    if (const auto put = (*cache)->put(key_of(i), host.data(), kObjectBytes, options); !put)
      return tl::unexpected(put.error());
  return cache;
}

Result<std::vector<Row>> measure(Backend& backend, const Options& options) {
  const std::chrono::milliseconds at_least(options.common.quick ? 5 : 200);
  constexpr std::array<std::uint64_t, 2> kThreads{1, 2};
  constexpr std::uint64_t kOperations = 6;
  const auto host = Segment::map(backend, kHost, kObjectBytes);
  if (!host) return tl::unexpected(host.error());
  const auto stream = Stream::create(backend, 0);
  if (!stream) return tl::unexpected(stream.error());
  std::vector<Row> rows;
  Progress progress("looking up", options.objects.size() * kThreads.size() * kOperations);
  for (const std::uint64_t objects : options.objects) {
    const auto cache = filled_cache(backend, *host, objects);
    if (!cache) return tl::unexpected(cache.error());
    LockedMap map(objects);
    for (const Operation& operation : operations_of(**cache, stream->id(), map)) {
      for (const std::uint64_t threads : kThreads) {
        std::vector<double> rates;
        for (std::uint64_t i = 0; i < options.common.runs; ++i) {
          rates.push_back(measure_once(operation, objects, threads, at_least));
          (*cache)->poll();  // takes in what the reads left to be noted
        }
        rows.push_back({operation.name, operation.of, objects, threads, spread_of(std::move(rates))});
        progress.at(rows.size());
      }
    }
  }
  return rows;
}

/// A thread's time for one.
double ns_each(const Row& row) {
  return static_cast<double>(row.threads) * 1e9 / row.per_s.median;
}

Json to_json(const MeasuredMachine& machine, const Options& options, const std::vector<Row>& rows) {
  Json json = machine.header("lookup");
  json["clock"] = "host";  // the processor's work is real, whatever the machine is
  json["runs"] = options.common.runs;
  json["rows"] = Json::array();
  for (const Row& row : rows) {
    Json line{
        {"operation", row.operation}, {"of", row.of}, {"objects", row.objects}, {"threads", row.threads}};
    add_spread(line, "per_s", row.per_s);
    line["ns_each"] = ns_each(row);
    json["rows"].push_back(std::move(line));
  }
  return json;
}

void print_table(const MeasuredMachine& machine, const std::vector<Row>& rows) {
  Table table({"operation", "of", "objects", "threads", "a second", "least", "most", "each"});
  for (const Row& row : rows)
    table.add({row.operation, row.of, format_count(row.objects), format_count(row.threads),
               fmt::format("{:.2f} M", row.per_s.median / 1e6),
               fmt::format("{:.2f} M", row.per_s.least / 1e6), fmt::format("{:.2f} M", row.per_s.most / 1e6),
               format_ns(ns_each(row))});
  fmt::print("{}; the processor's own time\n\n{}", machine.title("Look-ups in a cache"), table.text());
}

Exit run(const Options& options) {
  const auto machine = MeasuredMachine::open(options.common.machine);
  if (!machine) return complain_of("lookup", machine.error());
  const auto rows = measure(machine->backend(), options);
  if (!rows) return complain_of("lookup", rows.error());
  if (options.common.json)
    print_json(to_json(*machine, options, *rows));
  else
    print_table(*machine, *rows);
  return Exit::ok;
}

}  // namespace

void add_lookup(CLI::App& bench, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand("lookup", "Leases, look-ups and misses a second");
  command->footer(kTeaching);
  add_counts(*command, "--objects", options->objects, {1, kMostObjects}, "How many objects the cache holds");
  add_common(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli::bench
