// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/cuda.hpp>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "cli/program.hpp"

/// `harvest bench` and `harvest topo` as on a machine with GPUs: the program as it is, on the fake CUDA. Its
/// figures mean nothing; what is checked is what happens.
namespace harvest::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class BenchOnCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    set("LD_LIBRARY_PATH", HARVEST_FAKE_CUDA_DIR);
    set("HARVEST_FAKE_CUDA_DEVICES", "2");
    set("HARVEST_FAKE_CUDA_BYTES", "1073741824");
    set("HARVEST_FAKE_CUDA_DELAY_US", "0");
    set("HARVEST_FAKE_CUDA_SHARED", folder_.file("shared", ""));
    set("XDG_CACHE_HOME", folder_.file("cache", "") + ".d");
  }
  void TearDown() override {
    for (const std::string& name : set_) ::unsetenv(name.c_str());
  }
  void set(const std::string& name, const std::string& value) {
    ASSERT_EQ(::setenv(name.c_str(), value.c_str(), 1), 0);
    set_.insert(name);
  }
  /// As `run_for_json`; the fake may have something to say on stderr.
  static json run(std::vector<std::string> arguments) {
    arguments.emplace_back("--json");
    const Ran ran = run_harvest(arguments);
    EXPECT_EQ(ran.exit_code, 0) << ran.err;
    return json::parse(ran.out, nullptr, false);
  }

  TemporaryFolder folder_;
  std::set<std::string> set_;
};

TEST_F(BenchOnCuda, TopoShowsTheGpusThatAreThere) {
  const json topo = run({"topo"});
  EXPECT_EQ(topo.at("backend"), "cuda");
  EXPECT_EQ(topo.at("simulated"), false);
  ASSERT_EQ(topo.at("devices").size(), 3U);
  for (const json& link : topo.at("links"))
    EXPECT_TRUE(link.at("from") == link.at("to") || link.at("verified") == true) << link;
}

