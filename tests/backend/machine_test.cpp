// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <harvest/machine.hpp>
#include <harvest/simulated_backend.hpp>
#include <iterator>
#include <map>

#include "backend/simulation.hpp"

namespace harvest::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

/// The figures that the presets stand for, stated once more: GB/s of a pair of GPUs and from the host.
struct Figures {
  std::string_view name;
  std::size_t gpus;
  std::uint64_t gpu_gib;
  double peer, from_host, to_host;
};
constexpr Figures kFigures[] = {
    {"2xh100-nvl", 2, 94, 260, 55, 55},     {"dgx-a100", 8, 80, 276, 26, 26},
    {"dgx-h100", 8, 80, 376, 55, 55},       {"hgx-h200", 8, 141, 396, 55.4, 55.1},
    {"gb200-nvl72", 4, 186, 746, 346, 294}, {"4x4090-pcie", 4, 24, 20.7, 23.95, 26.6},
};

/// One copy alone, from its submission to its end.
TimeNs time_copy(SimulatedBackend& backend, const LinkInfo& link, std::span<const std::uint64_t> sizes) {
  std::uint64_t total = 0;
  for (const std::uint64_t bytes : sizes) total += bytes;
  const std::uint64_t room = (total + 2 * kMiB - 1) / (2 * kMiB) * 2 * kMiB;
  std::byte* from = backend.map_segment(link.from, room, {}).value();
  std::byte* to = backend.map_segment(link.to, room, {}).value();
  const StreamId stream = backend.create_stream(0).value();
  std::vector<Copy> batch;
  std::uint64_t at = room;  // from the end, so that none follows the one before it and they are not merged
  for (const std::uint64_t bytes : sizes) {
    at -= bytes;
    batch.push_back({to + at, from + at, bytes});
  }
  const TimeNs start = backend.now_ns();
  EXPECT_TRUE(backend.copy(stream, {link.from, link.to}, batch));
  finish(backend, stream);
  const TimeNs took = backend.now_ns() - start;
  EXPECT_TRUE(backend.unmap_segment(from));
  EXPECT_TRUE(backend.unmap_segment(to));
  EXPECT_TRUE(backend.destroy_stream(stream));
  return took;
}

class Presets : public testing::TestWithParam<Figures> {};

TEST_P(Presets, HaveTheFiguresTheyStandFor) {
  const Machine machine = machine_from_preset(GetParam().name).value();
  EXPECT_TRUE(machine.validate());
  ASSERT_EQ(machine.devices.size(), GetParam().gpus + 1);
  for (std::size_t i = 0; i < GetParam().gpus; ++i)
    EXPECT_EQ(machine.devices[i].info.total_bytes, GetParam().gpu_gib * kGiB);
  EXPECT_EQ(machine.links.size(), (GetParam().gpus + 1) * (GetParam().gpus + 1)) << "each pair, both ways";
  for (const MachineLink& link : machine.links) {
    EXPECT_THAT(link.info.source,
                testing::AnyOf(testing::StartsWith("measured"), testing::StartsWith("estimate")));
    if (link.info.from == link.info.to) continue;
    const double wanted = link.info.from == kHost ? GetParam().from_host
                          : link.info.to == kHost ? GetParam().to_host
                                                  : GetParam().peer;
    EXPECT_DOUBLE_EQ(link.info.bandwidth_bytes_per_s, wanted * 1e9)
        << link.info.from << " to " << link.info.to;
  }
}

TEST_P(Presets, LargeCopiesReachTheBandwidthOfEachLink) {
  const auto backend = phantom(GetParam().name);
  const std::uint64_t size = kGiB;
  for (const LinkInfo& link : backend->links()) {
    const double reached =
        static_cast<double>(size) / (static_cast<double>(time_copy(*backend, link, {&size, 1})) * 1e-9);
    EXPECT_NEAR(reached / link.bandwidth_bytes_per_s, 1, 0.02) << link.from << " to " << link.to;
  }
}

TEST_P(Presets, SmallCopiesAndBatchesTakeWhatTheModelSays) {
  const auto backend = phantom(GetParam().name);
  for (const LinkInfo& link : backend->links()) {
    for (const std::uint64_t size :
         {std::uint64_t{1}, std::uint64_t{16'384}, std::uint64_t{262'144}, 2 * kMiB}) {
      for (const std::size_t count : {std::size_t{1}, std::size_t{20}}) {
        const std::vector<std::uint64_t> sizes(count, size);
        const double n = static_cast<double>(count);
        const double wanted = static_cast<double>(link.issue_ns + link.latency_ns) +
                              (n - 1) * static_cast<double>(link.issue_batched_ns) +
                              n * static_cast<double>(size) / link.bandwidth_bytes_per_s * 1e9;
        EXPECT_NEAR(static_cast<double>(time_copy(*backend, link, sizes)) / wanted, 1, 0.01)
            << count << " x " << size << " from " << link.from << " to " << link.to;
      }
    }
  }
}

