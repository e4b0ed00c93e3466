// SPDX-License-Identifier: Apache-2.0
// A main() for a fuzzer where there is no libFuzzer: runs the seeds of a folder and a number of changed ones,
// always the same. It finds little that is new; it keeps what was found from coming back, under every
// compiler.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/assert.hpp"
#include "core/random.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace harvest::fuzz {
namespace {

namespace fs = std::filesystem;
using testing::Random;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// In the order of their names, since a folder has none.
std::vector<std::string> read_seeds(const fs::path& folder) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> seeds;
  for (const fs::path& path : paths) seeds.push_back(read(path));
  return seeds;
}

/// What parsers stumble over.
constexpr std::array<std::string_view, 16> kTokens{"-1",      "18446744073709551616",
                                                   "1e999",   "0.5",
                                                   "null",    "[[[[",
                                                   "{}",      "\"",
                                                   "\n",      std::string_view("\0", 1),
                                                   "\xff",    "\xf0\x9f\x98\x80",
                                                   "\\u0000", "--",
                                                   "=",       "NaN"};

void change(std::string& input, const std::vector<std::string>& seeds, Random& random) {
  const std::size_t at = random.below(input.size() + 1);
  const std::size_t count = std::min<std::size_t>(random.between(1, 16), input.size() - at);
  switch (random.below(6)) {
    case 0:
      if (count > 0) input[at] = static_cast<char>(input[at] ^ (1 << random.below(8)));
      return;
    case 1:
      if (count > 0) input[at] = static_cast<char>(random.below(256));
      return;
    case 2: input.erase(at, count); return;
    case 3: input.insert(at, input.substr(at, count)); return;
    case 4: input.insert(at, kTokens[random.below(kTokens.size())]); return;
    default:
      const std::string& other = seeds[random.below(seeds.size())];
      const std::size_t from = random.below(other.size() + 1);
      input.replace(at, count, other, from, random.between(1, 64));
      return;
  }
}

/// The input lies in a file while it runs, so that it is there whatever becomes of the process. The file
/// stays open: some file systems wait for the disk when a file that was emptied is closed.
class Runner {
 public:
  explicit Runner(const fs::path& last_input)
      : last_input_(last_input), descriptor_(::open(last_input.c_str(), O_WRONLY | O_CREAT, 0600)) {
    HARVEST_ASSERT(descriptor_ >= 0, "cannot write " + last_input.string());
  }
  ~Runner() {
    ::close(descriptor_);
    std::error_code ignored;
    fs::remove(last_input_, ignored);
  }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  void run(const std::string& input) const {
    const auto written = ::pwrite(descriptor_, input.data(), input.size(), 0);
    HARVEST_ASSERT(written == static_cast<ssize_t>(input.size()) &&
                       ::ftruncate(descriptor_, static_cast<off_t>(input.size())) == 0,
                   "the input cannot be kept");
    // A copy of exactly its size: a sanitizer sees what is read behind it.
    const std::vector<std::uint8_t> bytes(input.begin(), input.end());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }

 private:
  fs::path last_input_;
  int descriptor_;
};

int smoke(const fs::path& folder, std::uint64_t mutations, const fs::path& last_input) {
  const std::vector<std::string> seeds = read_seeds(folder);
  HARVEST_ASSERT(!seeds.empty(), "there are no seeds in " + folder.string());
  fmt::print("{} seeds, {} mutations; the input that runs is in {}\n", seeds.size(), mutations,
             fs::absolute(last_input).string());
  std::fflush(stdout);
  const Runner runner(last_input);
  runner.run("");
  for (const std::string& seed : seeds) runner.run(seed);
  Random random(1);
  for (std::uint64_t i = 0; i < mutations; ++i) {
    std::string input = seeds[random.below(seeds.size())];
    for (std::uint64_t changes = random.between(1, 4); changes > 0; --changes) change(input, seeds, random);
    runner.run(input);
  }
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace harvest::fuzz

int main(int argc, char** argv) {
  if (argc != 4) {
    fmt::print(stderr, "usage: {} SEEDS MUTATIONS LAST_INPUT\n", argv[0]);
    return EXIT_FAILURE;
  }
  return harvest::fuzz::smoke(argv[1], std::strtoull(argv[2], nullptr, 10), argv[3]);
}
