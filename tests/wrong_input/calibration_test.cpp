// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "backend/cuda/calibration.hpp"
#include "cli/files.hpp"
#include "wrong_input/table.hpp"

namespace harvest::testing {
namespace {

/// The text of a file of two cards.
std::string good_file(const TemporaryFolder& folder) {
  cuda::CardCalibration card{"A", "1", {}};
  for (cuda::CopyThresholds* each :
       {&card.thresholds[cuda::LinkClass::host_to_device], &card.thresholds[cuda::LinkClass::device_to_host],
        &card.thresholds[cuda::LinkClass::peer], &card.thresholds[cuda::LinkClass::same_device]})
    *each = {.kernel_below_bytes = 6,
             .kernel_min_runs = 7,
             .kernel_blocks = 3,
             .batch_below_bytes = 4,
             .batch_min_runs = 5};
  const std::string path = (folder.path() / "two.json").string();
  EXPECT_TRUE(cuda::write_calibration(path, card));
  card.card = "B";
  EXPECT_TRUE(cuda::write_calibration(path, card));
  return nlohmann::ordered_json::parse(read_file(path)).dump();
}

TEST(WrongInput, ACalibrationFile) {
  Table table("A calibration file");
  const TemporaryFolder folder;
  const std::string good = good_file(folder);
  const auto read = [&](const std::string& text) -> Outcome {
    return cuda::read_calibrations(folder.file("calibration.json", text));
  };
  ASSERT_EQ(read(good).answer, "ok");
  table.shows("an empty file", read(""));
  table.shows("a file that is not there", cuda::read_calibrations("/no/such/file"));
  table.shows("a folder", cuda::read_calibrations("/"));
  table.shows("a file without an end", cuda::read_calibrations("/dev/zero"));
  for (const Row& row : table.rows()) {
    const auto texts = in_backticks(row.input);
    if (texts.empty()) continue;
    std::string text = texts[0];
    if (texts.size() == 2) {
      const auto at = good.find(texts[0]);
      ASSERT_NE(at, std::string::npos) << row.input;
      text = good;
      text.replace(at, texts[0].size(), texts[1]);
    }
    table.shows(row.input, read(text));
  }
}

}  // namespace
}  // namespace harvest::testing
