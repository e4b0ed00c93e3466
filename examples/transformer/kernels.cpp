// SPDX-License-Identifier: Apache-2.0
#include "transformer/kernels.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace harvest::transformer {
namespace {

// Of a large GPU of the Hopper generation: round figures, estimates. A kernel of few tokens is bound by
// memory.
constexpr double kMemoryBytesPerS = 3e12;
constexpr double kOperationsPerS = 50e12;

TimeNs work_ns(KernelWork work) {
  const double seconds = std::max(static_cast<double>(work.bytes) / kMemoryBytesPerS,
                                  static_cast<double>(work.operations) / kOperationsPerS);
  return static_cast<TimeNs>(seconds * 1e9);
}

}  // namespace

Status Kernels::launch(KernelWork work, std::function<void()> run) {
  if (backend_ == nullptr) {
    run();
    return {};
  }
  const TimeNs whole_ns = launch_ns_ + work_ns(work);
  const TimeNs before_ns = draw_moment(whole_ns);
  if (before_ns > 0)
    if (Status given = backend_->submit_kernel(stream_, before_ns); !given) return given;
  const auto moment = backend_->record_event(stream_);
  if (!moment) return tl::unexpected(moment.error());
  launched_.push_back({*moment, backend_->now_ns(), std::move(run)});
  return backend_->submit_kernel(stream_, whole_ns - before_ns + 1);  // the moment is before the end
}

/// Mistakes are likelier at the begin and at the end than between.
TimeNs Kernels::draw_moment(TimeNs whole_ns) {
  switch (random_.below(4)) {
    case 0: return 0;
    case 1: return whole_ns;
    default: return static_cast<TimeNs>(random_.below(static_cast<std::uint64_t>(whole_ns)));
  }
}

Status Kernels::wait() {
  while (!launched_.empty()) {
    if (Status reached = wait_for(launched_.front()); !reached) {
      drop();
      return reached;
    }
    launched_.front().run();
    backend_->release_event(launched_.front().moment);
    launched_.pop_front();
  }
  return {};
}

Status Kernels::wait_for(const Kernel& kernel) {
  const bool passed =
      backend_->query_event(kernel.moment) != EventState::pending && backend_->now_ns() > kernel.launched_ns;
  if (passed)
    return fail(ErrorCode::timed_out,
                fmt::format("virtual time moved by {} ns behind a kernel's back, and passed it",
                            backend_->now_ns() - kernel.launched_ns));
  switch (backend_->wait_event(kernel.moment, kNever)) {
    case EventState::complete: return {};
    case EventState::failed: return fail(ErrorCode::copy_failed, "work on the stream failed");
    default: return fail(ErrorCode::timed_out, "a kernel never ends");
  }
}

void Kernels::drop() {
  for (const Kernel& kernel : launched_) backend_->release_event(kernel.moment);
  launched_.clear();
}

}  // namespace harvest::transformer
