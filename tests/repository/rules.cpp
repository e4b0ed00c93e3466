// SPDX-License-Identifier: Apache-2.0
#include "repository/rules.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <span>
#include <utility>

namespace harvest::repository {
namespace {

struct Floor {
  std::string_view name;
  int floor;
};

constexpr std::array kFolderFloors{
    Floor{"base", 0}, Floor{"backend", 1}, Floor{"policy", 1}, Floor{"memory", 2},  Floor{"core", 3},
    Floor{"moe", 4},  Floor{"kv", 4},      Floor{"capi", 4},   Floor{"plugins", 4}, Floor{"cli", 5},
};

constexpr std::array kHeaderFloors{
    Floor{"types.hpp", 0},
    Floor{"status.hpp", 0},
    Floor{"backend.hpp", 1},
    Floor{"loopback.hpp", 1},
    Floor{"cuda.hpp", 1},
    Floor{"machine.hpp", 1},
    Floor{"simulated_backend.hpp", 1},
    Floor{"policy.hpp", 1},
    Floor{"trace.hpp", 0},
    Floor{"topology.hpp", 1},
    Floor{"stats.hpp", 2},
    Floor{"runner.hpp", 3},
    Floor{"peer_cache.hpp", 3},
    Floor{"moe/model.hpp", 4},
    Floor{"moe/predictor.hpp", 4},
    Floor{"moe/routing.hpp", 4},
    Floor{"moe/expert_cache.hpp", 4},
    Floor{"kv/layout.hpp", 4},
    Floor{"kv/keys.hpp", 4},
    Floor{"kv/block_cache.hpp", 4},
    Floor{"kv/turns.hpp", 4},
    Floor{"harvest.hpp", 5},
};

constexpr int kFloorOnPublicHeadersAlone = 4;

/// Names the words that other files may not have.
constexpr std::string_view kThisFolder = "tests/repository/";

std::optional<int> floor_of(std::span<const Floor> floors, std::string_view name) {
  const auto found =
      std::find_if(floors.begin(), floors.end(), [&](const Floor& entry) { return entry.name == name; });
  if (found == floors.end()) return std::nullopt;
  return found->floor;
}

/// Calls `visit(line_number, line)` for each line.
template <typename Visit>
void for_each_line(std::string_view text, Visit visit) {
  for (int number = 1; !text.empty(); ++number) {
    const auto end = std::min(text.find('\n'), text.size());
    visit(number, text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

void skip_spaces(std::string_view& line) {
  line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
}

struct Include {
  std::string_view name;
  bool quoted;
};

std::optional<Include> parse_include(std::string_view line) {
  skip_spaces(line);
  if (!line.starts_with('#')) return std::nullopt;
  line.remove_prefix(1);
  skip_spaces(line);
  constexpr std::string_view kDirective = "include";
  if (!line.starts_with(kDirective)) return std::nullopt;
  line.remove_prefix(kDirective.size());
  skip_spaces(line);
  if (line.empty() || (line.front() != '"' && line.front() != '<')) return std::nullopt;
  const bool quoted = line.front() == '"';
  line.remove_prefix(1);
  const auto end = line.find(quoted ? '"' : '>');
  if (end == std::string_view::npos) return std::nullopt;
  return Include{line.substr(0, end), quoted};
}

/// The part of `path` after `prefix`, or nothing.
std::optional<std::string_view> after(std::string_view path, std::string_view prefix) {
  if (!path.starts_with(prefix)) return std::nullopt;
  return path.substr(prefix.size());
}

std::string_view first_folder(std::string_view path) {
  const auto slash = path.find('/');
  return slash == std::string_view::npos ? std::string_view{} : path.substr(0, slash);
}

bool is_source(std::string_view path) {
  constexpr std::array<std::string_view, 5> kEndings{".cpp", ".hpp", ".h", ".c", ".cu"};
  return std::any_of(kEndings.begin(), kEndings.end(), [&](auto ending) { return path.ends_with(ending); });
}

bool is_standard_header(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return std::islower(c) != 0 || c == '_' || std::isdigit(c) != 0;
  });
}

/// What is wrong with <harvest/`header`> in a file on `floor`; empty if nothing is.
std::string judge_public(std::string_view header, int floor) {
  const auto header_floor = floor_of(kHeaderFloors, header);
  if (!header_floor) {
    return fmt::format("<harvest/{}> has no floor yet: give it one in tests/repository/rules.cpp", header);
  }
  if (*header_floor <= floor) return {};
  return fmt::format("<harvest/{}> is of floor {}, above this file's floor {}", header, *header_floor, floor);
}

/// What is wrong with `include` in a file of src/`folder`.
std::string judge_in_source(const Include& include, std::string_view folder, int floor) {
  if (const auto header = after(include.name, "harvest/")) return judge_public(*header, floor);
  if (!include.quoted) return {};  // the system's or another library's
  const auto other = first_folder(include.name);
  if (other == folder) return {};
  if (other.empty()) return fmt::format("\"{}\": write the path from src/", include.name);
  const auto other_floor = floor_of(kFolderFloors, other);
  if (!other_floor) return fmt::format("\"{}\": no folder {} in src/ has a floor", include.name, other);
  if (*other_floor >= floor) {
    return fmt::format("\"{}\" is of floor {}; {} is on floor {} and may include lower ones only",
                       include.name, *other_floor, folder, floor);
  }
  if (floor == kFloorOnPublicHeadersAlone && *other_floor > 0) {
    return fmt::format("\"{}\": {} stands on the public headers and base alone", include.name, folder);
  }
  return {};
}

/// What is wrong with `include` in include/harvest/`header`.
std::string judge_in_public(const Include& include, std::string_view header, int floor) {
  if (const auto other = after(include.name, "harvest/"); other && !include.quoted) {
    return judge_public(*other, floor);
  }
  if (!include.quoted && (is_standard_header(include.name) || include.name == "tl/expected.hpp")) return {};
  if (!include.quoted && header == "cuda.hpp" && include.name.starts_with("cuda")) return {};
  return fmt::format(
      "{}: a public header includes <harvest/...>, C++'s own headers and <tl/expected.hpp> only",
      include.name);
}

/// Where `word` stands in `line` and is not the end of a longer word or path.
bool has_word(std::string_view line, std::string_view word, std::string_view not_after) {
  for (auto at = line.find(word); at != std::string_view::npos; at = line.find(word, at + 1)) {
    if (at == 0) return true;
    const char before = line[at - 1];
    if (std::isalnum(static_cast<unsigned char>(before)) == 0 &&
        not_after.find(before) == std::string_view::npos) {
      return true;
    }
  }
  return false;
}

/// A violation for each line with one of `words`.
template <std::size_t n>
Violations find_words(std::string_view path, std::string_view text,
                      const std::array<std::string_view, n>& words, std::string_view not_after,
                      std::string_view why) {
  Violations found;
  for_each_line(text, [&](int number, std::string_view line) {
    for (const auto word : words) {
      if (has_word(line, word, not_after))
        found.push_back(fmt::format("{}:{}: {}: {}", path, number, word, why));
    }
  });
  return found;
}

}  // namespace

Violations check_includes(std::string_view path, std::string_view text) {
  const auto in_source = after(path, "src/");
  const auto in_public = after(path, "include/harvest/");
  if (!is_source(path) || (!in_source && !in_public)) return {};
  const auto folder = in_source ? first_folder(*in_source) : std::string_view{};
  const auto floor = in_source ? floor_of(kFolderFloors, folder) : floor_of(kHeaderFloors, *in_public);
  if (!floor) return {fmt::format("{}:1: has no floor yet: give it one in tests/repository/rules.cpp", path)};

  Violations found;
  for_each_line(text, [&](int number, std::string_view line) {
    const auto include = parse_include(line);
    if (!include) return;
    const auto wrong =
        in_source ? judge_in_source(*include, folder, *floor) : judge_in_public(*include, *in_public, *floor);
    if (!wrong.empty()) found.push_back(fmt::format("{}:{}: {}", path, number, wrong));
  });
  return found;
}

Violations check_clock_and_threads(std::string_view path, std::string_view text) {
  const bool bound =
      path.starts_with("src/policy/") || path.starts_with("src/memory/") || path.starts_with("src/core/");
  if (!bound || path == "src/core/runner.cpp") return {};
  constexpr std::array<std::string_view, 6> kWords{"std::chrono", "std::thread",    "std::jthread",
                                                   "std::async",  "clock_gettime(", "gettimeofday("};
  return find_words(path, text, kWords, "_", "time and threads come from the backend and the runner");
}

Violations check_licence_line(std::string_view path, std::string_view text) {
  if (!is_source(path) && path != "dev" && path != ".ci/run") return {};
  bool has_line = false;
  for_each_line(text, [&](int number, std::string_view line) {
    if (number <= 2 && (line == "// SPDX-License-Identifier: Apache-2.0" ||
                        line == "# SPDX-License-Identifier: Apache-2.0")) {
      has_line = true;
    }
  });
  if (has_line) return {};
  return {fmt::format("{}:1: no line SPDX-License-Identifier: Apache-2.0", path)};
}

Violations check_unfinished(std::string_view path, std::string_view text) {
  if (path.starts_with(kThisFolder)) return {};
  constexpr std::array<std::string_view, 2> kWords{"TODO", "FIXME"};
  return find_words(path, text, kWords, "_", "finish it, or file an issue");
}

std::string_view wrong_input_section(std::string_view page) {
  constexpr std::string_view kTitle = "\n## Wrong input\n";
  const auto begin = page.find(kTitle);
  if (begin == std::string_view::npos) return {};
  page.remove_prefix(begin + kTitle.size());
  return page.substr(0, page.find("\n## "));
}

std::vector<std::string> wrong_input_tables(std::string_view page) {
  std::vector<std::string> headings;
  for_each_line(wrong_input_section(page), [&](int, std::string_view line) {
    if (const auto heading = after(line, "### ")) headings.emplace_back(*heading);
  });
  return headings;
}

std::vector<std::string> fields_of(std::string_view header, std::string_view name) {
  const auto begin = header.find(fmt::format("struct {} {{\n", name));
  if (begin == std::string_view::npos) return {};
  const std::string_view body = header.substr(begin, header.find("\n};", begin) - begin);
  std::vector<std::string> fields;
  for_each_line(body, [&](int number, std::string_view line) {
    skip_spaces(line);
    const auto end = line.find_first_of("{=;");  // of the name, with the type before it
    if (number == 1 || line.starts_with("//") || end == std::string_view::npos) return;
    std::string_view declared = line.substr(0, end);
    declared = declared.substr(0, declared.find_last_not_of(' ') + 1);
    fields.emplace_back(declared.substr(declared.rfind(' ') + 1));
  });
  return fields;
}

Violations check_machine_paths(std::string_view path, std::string_view text) {
  if (path.starts_with(kThisFolder)) return {};
  constexpr std::array<std::string_view, 3> kWords{"/home/", "/root/", "/Users/"};
  return find_words(path, text, kWords, "_.-}/", "a path of one machine");
}

}  // namespace harvest::repository
