// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/test_hooks.hpp"

/// HARVEST_PLANTED_BUG names the mistake that a program with this file makes.
namespace harvest::testing {
namespace {

class FromEnvironment final : public ::testing::Environment {
  void SetUp() override {
    const char* const name = std::getenv("HARVEST_PLANTED_BUG");
    if (name == nullptr) return;
    ASSERT_TRUE(choose_planted_bug(name)) << "there is no planted bug " << name;
  }
};

[[maybe_unused]] const auto* const environment = ::testing::AddGlobalTestEnvironment(new FromEnvironment);

}  // namespace
}  // namespace harvest::testing
