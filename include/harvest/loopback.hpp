// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>

#include <memory>

namespace harvest {

/// One GPU of `inner` as two: device 0 is that GPU, and device 1 is the same one again, as a peer. So every
/// line of the path to a peer runs on a machine with one GPU; what is measured is that GPU's own memory, and
/// no NVLink: `info().loopback` says so, and `info().name` ends in "loopback".
///
/// Both devices have the same memory: each counts what the other takes. Streams, events and addresses are
/// those of `inner`, which outlives this. Thread-safe.
/// Errors: not_found (`device` is not a GPU of `inner`).
[[nodiscard]] Result<std::unique_ptr<Backend>> make_loopback_backend(Backend& inner, DeviceId device = 0);

}  // namespace harvest
