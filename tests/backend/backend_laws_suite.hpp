// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "backend/backend_laws.hpp"

/// The laws as tests. A program that links backend_laws_suite.cpp subscribes its backends with
///
///     INSTANTIATE_TEST_SUITE_P(Mine, BackendLaws, testing::ValuesIn(entries()), name_of_entry);
namespace harvest::test {

struct BackendEntry {
  std::string name;
  SubjectFactory make;
};

inline void PrintTo(const BackendEntry& entry, std::ostream* out) {
  *out << entry.name;
}

class BackendLaws : public testing::TestWithParam<BackendEntry> {};

inline std::string name_of_entry(const testing::TestParamInfo<BackendEntry>& entry) {
  return entry.param.name;
}

}  // namespace harvest::test
