// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

#include "moe_server/world.hpp"
#include "transformer/program.hpp"

namespace harvest::moe_server {

class CommandLine : public ServerCommandLine {
 public:
  CommandLine(int argc, const char* const* argv);

  /// Nothing if the program is to go on; else it has said why not.
  std::optional<Exit> parse();

  [[nodiscard]] const Options& options() const { return options_; }
  /// The options of one run of a campaign: what is not given is drawn.
  [[nodiscard]] Options draw(std::uint64_t seed) const;

 private:
  void add_requests();
  void add_memory();

  Options options_;
};

}  // namespace harvest::moe_server
