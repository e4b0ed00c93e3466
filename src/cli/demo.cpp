// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/command.hpp"
#include "cli/demo_world.hpp"
#include "cli/output.hpp"

/// `harvest demo`: the main job in one act, with every byte compared.
namespace harvest::cli {
namespace {

constexpr const char* kTeaching =
    "A GPU needs more experts than it keeps. A neighbour lends idle memory, takes it back in the middle of\n"
    "a read, and lends it again; the experts come from the neighbour or from host memory, and never wrong.\n"
    "Bytes are real on every machine, and all are compared. Without an option it runs on this machine's\n"
    "GPUs; with one GPU in loopback, where a second pool of its own memory is the peer; without any on a\n"
    "simulated pair, whose times are those of measured links, in virtual time.\n"
    "\n"
    "Example:\n"
    "  harvest demo\n"
    "  harvest demo --system dgx-h100\n"
    "\n"
    "It answers 1 if any byte is wrong.";

struct Options {
  bench::MachineChoice machine;
  bool json = false;
};

struct Step {
  std::string name;
  ReadFigures figures;
};

struct Story {
  std::vector<Step> steps;
  ReclaimReport reclaim;
  std::uint64_t owner_bytes = 0;  ///< what the owner allocated
  std::uint64_t changed_pool_bytes = 0;

  [[nodiscard]] std::uint64_t wrong_bytes() const {
    std::uint64_t wrong = changed_pool_bytes;
    for (const Step& step : steps) wrong += step.figures.wrong_bytes;
    return wrong;
  }
};

/// Tells the story as it happens, or is silent.
class Narrator {
 public:
  explicit Narrator(bool speaks) : speaks_(speaks) {}
  void say(const std::string& text) const {
    if (!speaks_) return;
    fmt::print("{}\n", text);
    std::fflush(stdout);
  }

 private:
  bool speaks_;
};

using Experts = std::vector<std::uint64_t>;

Experts some_of(const Experts& experts, std::size_t count) {
  return {experts.begin(), experts.begin() + static_cast<std::ptrdiff_t>(std::min(count, experts.size()))};
}

/// The acts of the story; each answers what went wrong with the machinery, if anything.
class Play {
 public:
  Play(DemoWorld& world, const Narrator& narrator) : world_(world), narrator_(narrator) {}

  [[nodiscard]] Result<Story> run() {
    for (const auto act :
         {&Play::begin, &Play::read_each_tier, &Play::reclaim, &Play::fall_back, &Play::return_}) {
      if (Status done = (this->*act)(); !done) return tl::unexpected(done.error());
    }
    story_.changed_pool_bytes = world_.changed_pool_bytes();
    return std::move(story_);
  }

 private:
  Status read(const char* name, const Experts& experts) {
    const auto figures = world_.read(experts);
    if (!figures) return tl::unexpected(figures.error());
    story_.steps.push_back({name, *figures});
    return {};
  }

  Status begin() {
    narrator_.say(fmt::format(
        "1. GPU 0 needs {} experts of {}, {} in all. It has room for {} of them; host memory has all.\n"
        "   GPU {} lends {} of its memory. Harvest may use up to {} of that.",
        DemoWorld::kExperts, format_bytes(DemoWorld::kExpertBytes),
        format_bytes(DemoWorld::kExperts * DemoWorld::kExpertBytes),
        DemoWorld::kLocalBytes / DemoWorld::kExpertBytes, world_.peer(), format_bytes(DemoWorld::kLentBytes),
        format_bytes(DemoWorld::kPeerBytes)));
    if (Status stored = world_.store_experts(); !stored) return stored;
    Experts all(DemoWorld::kExperts);
    for (std::uint64_t i = 0; i < all.size(); ++i) all[i] = i;
    return read("all experts, before anything climbs", all);
  }

