// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>

#include "cli/command_line.hpp"

int main(int argc, char** argv) {
  using harvest::cli::Exit;
  try {
    // The library logs to spdlog's default logger: on stderr, so that stdout is the results' alone.
    spdlog::set_default_logger(spdlog::stderr_color_mt("harvest"));
    harvest::cli::CommandLine line;
    const auto answered = line.parse(argc, argv);
    const Exit exit = answered ? *answered : line.act();
    if (std::fflush(stdout) == 0) return static_cast<int>(exit);
    fmt::print(stderr, "harvest: the results cannot be written: {}\n", std::strerror(errno));
    return static_cast<int>(Exit::failed);
  } catch (const std::exception& error) {  // no memory, or no stderr to write to
    std::fputs("harvest: ", stderr);
    std::fputs(error.what(), stderr);
    std::fputs("\n", stderr);
    return static_cast<int>(Exit::failed);
  }
}
