// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "repository/rules.hpp"

namespace harvest::repository {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

namespace fs = std::filesystem;

struct File {
  std::string path;  // from the root
  std::string text;
};

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Every file of the repository that people write; build folders and what tools leave are not among them.
const std::vector<File>& repository_files() {
  static const std::vector<File> files = [] {
    const fs::path root = HARVEST_SOURCE_DIR;
    std::vector<File> found;
    for (const char* folder : {"include", "src", "tests", "benchmarks", "examples", "docs", "cmake", ".ci"}) {
      if (!fs::exists(root / folder)) continue;
      for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
        if (!entry.is_regular_file() || entry.path().extension() == ".gz") continue;
        found.push_back({entry.path().lexically_relative(root).generic_string(), read(entry.path())});
      }
    }
    for (const char* name : {"CMakeLists.txt", "CMakePresets.json", "README.md", "dev", ".clang-tidy"}) {
      if (fs::exists(root / name)) found.push_back({name, read(root / name)});
    }
    return found;
  }();
  return files;
}

using Rule = Violations (*)(std::string_view, std::string_view);

Violations check_repository(Rule rule) {
  Violations all;
  for (const auto& file : repository_files()) {
    for (auto& violation : rule(file.path, file.text)) all.push_back(std::move(violation));
  }
  return all;
}

TEST(Repository, IsRead) {
  // The rules below would all hold for an empty list.
  EXPECT_GT(repository_files().size(), 40U);
}

TEST(Repository, EveryFileIncludesItsOwnFloorOrALowerOne) {
  EXPECT_THAT(check_repository(check_includes), IsEmpty());
}

TEST(Repository, CoreReadsNoClockAndStartsNoThread) {
  EXPECT_THAT(check_repository(check_clock_and_threads), IsEmpty());
}

const std::string& text_of(std::string_view path) {
  static const std::string none;
  for (const File& file : repository_files())
    if (file.path == path) return file.text;
  ADD_FAILURE() << path << " is not there";
  return none;
}

/// A table's own test sees to its rows; that it has a test is seen here.
TEST(Repository, EveryTableOfWrongInputHasATest) {
  const auto headings = wrong_input_tables(text_of("docs/reliability.md"));
  EXPECT_GT(headings.size(), 20U);
  for (const std::string& heading : headings) {
    const auto names_it = [&](const File& file) {
      return file.path.starts_with("tests/") && file.text.find('"' + heading + '"') != std::string::npos;
    };
    EXPECT_TRUE(std::ranges::any_of(repository_files(), names_it)) << heading;
  }
}

TEST(Repository, EveryOptionIsThereWithItsWrongInput) {
  const std::string_view section = wrong_input_section(text_of("docs/reliability.md"));
  struct Options {
    std::string_view header;
    std::string_view name;
  };
  for (const auto& [header, name] : {Options{"peer_cache.hpp", "PeerCacheConfig"},
                                     {"peer_cache.hpp", "PressureConfig"},
                                     {"peer_cache.hpp", "TierPolicy"},
                                     {"peer_cache.hpp", "PutOptions"},
                                     {"policy.hpp", "PlacementWeights"},
                                     {"cuda.hpp", "CudaOptions"}}) {
    const auto fields = fields_of(text_of("include/harvest/" + std::string(header)), name);
    EXPECT_GE(fields.size(), 2U) << name;
    for (const std::string& field : fields) EXPECT_THAT(section, HasSubstr(field)) << "a field of " << name;
  }
}

TEST(Repository, EverySourceNamesItsLicence) {
  EXPECT_THAT(check_repository(check_licence_line), IsEmpty());
}

TEST(Repository, NothingIsLeftUnfinished) {
  EXPECT_THAT(check_repository(check_unfinished), IsEmpty());
}

TEST(Repository, NoPathOfOneMachine) {
  EXPECT_THAT(check_repository(check_machine_paths), IsEmpty());
}

// Each rule finds a violation that is planted, and only that.

TEST(RepositoryRules, FindAnIncludeOfAHigherFloor) {
  EXPECT_THAT(check_includes("src/memory/pool.cpp", "#include <vector>\n# include \"core/cache.hpp\"\n"),
              ElementsAre(HasSubstr("src/memory/pool.cpp:2: \"core/cache.hpp\" is of floor 3")));
  EXPECT_THAT(check_includes("src/memory/pool.cpp", "#include <harvest/peer_cache.hpp>\n"),
              ElementsAre(HasSubstr("is of floor 3, above this file's floor 2")));
  EXPECT_THAT(check_includes("src/base/names.cpp", "#include \"harvest/backend.hpp\"\n"),
              ElementsAre(HasSubstr("is of floor 1, above this file's floor 0")));
}

TEST(RepositoryRules, FindAnIncludeOfANeighboursInside) {
  EXPECT_THAT(check_includes("src/policy/lru.cpp", "#include \"backend/sim/fabric.hpp\"\n"),
              ElementsAre(HasSubstr("may include lower ones only")));
  EXPECT_THAT(check_includes("src/kv/block_cache.cpp", "#include \"core/cache.hpp\"\n"),
              ElementsAre(HasSubstr("stands on the public headers and base alone")));
  EXPECT_THAT(check_includes("src/core/cache.cpp", "#include \"cache.hpp\"\n"),
              ElementsAre(HasSubstr("write the path from src/")));
}

