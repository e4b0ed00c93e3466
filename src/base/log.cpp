// SPDX-License-Identifier: Apache-2.0
#include "base/log.hpp"

#include <spdlog/sinks/stdout_color_sinks.h>

namespace harvest {

spdlog::logger& log() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto known = spdlog::get("harvest");
    return known ? known
                 : std::make_shared<spdlog::logger>("harvest",
                                                    std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  }();
  return *logger;
}

}  // namespace harvest
