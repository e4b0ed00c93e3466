// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>

#include <cstring>

#include "fake_cuda/trial.hpp"

/// NVML as a program finds it that loads it at run time.
namespace harvest::fake_cuda {
namespace {

struct Pci {
  char legacy_bus_id[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};

class Nvml : public FakeCudaTest {
 protected:
  void SetUp() override {
    FakeCudaTest::SetUp();
    library_ = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(library_, nullptr);
  }
  void TearDown() override {
    dlclose(library_);
    FakeCudaTest::TearDown();
  }

  template <typename... Arguments>
  int call(const char* name, Arguments... arguments) {
    const auto function = reinterpret_cast<int (*)(Arguments...)>(dlsym(library_, name));
    EXPECT_NE(function, nullptr) << name;
    return function == nullptr ? -1 : function(arguments...);
  }

  void* library_ = nullptr;
};

TEST_F(Nvml, TellsOfLinksBetweenDevices) {
  void* device = nullptr;
  unsigned value = 0;
  EXPECT_EQ(call("nvmlDeviceGetHandleByPciBusId_v2", "0000:10:00.0", &device), 1);  // not initialised
  ASSERT_EQ(call("nvmlInit_v2"), 0);
  ASSERT_EQ(call("nvmlDeviceGetHandleByPciBusId_v2", "00000000:10:00.0", &device), 0);
  for (unsigned link = 0; link < 6; ++link) {
    EXPECT_EQ(call("nvmlDeviceGetNvLinkState", device, link, &value), 0);
    EXPECT_EQ(value, 1U);
    EXPECT_EQ(call("nvmlDeviceGetNvLinkRemoteDeviceType", device, link, &value), 0);
    EXPECT_EQ(value, 0U);
    Pci remote{};
    EXPECT_EQ(call("nvmlDeviceGetNvLinkRemotePciInfo_v2", device, link, &remote), 0);
    EXPECT_STREQ(remote.bus_id, "00000000:11:00.0");
    EXPECT_STREQ(remote.legacy_bus_id, "0000:11:00.0");
  }
  EXPECT_EQ(call("nvmlDeviceGetNvLinkState", device, 6U, &value), 0);
  EXPECT_EQ(value, 0U);
  EXPECT_EQ(call("nvmlDeviceGetNvLinkState", device, 18U, &value), 2);
  EXPECT_EQ(call("nvmlDeviceGetNvLinkVersion", device, 0U, &value), 0);
  EXPECT_EQ(value, 4U);
  EXPECT_EQ(call("nvmlDeviceGetNvLinkCapability", device, 0U, 0U, &value), 0);
  EXPECT_EQ(value, 1U);
  EXPECT_EQ(call("nvmlDeviceGetMaxPcieLinkGeneration", device, &value), 0);
  EXPECT_EQ(value, 5U);
  EXPECT_EQ(call("nvmlDeviceGetCurrPcieLinkWidth", device, &value), 0);
  EXPECT_EQ(value, 16U);
  EXPECT_EQ(call("nvmlDeviceGetHandleByPciBusId_v2", "0000:99:00.0", &device), 6);
  char text[64];
  EXPECT_EQ(call("nvmlSystemGetDriverVersion", &text[0], 64U), 0);
  EXPECT_STREQ(text, "580.00 (fake)");
  EXPECT_EQ(call("nvmlSystemGetDriverVersion", &text[0], 4U), 7);
  EXPECT_EQ(call("nvmlShutdown"), 0);
  EXPECT_EQ(call("nvmlShutdown"), 1);
}

TEST_F(Nvml, TellsOfSwitches) {
  reset(machine(4));
  void* device = nullptr;
  unsigned type = 0;
  ASSERT_EQ(call("nvmlInit_v2"), 0);
  ASSERT_EQ(call("nvmlDeviceGetHandleByPciBusId_v2", "0000:13:00.0", &device), 0);
  EXPECT_EQ(call("nvmlDeviceGetNvLinkRemoteDeviceType", device, 17U, &type), 0);
  EXPECT_EQ(type, 2U);
  EXPECT_EQ(call("nvmlShutdown"), 0);
}

TEST_F(Nvml, KnowsALostDevice) {
  void* device = nullptr;
  unsigned value = 0;
  ASSERT_EQ(call("nvmlInit_v2"), 0);
  ASSERT_EQ(call("nvmlDeviceGetHandleByPciBusId_v2", "0000:10:00.0", &device), 0);
  lose_device(0);
  EXPECT_EQ(call("nvmlDeviceGetNvLinkState", device, 0U, &value), 15);
  EXPECT_EQ(call("nvmlShutdown"), 0);
}

TEST_F(Nvml, MayNotAnswer) {
  auto without = machine();
  without.has_nvml = false;
  reset(without);
  EXPECT_EQ(call("nvmlInit_v2"), 9);
}

}  // namespace
}  // namespace harvest::fake_cuda