TEST_F(BenchOnCuda, TheDemoRunsOnTheGpusThatAreThere) {
  set("HARVEST_FAKE_CUDA_BYTES", "3221225472");
  for (const bool alone : {false, true}) {
    set("HARVEST_FAKE_CUDA_DEVICES", alone ? "1" : "2");
    set("HARVEST_FAKE_CUDA_SHARED", folder_.file(alone ? "shared_1" : "shared_2", ""));
    const json demo = run({"demo"});
    EXPECT_EQ(demo.at("simulated"), false);
    EXPECT_EQ(demo.at("loopback"), alone);
    EXPECT_EQ(demo.at("wrong_bytes"), 0);
    EXPECT_GT(demo.at("reclaim").at("requested_bytes"), 0);
    EXPECT_EQ(demo["reclaim"].at("returned_bytes"), demo["reclaim"].at("requested_bytes"));
    EXPECT_GT(demo.at("steps").at(2).at("served").at("peer"), 0);
    EXPECT_EQ(demo.at("steps").at(6).at("served").at("host"),
              demo["steps"].at(5).at("served").at("peer").get<int>() +
                  demo["steps"].at(5).at("served").at("host").get<int>())
        << "the owner has it all";
  }
  const Ran text = run_harvest({"demo", "--loopback"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("LOOPBACK"));
}

TEST_F(BenchOnCuda, ADemoNeedsSomeFreeMemory) {
  set("HARVEST_FAKE_CUDA_BYTES", "268435456");
  const Ran ran = run_harvest({"demo"});
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_THAT(ran.err, HasSubstr("256.0 MiB free, and 1.0 GiB are needed"));
}

TEST_F(BenchOnCuda, LinkMeasuresByCopyEngineAndByKernel) {
  const json link = run({"bench", "link", "--sizes", "64KiB", "--runs", "1"});
  EXPECT_EQ(link.at("simulated"), false);
  EXPECT_EQ(link.at("backend"), "cuda");
  EXPECT_EQ(link.at("clock"), "host");
  EXPECT_NE(link.at("driver"), "");
  EXPECT_EQ(link.at("wrong_bytes"), 0);
  std::multiset<std::string> methods;
  for (const json& row : link.at("rows")) {
    methods.insert(row.at("method"));
    EXPECT_EQ(row.at("checked"), true);
    EXPECT_GE(row.at("copies_per_run"), 1);
  }
  EXPECT_EQ(methods.count("copy_engine"), 6U);
  bool waived = false;  // where the build has no copy kernel
  for (const json& missing : link.at("waived")) waived = waived || missing.at("method") == "kernel";
  EXPECT_EQ(methods.count("kernel"), waived ? 0U : 6U);
}

TEST_F(BenchOnCuda, FetchReadsFromThePeerAndInLoopback) {
  for (const bool loopback : {false, true}) {
    set("HARVEST_FAKE_CUDA_DEVICES", loopback ? "1" : "2");
    std::vector<std::string> words{"bench", "fetch", "--quick", "--runs", "1", "--sizes", "64KiB"};
    if (loopback) words.emplace_back("--loopback");
    const json fetch = run(words);
    EXPECT_EQ(fetch.at("loopback"), loopback);
    EXPECT_EQ(fetch.at("wrong_bytes"), 0);
    EXPECT_EQ(fetch.at("rows").size(), 4U) << "two tiers, two layouts";
  }
}

TEST_F(BenchOnCuda, AnotherProcessGetsWhatIsReturned) {
  for (const bool loopback : {false, true}) {
    set("HARVEST_FAKE_CUDA_DEVICES", loopback ? "1" : "2");
    std::vector<std::string> words{"bench", "reclaim", "--quick", "--runs", "2", "--sizes", "64MiB"};
    if (loopback) words.emplace_back("--loopback");
    const json reclaim = run(words);
    EXPECT_EQ(reclaim.at("owner"), "another process");
    EXPECT_EQ(reclaim.at("owner_skipped"), "");
    ASSERT_EQ(reclaim.at("rows").size(), 2U);
    for (const json& row : reclaim["rows"]) {
      EXPECT_GE(row.at("returned_bytes"), 64ULL << 20);
      EXPECT_EQ(row.at("late"), 0);
      EXPECT_EQ(row.at("owner_got"), 2) << row;
    }
  }
}

TEST_F(BenchOnCuda, AnOwnerThatDoesNotSeeTheMemoryGetsNothing) {
  // Without the shared count each process has devices of its own: what is returned here is not free there.
  ::unsetenv("HARVEST_FAKE_CUDA_SHARED");
  const Ran ran = run_harvest({"bench", "reclaim", "--quick", "--runs", "1", "--sizes", "64MiB", "--json"});
  EXPECT_EQ(ran.exit_code, 1);
  const json reclaim = json::parse(ran.out, nullptr, false);
  for (const json& row : reclaim.at("rows")) EXPECT_EQ(row.at("owner_got"), 0);
}

TEST_F(BenchOnCuda, CalibrateWritesWhatTheBackendReads) {
  const std::string file = folder_.file("calibration", "") + ".json";
  const json calibrate = run({"bench", "calibrate", "--quick", "--runs", "1", "--file", file});
  EXPECT_EQ(calibrate.at("file"), file);
  ASSERT_EQ(calibrate.at("cards").size(), 1U) << "two of one kind";
  const json& card = calibrate["cards"][0];
  EXPECT_FALSE(card.at("rows").empty());
  std::ifstream in(file);
  const json written = json::parse(in, nullptr, false);
  ASSERT_EQ(written.at("cards").size(), 1U);
  EXPECT_EQ(written["cards"][0].at("card"), card.at("card"));
  EXPECT_EQ(written["cards"][0].at("driver"), calibrate.at("driver"));
  EXPECT_EQ(written["cards"][0].at("links"), card.at("thresholds"));
}

TEST_F(BenchOnCuda, CalibrateLeavesWhatItCannotReadAlone) {
  const std::string file = folder_.file("mine.json", "hello");
  const Ran ran = run_harvest({"bench", "calibrate", "--quick", "--runs", "1", "--file", file});
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_THAT(ran.err, HasSubstr(file));
  std::ifstream in(file);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), "hello");
}

}  // namespace
}  // namespace harvest::testing
