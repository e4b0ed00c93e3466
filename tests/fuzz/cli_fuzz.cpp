// SPDX-License-Identifier: Apache-2.0
// Any command line, an argument a line. The program ends with a documented exit code, says on stderr what is
// wrong with bad input, and prints one JSON value where --json was asked for. FILES/ stands for a folder with
// what commands read. What measures for seconds is run only as far as its bad input.
#include <fmt/format.h>
#include <stdlib.h>
#include <zlib.h>
#include <harvest/machine.hpp>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/assert.hpp"
#include "cli/command_line.hpp"

namespace harvest::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFiles = "FILES";
constexpr const char* kTrace =
    R"({"timestamp": 0, "input_length": 1500, "output_length": 5, "hash_ids": [1, 2, 3]})"
    "\n"
    R"({"timestamp": 3000, "input_length": 900, "output_length": 52, "hash_ids": [1, 2]})"
    "\n"
    R"({"timestamp": 3000, "input_length": 1500, "output_length": 0, "hash_ids": [1, 2, 4]})"
    "\n"
    R"({"timestamp": 6000, "input_length": 7, "output_length": 1, "hash_ids": []})"
    "\n";

constexpr const char* kRouting =
    R"({"step": 0, "phase": "prefill", "sequence": 1, "layer": 0, "tokens": 9, "experts": [3, 1, 0]})"
    "\n"
    R"({"step": 0, "phase": "prefill", "sequence": 1, "layer": 1, "tokens": 9, "experts": [0, 2]})"
    "\n"
    R"({"step": 1, "phase": "decode", "sequence": 1, "layer": 0, "experts": [3, 1]})"
    "\n"
    R"({"step": 1, "phase": "decode", "sequence": 1, "layer": 1, "experts": [0, 2]})"
    "\n";

/// One GPU, and nobody to lend it anything.
Machine lonely() {
  Machine machine = *machine_from_preset("4x4090-pcie");
  machine.devices.erase(machine.devices.begin() + 1, machine.devices.end() - 1);
  std::erase_if(machine.links,
                [](const MachineLink& link) { return link.info.from > 0 || link.info.to > 0; });
  return machine;
}

/// With a path that is too slow to be used.
Machine slow() {
  Machine machine = *machine_from_preset("2xh100-nvl");
  for (MachineLink& link : machine.links)
    if (link.info.from == 0 && link.info.to == 1) link.info.latency_ns = 6'000'000'000;
  return machine;
}

/// A folder that is gone when the process ends.
class Files {
 public:
  Files() {
    std::string name = fs::temp_directory_path() / "harvest-fuzz-XXXXXX";
    HARVEST_ASSERT(::mkdtemp(name.data()) != nullptr, "no folder");
    path_ = name;
    write("trace.jsonl", kTrace);
    write("routing.jsonl", kRouting);
    write("broken.jsonl", std::string(kTrace) + "hello\n");
    write(
        "tr\xe4"
        "ce.jsonl",
        kTrace);  // a name in another encoding
    write("machine.json", to_json(*machine_from_preset("4x4090-pcie")));
    write("broken.json", "{");
    write("lonely.json", to_json(lonely()));
    write("slow.json", to_json(slow()));
    write("late.jsonl",
          R"({"timestamp": 1700000000000, "input_length": 9, "output_length": 5, "hash_ids": [1]})");
    const gzFile packed = gzopen((path_ / "trace.gz").c_str(), "wb");
    gzputs(packed, kTrace);
    HARVEST_ASSERT(gzclose(packed) == Z_OK, "gzip failed");
  }
  ~Files() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;

  [[nodiscard]] std::string path() const { return path_; }

 private:
  void write(const char* name, std::string_view content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
  }
  fs::path path_;
};

std::vector<std::string> arguments_of(std::string_view lines, const std::string& files) {
  std::vector<std::string> arguments{"harvest"};
  while (!lines.empty()) {
    const auto end = std::min(lines.find('\n'), lines.size());
    std::string argument(lines.substr(0, end));
    if (const auto at = argument.find(kFiles); at != std::string::npos)
      argument.replace(at, kFiles.size(), files);
    arguments.push_back(std::move(argument));
    lines.remove_prefix(std::min(end + 1, lines.size()));
  }
  return arguments;
}

/// Takes what goes to a stream of the C library, and so what {fmt} prints, while it lives.
class Capture {
 public:
  explicit Capture(std::FILE*& stream) : stream_(stream), before_(stream) {
    stream_ = ::open_memstream(&text_, &size_);
    HARVEST_ASSERT(stream_ != nullptr, "no stream in memory");
  }
  ~Capture() {
    static_cast<void>(take());
    std::free(text_);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  /// Ends it.
  [[nodiscard]] std::string_view take() {
    if (stream_ != before_) {
      std::fclose(stream_);
      stream_ = before_;
    }
    return {text_, size_};
  }

 private:
  std::FILE*& stream_;
  std::FILE* before_;
  char* text_ = nullptr;
  std::size_t size_ = 0;
};

/// The innermost command that was typed.
const CLI::App& command_of(const CLI::App& app) {
  const CLI::App* command = &app;
  while (!command->get_subcommands().empty()) command = command->get_subcommands().front();
  return *command;
}

bool is_set(const CLI::App& command, const char* option) {
  const CLI::Option* found = command.get_option_no_throw(option);
  return found != nullptr && found->count() > 0;
}

/// Without a machine's name the program looks for GPUs, with one that it knows some commands measure it, and
/// an owner's process takes orders. Routing is made up for a while, or written anywhere.
bool ends_fast(const CLI::App& command) {
  const std::string& name = command.get_name();
  if (is_set(command, "--owner-process")) return false;
  if (name == "policy" || name == "replay" || name == "bench") return true;
  if (name == "routing") return is_set(command, "--routing") && !is_set(command, "--write");
  if (!is_set(command, "--system")) return false;
  if (name == "topo" && !is_set(command, "--measure")) return true;
  return !load_machine(command.get_option("--system")->results().back());
}

void check(Exit exit, bool json, std::string_view out, std::string_view err) {
  const std::string said = fmt::format("exit code {}\n{}\n{}", static_cast<int>(exit), out, err);
  if (exit == Exit::bad_input) {
    HARVEST_ASSERT(err.starts_with("harvest") && std::count(err.begin(), err.end(), '\n') == 1, said);
    HARVEST_ASSERT(out.empty(), said);
  } else {
    HARVEST_ASSERT(exit == Exit::ok, said);
    HARVEST_ASSERT(!out.empty() && out.ends_with('\n'), said);
    HARVEST_ASSERT(!json || nlohmann::json::accept(out), said);
  }
}

void run(std::vector<std::string> arguments) {
  std::vector<const char*> argv;
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  Capture out(stdout);
  Capture err(stderr);
  CommandLine line;
  auto exit = line.parse(static_cast<int>(argv.size()), argv.data());
  const CLI::App& command = command_of(line.app());
  const bool json = !exit && is_set(command, "--json");
  if (!exit && ends_fast(command)) exit = line.act();
  const std::string_view printed = out.take();
  const std::string_view complaint = err.take();
  if (exit) check(*exit, json, printed, complaint);
}

}  // namespace
}  // namespace harvest::cli

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace harvest::cli;
  static const Files files;
  run(arguments_of({reinterpret_cast<const char*>(data), size}, files.path()));
  return 0;
}