TEST(RepositoryRules, FindWhatHasNoFloor) {
  EXPECT_THAT(check_includes("src/extra/new.cpp", ""), ElementsAre(HasSubstr("has no floor yet")));
  EXPECT_THAT(check_includes("include/harvest/new.hpp", ""), ElementsAre(HasSubstr("has no floor yet")));
  EXPECT_THAT(check_includes("src/cli/main.cpp", "#include <harvest/new.hpp>\n"),
              ElementsAre(HasSubstr("<harvest/new.hpp> has no floor yet")));
}

TEST(RepositoryRules, FindAForeignHeaderInAPublicOne) {
  for (const std::string name :
       {"cuda_runtime.h", "nvml.h", "numa.h", "unistd.h", "sys/mman.h", "fmt/core.h"}) {
    EXPECT_THAT(check_includes("include/harvest/types.hpp", "#include <" + name + ">\n"),
                ElementsAre(HasSubstr("include/harvest/types.hpp:1: " + name)));
  }
  EXPECT_THAT(check_includes("include/harvest/types.hpp", "#include \"base/assert.hpp\"\n"),
              ElementsAre(HasSubstr("a public header includes")));
  EXPECT_THAT(check_includes("include/harvest/backend.hpp", "#include <harvest/peer_cache.hpp>\n"),
              ElementsAre(HasSubstr("above this file's floor 1")));
  EXPECT_THAT(check_includes("include/harvest/cuda.hpp", "#include <cuda_runtime.h>\n#include <nvml.h>\n"),
              ElementsAre(HasSubstr("include/harvest/cuda.hpp:2: nvml.h")));
}

TEST(RepositoryRules, AllowWhatIsAllowed) {
  EXPECT_THAT(
      check_includes("src/core/cache.cpp",
                     "#include \"core/cache.hpp\"\n#include <harvest/peer_cache.hpp>\n"
                     "#include \"memory/pool.hpp\"\n#include \"base/assert.hpp\"\n#include <sys/mman.h>\n"
                     "// #include \"cli/main.hpp\"\n"),
      IsEmpty());
  EXPECT_THAT(
      check_includes("include/harvest/status.hpp", "#include <cstdint>\n#include <tl/expected.hpp>\n"),
      IsEmpty());
  EXPECT_THAT(check_includes("tests/core/cache_test.cpp", "#include \"core/cache.hpp\"\n"), IsEmpty());
}

TEST(RepositoryRules, FindAClockInTheCore) {
  const std::string_view clock = "auto now = std::chrono::steady_clock::now();\n";
  EXPECT_THAT(check_clock_and_threads("src/core/cache.cpp", clock), ElementsAre(HasSubstr("std::chrono")));
  EXPECT_THAT(check_clock_and_threads("src/backend/sim/backend.cpp", clock), IsEmpty());
  EXPECT_THAT(check_clock_and_threads("src/core/runner.cpp", "std::thread thread_;\n"), IsEmpty());
}

TEST(RepositoryRules, FindTablesAndFields) {
  EXPECT_THAT(wrong_input_tables(
                  "# A\n\n## B\n### no\n\n## Wrong input\ntext\n\n### `put`\n|\n### a b\n## C\n### no\n"),
              ElementsAre("`put`", "a b"));
  EXPECT_THAT(wrong_input_tables("## Other\n### no\n"), IsEmpty());
  EXPECT_THAT(
      fields_of(
          "struct A {\n  int a = 1;  ///< b = 2;\n  /// c;\n  std::vector<int> d{};\n\n  E e;\n};\nint f;\n",
          "A"),
      ElementsAre("a", "d", "e"));
  EXPECT_THAT(fields_of("struct A {\n  int a;\n};\n", "B"), IsEmpty());
}

TEST(RepositoryRules, FindAMissingLicenceLine) {
  EXPECT_THAT(check_licence_line("src/base/a.cpp", "#include <vector>\n"),
              ElementsAre(HasSubstr("a.cpp:1:")));
  EXPECT_THAT(check_licence_line("dev", "#!/bin/sh\n\n# SPDX-License-Identifier: Apache-2.0\n"),
              ElementsAre(HasSubstr("dev:1:")));
  EXPECT_THAT(check_licence_line("dev", "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n"), IsEmpty());
}

TEST(RepositoryRules, FindUnfinishedWork) {
  EXPECT_THAT(check_unfinished("a.cpp", "int a;\n// TODO: b\n"), ElementsAre(HasSubstr("a.cpp:2:")));
  EXPECT_THAT(check_unfinished("a.cpp", "// (FIXME)\n"), ElementsAre(HasSubstr("a.cpp:1:")));
}

TEST(RepositoryRules, FindAPathOfOneMachine) {
  EXPECT_THAT(check_machine_paths("a.md", "see /home/someone/trace\n"), ElementsAre(HasSubstr("a.md:1:")));
  EXPECT_THAT(check_machine_paths("a.md", "cd \"/root/main\"\n"), ElementsAre(HasSubstr("a.md:1:")));
  EXPECT_THAT(check_machine_paths("a.md", "src/home/main.cpp, ../home/, ${prefix}/root/x\n"), IsEmpty());
}

}  // namespace
}  // namespace harvest::repository
