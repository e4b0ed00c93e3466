// SPDX-License-Identifier: Apache-2.0
#include "protocol/spin.hpp"

#include <fmt/format.h>
#include <stdlib.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

namespace harvest::testing {
namespace {

/// Bounds of one search; where one of them is met the search is not exhaustive, and the test fails.
constexpr int kMemoryMiB = 1400;
constexpr int kDepth = 100'000;

/// What a shell's command prints, and whether it ended well.
struct Ran {
  bool well = false;
  std::string output;
};

Ran run(const std::string& command) {
  Ran ran;
  FILE* pipe = ::popen(("(" + command + ") 2>&1").c_str(), "r");
  if (pipe == nullptr) return ran;
  std::array<char, 4096> part{};
  while (const std::size_t bytes = std::fread(part.data(), 1, part.size(), pipe))
    ran.output.append(part.data(), bytes);
  ran.well = ::pclose(pipe) == 0;
  return ran;
}

/// A folder for what SPIN writes, gone with the object.
class Folder {
 public:
  Folder() {
    std::string path = (std::filesystem::temp_directory_path() / "harvest-protocol-XXXXXX").string();
    if (::mkdtemp(path.data()) != nullptr) path_ = path;
  }
  ~Folder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// The first group of the first match, or nothing.
std::string first(const std::string& text, const char* pattern) {
  std::smatch match;
  return std::regex_search(text, match, std::regex(pattern)) ? match[1].str() : std::string{};
}

bool has(const std::string& text, const char* words) {
  return text.find(words) != std::string::npos;
}

std::string broken_promise(const std::string& output) {
  const std::string error = first(output, "pan:1: ([^\n]*)");
  if (has(error, "acceptance cycle")) return "liveness";
  const std::string promise = first(error, R"(\((I[1-5])\|\|)");
  return promise.empty() ? error : promise;
}

Found understand(const Ran& ran) {
  Found found;
  const std::string& text = found.output = ran.output;
  const std::string errors = first(text, R"(errors: (\d+))");
  found.ended = ran.well && !errors.empty();
  if (!errors.empty()) found.errors = std::stoi(errors);
  found.broken = broken_promise(text);
  found.states = first(text, R"(([0-9.e+]+) states, stored)");
  found.depth = first(text, R"(depth reached (\d+))");
  found.memory_mb = first(text, R"(([0-9.]+)\s+total actual memory usage)");
  found.seconds = first(text, R"(elapsed time ([0-9.]+) seconds)");
  found.exhaustive = found.ended && has(text, "Full statespace search") &&
                     has(text, "assertion violations\t+") && !has(text, "Search not completed") &&
                     !has(text, "max search depth too small") && !has(text, "MEMLIM") &&
                     !has(text, "out of memory") && !has(text, "truncated");
  const std::regex reached("reached: ([a-z]+ [a-z]+ -> [a-z]+)");
  for (std::sregex_iterator it(text.begin(), text.end(), reached), end; it != end; ++it)
    found.reached.insert((*it)[1]);
  return found;
}

}  // namespace

Found search(const std::string& definitions, Promise promise) {
  const bool lives = promise == Promise::liveness;
  // Who looks for an error finds it at once: there the compiler's time counts, elsewhere the search's.
  const bool is_short = has(definitions, "-DBUG_");
  const Folder folder;
  return understand(run(fmt::format(
      "cd '{}' && spin -a {}{} '{}' && gcc -w {} -DCOLLAPSE -DMEMLIM={} {} -o pan pan.c && "
      "./pan -m{} -n {}",
      folder.path().string(), definitions, lives ? " -DLIVENESS" : "", HARVEST_PROTOCOL_MODEL,
      is_short ? "-O0" : "-O1", kMemoryMiB, lives ? "-DNFAIR=3" : "-DSAFETY", kDepth, lives ? "-a -f" : "")));
}

std::optional<std::string> no_spin() {
  const Ran spin = run("spin -V");
  if (!spin.well || !spin.output.starts_with("Spin Version"))
    return "no spin (Debian's package spin): the model of leases and reclaims is not searched";
  if (!run("gcc --version").well) return "no gcc: spin needs it, and the search that spin writes is in C";
  return std::nullopt;
}

std::string model() {
  std::ostringstream text;
  text << std::ifstream(HARVEST_PROTOCOL_MODEL).rdbuf();
  return text.str();
}

}  // namespace harvest::testing
