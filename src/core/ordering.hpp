// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

/// Order where the driver is short of what it takes: time is lost then, and never a byte.
namespace harvest::core {

/// Work given to `stream` from now on starts after `event`: on the device, or, where that cannot be said to
/// it, by waiting here.
void order_after(Backend& backend, StreamId stream, EventId event);

/// An event after work that is under way already and must not be lost sight of. Where the driver has none to
/// give now, asks again for up to a second. Errors: as `Backend::record_event`; then nobody can say when the
/// work ends, as on a device that is lost, where none runs any more.
[[nodiscard]] Result<EventId> record_surely(Backend& backend, StreamId stream);

}  // namespace harvest::core