TEST_P(Presets, SurviveJson) {
  const Machine machine = machine_from_preset(GetParam().name).value();
  const std::string text = to_json(machine);
  const Result<Machine> back = machine_from_json(text);
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ(to_json(*back), text);
  EXPECT_EQ(back->costs, machine.costs);
  EXPECT_EQ(back->links.back().ports, machine.links.back().ports);
  EXPECT_EQ(back->devices[0].info.copy_engines, machine.devices[0].info.copy_engines);
}

INSTANTIATE_TEST_SUITE_P(All, Presets, testing::ValuesIn(kFigures), [](const auto& entry) {
  std::string name(entry.param.name);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(MachineNames, UnknownOnesAreAnsweredWithTheKnown) {
  const Result<Machine> machine = machine_from_preset("dgx-2000");
  ASSERT_FALSE(machine);
  EXPECT_EQ(machine.error().code, ErrorCode::not_found);
  EXPECT_THAT(machine.error().message, HasSubstr("dgx-2000"));
  for (const std::string_view name : machine_preset_names())
    EXPECT_THAT(machine.error().message, HasSubstr(std::string(name)));
  EXPECT_EQ(load_machine("/no/such/file.json").error().code, ErrorCode::not_found);
}

TEST(MachineFile, IsReadAndItsErrorsNameIt) {
  const auto path = std::filesystem::temp_directory_path() / "harvest_machine_test.json";
  std::ofstream(path) << to_json(machine_from_preset("4x4090-pcie").value());
  EXPECT_EQ(load_machine(path.string()).value().name, "4x4090-pcie");
  std::ofstream(path) << "{ \"name\": ";
  const Result<Machine> broken = load_machine(path.string());
  std::filesystem::remove(path);
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().code, ErrorCode::malformed);
  EXPECT_THAT(broken.error().message, AllOf(HasSubstr(path.string()), HasSubstr("line 1")));
}

TEST(MachineFile, WithoutAnEndIsRefused) {
  const Result<Machine> machine = load_machine("/dev/zero");
  ASSERT_FALSE(machine);
  EXPECT_EQ(machine.error().code, ErrorCode::malformed);
  EXPECT_THAT(machine.error().message, AllOf(HasSubstr("/dev/zero"), HasSubstr("16777216")));
}

/// The file that docs/simulation.md shows is one.
TEST(MachineFile, OfTheDocumentationIsRead) {
  std::ifstream page(std::filesystem::path(HARVEST_SOURCE_DIR) / "docs" / "simulation.md");
  const std::string text{std::istreambuf_iterator<char>(page), {}};
  const std::string fence = "```json\n";
  const std::size_t begin = text.find(fence);
  ASSERT_NE(begin, std::string::npos);
  const std::size_t end = text.find("```", begin + fence.size());
  ASSERT_NE(end, std::string::npos);
  const auto machine = machine_from_json(text.substr(begin + fence.size(), end - begin - fence.size()));
  ASSERT_TRUE(machine) << machine.error().message;
  EXPECT_EQ(machine->name, "two-gpus");
  EXPECT_EQ(machine->find_link(0, 1)->ports, (std::vector<std::uint32_t>{1, 2}));
}

/// A good machine with one thing changed, and what the error must name.
struct BadMachine {
  const char* what;
  std::string from, to;
  std::vector<std::string> named;
};

TEST(MachineJson, EachErrorNamesFieldValueAndLimit) {
  const std::string good = to_json(machine_from_preset("2xh100-nvl").value());
  const std::vector<BadMachine> cases = {
      {"not JSON", "{", "}{", {"JSON"}},
      {"a list", good, "[1, 2]", {"document", "[1,2]", "object"}},
      {"missing field", "\"costs\":", "\"kosts\":", {"unknown field kosts", "costs"}},
      {"missing device field", "\"copy_engines\": 4,", "", {"devices[0].copy_engines", "missing"}},
      {"text for a number",
       "\"copy_engines\": 4",
       "\"copy_engines\": \"4\"",
       {"devices[0].copy_engines", "\"4\"", "integer"}},
      {"fraction",
       "\"copy_engines\": 4",
       "\"copy_engines\": 4.5",
       {"devices[0].copy_engines", "4.5", "integer"}},
      {"negative", "\"copy_engines\": 4", "\"copy_engines\": -4", {"devices[0].copy_engines", "-4", "0"}},
      {"no engines", "\"copy_engines\": 4", "\"copy_engines\": 0", {"devices[0].copy_engines", "0", "1"}},
      {"id out of order", "\"id\": 1", "\"id\": 7", {"devices[1].id", "7", "1"}},
      {"no memory", "\"total_bytes\": 100931731456", "\"total_bytes\": 0", {"devices[0].total_bytes", "0"}},
      {"too many tenants",
       "\"tenant_bytes\": 0",
       "\"tenant_bytes\": 200000000000",
       {"devices[0].tenant_bytes", "200000000000", "100931731456"}},
      {"odd granularity",
       "\"segment_granularity_bytes\": 2097152",
       "\"segment_granularity_bytes\": 3000000",
       {"devices[0].segment_granularity_bytes", "3000000", "power of two"}},
      {"unknown kind", "\"kind\": \"nvlink\"", "\"kind\": \"string\"", {"kind", "string", "nvswitch"}},
      {"unknown end", "\"to\": 1", "\"to\": 9", {".to", "9", "1"}},
      {"no bandwidth",
       "\"bandwidth_bytes_per_s\": 260000000000.0",
       "\"bandwidth_bytes_per_s\": -1",
       {"bandwidth_bytes_per_s", "-1", "1e+06", "1e+15"}},
      {"a link that takes longer than the clock runs",
       "\"bandwidth_bytes_per_s\": 260000000000.0",
       "\"bandwidth_bytes_per_s\": 1e-300",
       {"bandwidth_bytes_per_s", "1e-300", "1e+06"}},
      {"a number beyond a double", "\"copy_engines\": 4", "\"copy_engines\": 1e999", {"1e999"}},
      {"negative cost", "\"map_ns\": 195000", "\"map_ns\": -5", {"costs.map_ns", "-5", "0"}},
      {"huge cost",
       "\"unmap_ns\": 26000",
       "\"unmap_ns\": 99999999999999",
       {"costs.unmap_ns", "99999999999999", "3600000000000"}},
      {"unknown port", "\"ports\": [\n        1\n      ]", "\"ports\": [99]", {"ports", "99"}},
      {"port twice", "\"ports\": [\n        1\n      ]", "\"ports\": [1, 1]", {"ports", "twice"}},
  };
  for (const BadMachine& bad : cases) {
    std::string text = good;
    const std::size_t at = text.find(bad.from);
    ASSERT_NE(at, std::string::npos) << bad.what;
    text.replace(at, bad.from.size(), bad.to);
    const Result<Machine> machine = machine_from_json(text);
    ASSERT_FALSE(machine) << bad.what;
    EXPECT_EQ(machine.error().code, ErrorCode::malformed) << bad.what;
    for (const std::string& name : bad.named)
      EXPECT_THAT(machine.error().message, HasSubstr(name)) << bad.what;
  }
}

/// Whatever is in the text, the message is a sentence about it.
TEST(MachineJson, ErrorsStayShort) {
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  const std::string letters(1'000'000, 'x');
  std::string accents;
  for (int i = 0; i < 1000; ++i) accents += "\xc3\xa9";
  const std::pair<std::string, std::string> cases[] = {
      {"{\"name\": " + deep + "}", "name is a JSON array, it must be a string"},
      {"{\"devices\": {\"a\": " + deep + "}, \"name\": \"\"}",
       "devices is a JSON object, it must be an array"},
      {"{\"" + letters + "\": 1}", "unknown field xxx"},
      {"{\"name\": \"" + letters, "not JSON"},
      {"{\"devices\": \"" + accents + "\", \"name\": \"\"}", "\xc3\xa9..., it must be an array"},
  };
  for (const auto& [text, what] : cases) {
    const Result<Machine> machine = machine_from_json(text);
    ASSERT_FALSE(machine) << what;
    EXPECT_EQ(machine.error().code, ErrorCode::malformed) << what;
    EXPECT_THAT(machine.error().message, HasSubstr(what));
    EXPECT_LT(machine.error().message.size(), 500U) << what;
  }
}

/// Time that grew with the square of the number of fields would be minutes here.
TEST(MachineJson, MayHaveManyUnknownFields) {
  std::string text = R"({"name": {)";
  for (int i = 0; i < 300'000; ++i) text += fmt::format(R"("{}": 0, )", i);
  const Result<Machine> machine = machine_from_json(text + R"("last": 0}})");
  ASSERT_FALSE(machine);
  EXPECT_THAT(machine.error().message, HasSubstr("name is {"));
}

TEST(MachineJson, LinksMustBeOneForARouteAndOneWithinEachDevice) {
  Machine machine = machine_from_preset("2xh100-nvl").value();
  machine.links.push_back(machine.links.front());
  EXPECT_THAT(machine.validate().error().message, HasSubstr("from 0 to 0"));
  machine = machine_from_preset("2xh100-nvl").value();
  std::erase_if(machine.links,
                [](const MachineLink& link) { return link.info.from == 1 && link.info.to == 1; });
  EXPECT_THAT(machine.validate().error().message, HasSubstr("device 1 to itself"));
}

}  // namespace
}  // namespace harvest::test
