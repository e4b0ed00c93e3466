// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/simulated_backend.hpp>

#include <functional>
#include <memory>

#include "cli/moe/strategies.hpp"

/// What strategies share that move experts while they run: really, on the simulated machine.
namespace harvest::cli {

/// The machine, the stream that computes, and the count of what it did.
class Server {
 public:
  static Result<std::unique_ptr<Server>> create(const MoeRun& run) {
    SimulationOptions options;
    options.bytes = SimulatedBytes::phantom;
    options.seed = run.seed;
    auto backend = make_simulated_backend(run.machine, options);
    if (!backend) return tl::unexpected(backend.error());
    auto stream = (*backend)->create_stream(0);
    if (!stream) return tl::unexpected(stream.error());
    auto server = std::make_unique<Server>();
    server->backend = std::move(*backend);
    server->stream = *stream;
    return server;
  }

  void compute(TimeNs ns) {
    static_cast<void>(backend->submit_kernel(stream, ns));
    computed_ns += ns;
  }
  /// Waits until the stream has done all that it was given; looks each `look_ns` meanwhile.
  Status finish(
      TimeNs look_ns = kNever, const std::function<void()>& look = [] {}) {
    const auto event = backend->record_event(stream);
    if (!event) return tl::unexpected(event.error());
    const auto wait = [&] {
      return backend->wait_event(*event, look_ns == kNever ? kNever : backend->now_ns() + look_ns);
    };
    while (wait() == EventState::pending) look();
    backend->release_event(*event);
    return {};
  }

  std::unique_ptr<SimulatedBackend> backend;
  StreamId stream = StreamId::none;
  TimeNs computed_ns = 0;
};

template <typename Serving>
Result<MoeFigures> serve(const MoeRun& run, Serving& server, Progress& progress) {
  if (Status ready = server.prepare(); !ready) return tl::unexpected(ready.error());
  const RoutingSource source = run.routing();
  for (std::uint64_t done = 0; done < run.warm_up + run.steps;) {
    const moe::RoutingStep step = source();
    if (run.phase && step.phase() != *run.phase) continue;
    if (done == run.warm_up) server.begin();
    if (Status served = server.step(step); !served) return tl::unexpected(served.error());
    if (done >= run.warm_up) server.count(step);
    progress.at(++done);
  }
  return server.figures();
}

}  // namespace harvest::cli
