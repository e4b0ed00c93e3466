// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <spdlog/spdlog.h>

namespace harvest {

/// Where the library tells an operator what it cannot tell a caller: a peer that leaves service. It writes to
/// standard error; a program that registers a spdlog logger named "harvest" beforehand has it there instead.
[[nodiscard]] spdlog::logger& log();

}  // namespace harvest
