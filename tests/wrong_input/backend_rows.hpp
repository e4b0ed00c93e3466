// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

namespace harvest::testing {

/// Shows the three tables of `Backend` on a machine of two GPUs that reach each other.
void show_backend_rows(Backend& backend);

}  // namespace harvest::testing
