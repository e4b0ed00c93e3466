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

TEST(MachineFile, IsRead) {
  const auto path = std::filesystem::temp_directory_path() / "harvest_machine_test.json";
  std::ofstream(path) << to_json(machine_from_preset("4x4090-pcie").value());
  EXPECT_EQ(load_machine(path.string()).value().name, "4x4090-pcie");
  std::filesystem::remove(path);
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

}  // namespace
}  // namespace harvest::test
