// SPDX-License-Identifier: Apache-2.0
#include "backend/backend_laws_suite.hpp"

#include <gmock/gmock.h>

namespace harvest::test {

TEST_P(BackendLaws, Hold) {
  for (const Law& law : backend_laws())
    EXPECT_THAT(check(law, GetParam().make), testing::IsEmpty()) << law.name;
}

}  // namespace harvest::test