  Status read_each_tier() {
    if (Status settled = world_.pass(10'000'000); !settled) return settled;
    const Experts local = world_.experts_in(Tier::local);
    on_peer_ = world_.experts_in(Tier::peer);
    const Experts on_host = world_.experts_in(Tier::host);
    narrator_.say(fmt::format(
        "2. Experts climb: {} are local now, {} on GPU {}, {} in host memory alone. A large batch uses\n"
        "   the link to the peer and the one to the host at once, where that is faster.",
        local.size(), on_peer_.size(), world_.peer(), on_host.size()));
    if (Status done = read("local experts, leased in place", local); !done) return done;
    if (Status done = read("experts on the peer", on_peer_); !done) return done;
    if (Status done = read("experts on host alone", on_host); !done) return done;
    Experts both = on_peer_;
    const Experts few = some_of(on_host, std::max<std::size_t>(1, on_peer_.size() / 6));
    both.insert(both.end(), few.begin(), few.end());
    return read("both in one batch", both);
  }

  Status reclaim() {
    const DeviceId peer = world_.peer();
    const std::uint64_t ours = world_.held_bytes();
    story_.owner_bytes = world_.owner_wants_bytes();
    narrator_.say(fmt::format(
        "3. The owner of GPU {} wants {}; {} of them are ours, and {} experts are being read from there.",
        peer, format_bytes(story_.owner_bytes), format_bytes(ours), on_peer_.size()));
    const auto figures = world_.read_while(on_peer_, [&]() -> Status {
      constexpr TimeNs kPatienceNs = 1'000'000'000;
      const auto report = world_.cache().reclaim(peer, ours, world_.backend().now_ns() + kPatienceNs);
      if (!report) return tl::unexpected(report.error());
      story_.reclaim = *report;
      return world_.owner_takes();
    });
    if (!figures) return tl::unexpected(figures.error());
    story_.steps.push_back({"the same, the owner reclaims meanwhile", *figures});
    const ReclaimReport& report = story_.reclaim;
    narrator_.say(fmt::format(
        "   The reclaim: {} asked for, {} returned in {}, {} late, {} lost. The owner has its memory.",
        format_bytes(report.requested_bytes), format_bytes(report.returned_bytes),
        format_ns(static_cast<double>(report.duration_ns)), format_bytes(report.late_bytes),
        format_bytes(report.lost_bytes)));
    return {};
  }

  Status fall_back() {
    narrator_.say("4. The same experts again. They are as right as before, and as slow as without Harvest.");
    return read("the same, the owner has it all", on_peer_);
  }

  Status return_() {
    const auto freed = world_.owner_leaves();
    if (!freed) return tl::unexpected(freed.error());
    constexpr TimeNs kWaitNs = 2'000'000'000;
    narrator_.say(fmt::format(
        "5. The owner's job ends and frees {}. {} later the experts are read again, and climb again.",
        format_bytes(*freed), format_ns(static_cast<double>(kWaitNs))));
    if (Status passed = world_.pass(kWaitNs); !passed) return passed;
    if (Status done = read("the same, the peer is free again", on_peer_); !done) return done;
    if (Status passed = world_.pass(50'000'000); !passed) return passed;
    return read("the same, once more", on_peer_);
  }

