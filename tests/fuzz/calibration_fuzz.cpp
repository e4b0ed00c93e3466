// SPDX-License-Identifier: Apache-2.0
// Any text as a calibration file. What is accepted can be written again, entry by entry, and reads the same;
// a new entry leaves the others as they were; a file that is refused is left alone by a writer too.
#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "backend/cuda/calibration.hpp"
#include "base/assert.hpp"

namespace harvest::cuda {
namespace {

namespace fs = std::filesystem;

/// A folder that is gone when the process ends; in memory where there is such a place, since each write waits
/// for the disk.
class Folder {
 public:
  Folder() {
    const fs::path memory = "/dev/shm";
    std::string name = (fs::exists(memory) ? memory : fs::temp_directory_path()) / "harvest-fuzz-XXXXXX";
    HARVEST_ASSERT(::mkdtemp(name.data()) != nullptr, "no folder");
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  [[nodiscard]] std::string operator/(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool same(const CardCalibration& a, const CardCalibration& b) {
  return a.card == b.card && a.driver == b.driver && a.thresholds == b.thresholds;
}

bool same(const std::vector<CardCalibration>& a, const std::vector<CardCalibration>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const CardCalibration& x, const CardCalibration& y) { return same(x, y); });
}

void check_accepted(const std::vector<CardCalibration>& cards, const std::string& path) {
  fs::remove(path);
  for (const CardCalibration& card : cards) {
    const Status written = write_calibration(path, card);
    HARVEST_ASSERT(written, written.error().message);
    HARVEST_ASSERT(find_calibration(cards, card.card, card.driver) == card.thresholds,
                   "an entry is not found");
  }
  if (cards.empty()) return;
  const auto again = read_calibrations(path);
  HARVEST_ASSERT(again && same(*again, cards), "what was written out reads otherwise");

  CardCalibration first = cards.front();
  first.thresholds = forced_calibration(CopyMethod::kernel, kMaxKernelBlocks);
  const Status written = write_calibration(path, first);
  HARVEST_ASSERT(written, written.error().message);
  auto changed = read_calibrations(path);
  HARVEST_ASSERT(changed && changed->size() == cards.size(), "entries came or went");
  HARVEST_ASSERT(same(changed->back(), first), "an entry was not replaced");
  changed->pop_back();
  HARVEST_ASSERT(same(*changed, {cards.begin() + 1, cards.end()}), "another entry changed");
}

void check_refused(const Error& error, const std::string& path, std::string_view text) {
  HARVEST_ASSERT(error.code == ErrorCode::malformed && error.message.starts_with(path + ": ") &&
                     error.message.size() < 1024,
                 error.message);
  const Status written = write_calibration(path, {"card", "driver", default_calibration()});
  HARVEST_ASSERT(!written && written.error().code == ErrorCode::malformed, "a broken file was replaced");
  HARVEST_ASSERT(read(path) == text, "a broken file was changed");
}

}  // namespace
}  // namespace harvest::cuda

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace harvest::cuda;
  static const Folder folder;
  static const std::string path = folder / "calibration.json";
  static const std::string written = folder / "written.json";
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::ofstream(path, std::ios::binary) << text;
  if (const auto cards = read_calibrations(path))
    check_accepted(*cards, written);
  else
    check_refused(cards.error(), path, text);
  return 0;
}
