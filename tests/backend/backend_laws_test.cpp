// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <harvest/simulated_backend.hpp>

#include "backend/backend_laws_suite.hpp"
#include "backend/broken_backends.hpp"
#include "backend/checked.hpp"

namespace harvest::test {
namespace {

/// Host memory of a simulation with phantom bytes: what lies there is known by its stamp.
class PhantomHostMemory final : public HostMemory {
 public:
  explicit PhantomHostMemory(SimulatedBackend& backend) : backend_(backend) {}
  std::byte* allocate(std::uint64_t bytes) override { return backend_.reserve_host_range(bytes).value(); }
  void write(std::byte* address, std::uint64_t bytes, std::uint64_t seed) override {
    backend_.stamp(address, bytes, seed);
  }
  bool holds(const std::byte* address, std::uint64_t bytes, std::uint64_t seed,
             std::uint64_t offset_bytes) const override {
    return backend_.content_of(address, bytes) == Content{seed, offset_bytes};
  }
  bool is_filled(const std::byte* address, std::uint64_t bytes, std::uint8_t value) const override {
    return backend_.content_of(address, bytes) == Content{SimulatedBackend::fill_tag(value), 0};
  }

 private:
  SimulatedBackend& backend_;
};

std::unique_ptr<SimulatedBackend> simulated(SimulationOptions options, const char* machine) {
  return make_simulated_backend(machine_from_preset(machine).value(), std::move(options)).value();
}

Subject simulated_subject(SimulatedBytes bytes, SimulatedTime time, const char* machine = "2xh100-nvl") {
  auto backend = simulated({.bytes = bytes, .time = time, .seed = 7}, machine);
  auto host =
      bytes == SimulatedBytes::real ? make_host_memory() : std::make_unique<PhantomHostMemory>(*backend);
  return {nullptr, std::move(backend), std::move(host)};
}

std::vector<BackendEntry> entries() {
  using enum SimulatedBytes;
  using enum SimulatedTime;
  return {
      {"simulated_real_virtual", [] { return simulated_subject(real, virtual_time); }},
      {"simulated_phantom_virtual", [] { return simulated_subject(phantom, virtual_time); }},
      {"simulated_real_threads", [] { return simulated_subject(real, real_time); }},
      {"simulated_phantom_threads", [] { return simulated_subject(phantom, real_time); }},
      {"simulated_dgx_h100", [] { return simulated_subject(phantom, virtual_time, "dgx-h100"); }},
      {"simulated_4x4090", [] { return simulated_subject(real, virtual_time, "4x4090-pcie"); }},
      {"simulated_without_peer_access",
       [] {
         Machine machine = machine_from_preset("2xh100-nvl").value();
         for (MachineLink& link : machine.links)
           link.info.peer_access =
               link.info.from == link.info.to || link.info.from == kHost || link.info.to == kHost;
         return Subject{nullptr, make_simulated_backend(std::move(machine), {.seed = 7}).value(),
                        make_host_memory()};
       }},
      {"checked_simulated",
       [] {
         Subject subject = simulated_subject(real, virtual_time);
         subject.backend = make_checked_backend(std::move(subject.backend));
         return subject;
       }},
      {"checked_threads",
       [] {
         Subject subject = simulated_subject(real, real_time);
         subject.backend = make_checked_backend(std::move(subject.backend));
         return subject;
       }},
  };
}

INSTANTIATE_TEST_SUITE_P(Backends, BackendLaws, testing::ValuesIn(entries()), name_of_entry);

class BrokenBackends : public testing::TestWithParam<BrokenBackend> {};

TEST_P(BrokenBackends, AreRejected) {
  const SubjectFactory make = [] {
    Subject subject = simulated_subject(SimulatedBytes::real, SimulatedTime::virtual_time);
    std::shared_ptr<Backend> working = std::move(subject.backend);
    subject.backend = GetParam().make(*working);
    subject.keeps_alive = std::move(working);
    return subject;
  };
  const auto law = std::find_if(backend_laws().begin(), backend_laws().end(),
                                [](const Law& one) { return std::string_view(one.name) == GetParam().law; });
  ASSERT_NE(law, backend_laws().end());
  EXPECT_FALSE(check(*law, make).empty()) << law->name << " does not notice";
}

INSTANTIATE_TEST_SUITE_P(Faults, BrokenBackends, testing::ValuesIn(broken_backends()),
                         [](const auto& entry) { return std::string(entry.param.fault); });

}  // namespace
}  // namespace harvest::test