  DemoWorld& world_;
  const Narrator& narrator_;
  Story story_;
  Experts on_peer_;
};

double bandwidth_of(const ReadFigures& figures) {
  if (figures.duration_ns <= 0) return 0;
  const std::uint64_t in_place =
      figures.served[static_cast<std::size_t>(Tier::local)] * DemoWorld::kExpertBytes;
  return static_cast<double>(figures.bytes - in_place) * 1e9 / static_cast<double>(figures.duration_ns);
}

Json to_json(const DemoWorld& world, const Story& story) {
  const BackendInfo& info = world.machine().backend().info();
  Json json{{"simulated", info.simulated},
            {"loopback", info.loopback},
            {"backend", info.name},
            {"system", info.system},
            {"peer", world.peer()},
            {"experts", DemoWorld::kExperts},
            {"expert_bytes", DemoWorld::kExpertBytes}};
  json["steps"] = Json::array();
  for (const Step& step : story.steps) {
    const auto served = [&](Tier tier) { return step.figures.served[static_cast<std::size_t>(tier)]; };
    json["steps"].push_back(
        {{"name", step.name},
         {"served",
          {{"local", served(Tier::local)}, {"peer", served(Tier::peer)}, {"host", served(Tier::host)}}},
         {"bytes", step.figures.bytes},
         {"duration_ns", step.figures.duration_ns},
         {"bandwidth_bytes_per_s", bandwidth_of(step.figures)},
         {"wrong_bytes", step.figures.wrong_bytes}});
  }
  const ReclaimReport& reclaim = story.reclaim;
  json["reclaim"] = {{"device", reclaim.device},
                     {"requested_bytes", reclaim.requested_bytes},
                     {"returned_bytes", reclaim.returned_bytes},
                     {"late_bytes", reclaim.late_bytes},
                     {"lost_bytes", reclaim.lost_bytes},
                     {"duration_ns", reclaim.duration_ns},
                     {"owner_bytes", story.owner_bytes}};
  json["wrong_bytes"] = story.wrong_bytes();
  return json;
}

/// What these times are worth.
const char* caveat(const BackendInfo& info) {
  if (info.loopback)
    return "One GPU in LOOPBACK: its peer is a second pool of its own memory, so no rate here is NVLink's.";
  if (info.simulated) return "This machine is simulated: bytes are real, times come from measured links.";
  return "Times are this machine's own, copies and the program that waits for them.";
}

void print_summary(const DemoWorld& world, const Story& story) {
  const BackendInfo& info = world.machine().backend().info();
  Table table({"read", "local", "peer", "host", "bytes", "time", "rate", "wrong"});
  std::uint64_t bytes = 0;
  for (const Step& step : story.steps) {
    const ReadFigures& figures = step.figures;
    const auto served = [&](Tier tier) {
      return fmt::format("{}", figures.served[static_cast<std::size_t>(tier)]);
    };
    bytes += figures.bytes;
    const bool moved =
        figures.served[static_cast<std::size_t>(Tier::local)] * DemoWorld::kExpertBytes < figures.bytes;
    table.add({step.name, served(Tier::local), served(Tier::peer), served(Tier::host),
               format_bytes(figures.bytes), moved ? format_ns(static_cast<double>(figures.duration_ns)) : "-",
               moved ? format_bandwidth(bandwidth_of(figures)) : "in place",
               format_count(figures.wrong_bytes)});
  }
  fmt::print("\nWhat happened on {}: experts by the tier that served them\n\n{}\n", world.machine().name(),
             table.text());
  if (story.wrong_bytes() == 0)
    fmt::print("All {} were compared: no byte was wrong.\n\n", format_bytes(bytes));
  else
    fmt::print("WRONG: {} of {} bytes.\n\n", format_count(story.wrong_bytes()), format_count(bytes));
  const std::string choice = info.simulated ? " --system " + info.system : "";
  fmt::print(
      "{}\n"
      "\n"
      "Next:\n"
      "  {:<36}the links behind these rates\n"
      "  {:<36}the same on another machine\n"
      "  {:<36}hours of real KV-cache traffic in seconds\n"
      "  {:<36}the same in 40 lines of your own code\n",
      caveat(info), "harvest topo" + choice,
      info.system == "dgx-h100" ? "harvest demo --system 2xh100-nvl" : "harvest demo --system dgx-h100",
      "harvest replay --help", "examples/quickstart.cpp");
}

Exit run(const Options& options) {
  auto world = DemoWorld::create(options.machine);
  if (!world) return complain(Exit::bad_input, "demo", world.error().message);
  const Narrator narrator(!options.json);
  narrator.say(fmt::format("Harvest on {}: GPU 0 reads, GPU {} lends idle memory.\n",
                           (*world)->machine().name(), (*world)->peer()));
  auto story = Play(**world, narrator).run();
  if (!story) return complain(Exit::failed, "demo", story.error().message);
  if (options.json)
    print_json(to_json(**world, *story));
  else
    print_summary(**world, *story);
  return story->wrong_bytes() == 0 ? Exit::ok : Exit::failed;
}

}  // namespace

void add_demo(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("demo", "See Harvest do its job, in a few seconds");
  command->footer(kTeaching);
  bench::add_machine(*command, options->machine, "Use");
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli
