// SPDX-License-Identifier: Apache-2.0
#include <harvest/loopback.hpp>
#include "backend/backend_laws_suite.hpp"

#include <utility>

#include "backend/checked.hpp"
#include "cuda/fake_machine.hpp"

/// The CUDA backend keeps the laws, on each kind of machine and in each way that it can work.
namespace harvest::test {
namespace {

Subject subject_on(const fake::MachineDescription& machine, const CudaOptions& options,
                   bool checked = false) {
  Subject subject;
  subject.keeps_alive = std::make_shared<FakeMachine>(machine);
  subject.backend = make_backend(options);
  if (checked) subject.backend = make_checked_backend(std::move(subject.backend));
  subject.host = make_host_memory();
  return subject;
}

std::vector<BackendEntry> entries() {
  std::vector<BackendEntry> all;
  const auto add = [&](std::string name, const fake::MachineDescription& machine,
                       const CudaOptions& options) {
    all.push_back({"cuda_" + name, [=] { return subject_on(machine, options); }});
  };
  for (const int devices : {2, 4, 8}) {
    const fake::MachineDescription machine = machine_of(devices);
    const std::string name = std::to_string(devices);
    CudaOptions options = plain_options();
    add(name, machine, options);
    options.use_kernels = options.use_batches = false;
    add(name + "_singles", machine, options);
    options = plain_options();
    options.use_virtual_memory = false;
    add(name + "_malloc", machine, options);
    all.push_back({"checked_cuda_" + name, [=] { return subject_on(machine, plain_options(), true); }});
  }
  CudaOptions options = plain_options();
  options.use_kernels = false;
  add("2_batches", machine_of(2), options);
  options = plain_options();
  options.use_batches = false;
  add("2_kernels", machine_of(2), options);
  add("4_without_peer_access", without_peer_access(machine_of(4)), plain_options());
  options = plain_options();
  options.gpus = {1, 0};
  add("2_in_another_order", machine_of(3), options);
  all.push_back({"cuda_1_in_loopback", [] {
                   Subject subject = subject_on(machine_of(1, 1024 * kMiB), plain_options());
                   auto below = std::make_shared<std::pair<std::shared_ptr<void>, std::unique_ptr<Backend>>>(
                       std::move(subject.keeps_alive), std::move(subject.backend));
                   subject.backend = make_loopback_backend(*below->second).value();
                   subject.keeps_alive = std::move(below);
                   return subject;
                 }});
  fake::MachineDescription without_virtual_memory = machine_of(2);
  for (fake::DeviceDescription& device : without_virtual_memory.devices) device.virtual_memory = false;
  add("2_without_virtual_memory", without_virtual_memory, plain_options());
  return all;
}

INSTANTIATE_TEST_SUITE_P(Cuda, BackendLaws, testing::ValuesIn(entries()), name_of_entry);

}  // namespace
}  // namespace harvest::test
