// SPDX-License-Identifier: Apache-2.0
#include <harvest/backend.hpp>

namespace harvest {

std::string_view to_string(LinkKind kind) {
  switch (kind) {
    case LinkKind::same_device: return "same_device";
    case LinkKind::nvlink: return "nvlink";
    case LinkKind::nvswitch: return "nvswitch";
    case LinkKind::c2c: return "c2c";
    case LinkKind::pcie: return "pcie";
  }
  return "?";
}

}  // namespace harvest
