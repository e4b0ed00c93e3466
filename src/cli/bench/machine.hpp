// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/cuda.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/status.hpp>

#include <memory>
#include <span>
#include <string>

#include "cli/output.hpp"
#include "cli/parser.hpp"

/// The machine that is measured: the real one, one of its GPUs in loopback, or a simulated one. Which it is
/// stands over every table and in every JSON.
namespace harvest::cli::bench {

struct MachineChoice {
  std::string system;  ///< empty: this machine's GPUs
  bool loopback = false;
};

/// The fields that every benchmark's JSON begins with.
[[nodiscard]] Json header_of(const Backend& backend, bool loopback, const std::string& benchmark);

/// "dgx-h100, ...": the presets.
[[nodiscard]] std::string simulated_names();

class MeasuredMachine {
 public:
  /// Errors: as `load_machine` and `make_cuda_backend`, with what to do instead.
  [[nodiscard]] static Result<MeasuredMachine> open(const MachineChoice& choice,
                                                    SimulatedBytes bytes = SimulatedBytes::real,
                                                    const CudaOptions& cuda = {});

  [[nodiscard]] Backend& backend() const { return loopback_ ? *loopback_ : *backend_; }
  /// Of the machine below a loopback.
  [[nodiscard]] std::span<const DeviceInfo> devices() const { return backend_->devices(); }
  /// Null on a real machine.
  [[nodiscard]] SimulatedBackend* simulated() const { return simulated_; }
  [[nodiscard]] bool is_loopback() const { return loopback_ != nullptr; }

  /// "dgx-h100 (SIMULATED)"
  [[nodiscard]] std::string name() const;
  /// "Bandwidth of dgx-h100 (SIMULATED)"
  [[nodiscard]] std::string title(const std::string& what) const;
  /// See `header_of`.
  [[nodiscard]] Json header(const std::string& benchmark) const {
    return header_of(backend(), is_loopback(), benchmark);
  }
  /// The peer that serves `consumer` fastest. Errors: not_found, with what to do.
  [[nodiscard]] Result<DeviceId> best_peer(DeviceId consumer) const;

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> loopback_;  ///< before which `backend_` must not die
  SimulatedBackend* simulated_ = nullptr;
};

/// `--system` and `--loopback`, for what is done with the machine: "measure".
void add_machine(CLI::App& command, MachineChoice& target, const std::string& verb);

}  // namespace harvest::cli::bench
