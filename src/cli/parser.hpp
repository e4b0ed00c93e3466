// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The command line's parser, for headers that only name it: what it includes takes longer to compile than
/// most of our files.
namespace CLI {
class App;
class Option;
}  // namespace CLI
