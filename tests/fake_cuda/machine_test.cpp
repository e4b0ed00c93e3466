// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>

#include "fake_cuda/trial.hpp"

/// Machines as text.
namespace harvest::fake_cuda {
namespace {

TEST(Machine, ComesFromJson) {
  const auto machine = parse_machine(R"({
    "devices": [
      {"name": "A", "total_bytes": 1048576, "numa_node": 1, "nvlinks": [{"to": 1, "count": 6}]},
      {"name": "B", "count": 2, "mig": true, "nvlinks": [{"to": "switch", "count": 18}]}
    ],
    "peer_access": [[0, 1, 0], [1, 0, 0], [0, false, 0]],
    "max_peers": 4, "granularity_bytes": 4096, "seed": 9, "max_delay_us": 0, "late_descriptors": false})");
  ASSERT_EQ(machine.devices.size(), 3U);
  EXPECT_EQ(machine.devices[0].name, "A");
  EXPECT_EQ(machine.devices[0].total_bytes, 1048576U);
  EXPECT_EQ(machine.devices[0].numa_node, 1);
  EXPECT_EQ(machine.devices[0].nvlinks.front().to, 1);
  EXPECT_EQ(machine.devices[0].nvlinks.front().count, 6);
  EXPECT_EQ(machine.devices[2].name, "B");
  EXPECT_TRUE(machine.devices[2].mig);
  EXPECT_EQ(machine.devices[2].nvlinks.front().to, kSwitch);
  EXPECT_TRUE(machine.peer_access[0][1]);
  EXPECT_FALSE(machine.peer_access[2][1]);
  EXPECT_EQ(machine.max_peers, 4);
  EXPECT_EQ(machine.granularity_bytes, 4096U);
  EXPECT_EQ(machine.seed, 9U);
  EXPECT_EQ(machine.max_delay_us, 0U);
  EXPECT_FALSE(machine.late_descriptors);
}

TEST(Machine, RefusesWhatIsNone) {
  for (const char* text :
       {"", "[]", "{\"devises\": []}", R"({"devices": [{"bytes": 1}]})", R"({"devices": [{"name": 1}]})",
        R"({"devices": [{}], "peer_access": [[0, 1]]})", R"({"devices": [{}], "peer_access": [[0], [1]]})",
        R"({"devices": [{"nvlinks": [{"to": 5, "count": 1}]}]})",
        R"({"devices": [{"nvlinks": [{"to": "moon", "count": 1}]}]})",
        R"({"devices": [{}], "granularity_bytes": 3})"}) {
    EXPECT_THROW((void)parse_machine(text), std::invalid_argument) << text;
  }
}

}  // namespace
}  // namespace harvest::fake_cuda
