// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>
#include <link.h>

#include <string>

#include "fake_cuda/trial.hpp"

/// That a program of `harvest_use_fake_cuda` runs on the fake and on nothing else.
namespace harvest::fake_cuda {
namespace {

std::vector<std::string> loaded_libraries() {
  std::vector<std::string> paths;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* found) {
        static_cast<std::vector<std::string>*>(found)->emplace_back(info->dlpi_name);
        return 0;
      },
      &paths);
  return paths;
}

TEST(Loading, TheFakeIsTheOnlyCudaRuntime) {
  int runtimes = 0;
  for (const auto& path : loaded_libraries()) {
    if (path.find("libcudart") == std::string::npos) continue;
    ++runtimes;
    EXPECT_NE(path.find("fake_cuda/lib/"), std::string::npos) << path;
  }
  EXPECT_EQ(runtimes, 1);
  EXPECT_NE(library_path().find("fake_cuda/lib/"), std::string::npos) << library_path();
}

TEST(Loading, NvmlByNameIsTheFake) {
  void* nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(nvml, nullptr) << dlerror();
  Dl_info info{};
  ASSERT_NE(dladdr(dlsym(nvml, "nvmlInit_v2"), &info), 0);
  EXPECT_NE(std::string(info.dli_fname).find("fake_cuda/lib/"), std::string::npos) << info.dli_fname;
  dlclose(nvml);
}

TEST(Loading, NoDriverIsLoaded) {
  for (const auto& path : loaded_libraries()) EXPECT_EQ(path.find("libcuda.so"), std::string::npos) << path;
}

}  // namespace
}  // namespace harvest::fake_cuda
