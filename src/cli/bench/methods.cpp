// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/methods.hpp"

#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <set>
#include <system_error>

namespace harvest::cli::bench {
namespace {

constexpr std::uint32_t kKernelBlocks = 32;  // of one large copy: enough for any link

/// A file of one's own, gone with the object.
class TemporaryFile {
 public:
  static Result<TemporaryFile> create() {
    std::error_code error;
    const auto folder = std::filesystem::temp_directory_path(error);
    std::string path = (folder / "harvest-calibration-XXXXXX").string();
    const int file = error ? -1 : ::mkstemp(path.data());
    if (file < 0)
      return fail(ErrorCode::unavailable,
                  fmt::format("no temporary file in {}: {}", folder.string(),
                              error ? error.message() : std::generic_category().message(errno)));
    ::close(file);
    std::filesystem::remove(path, error);  // only the name is wanted: an empty file is no calibration
    return TemporaryFile(std::move(path));
  }
  TemporaryFile(TemporaryFile&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  TemporaryFile& operator=(TemporaryFile&&) = delete;
  ~TemporaryFile() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove(path_, ignored);
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  explicit TemporaryFile(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace

Result<MeasuredMachine> open_by_method(const MachineChoice& choice, cuda::CopyMethod method,
                                       std::uint32_t blocks) {
  const auto known = MeasuredMachine::open(choice);
  if (!known) return tl::unexpected(known.error());
  const BackendInfo& info = known->backend().info();
  const std::string& why_not = method == cuda::CopyMethod::kernel  ? info.no_kernels
                               : method == cuda::CopyMethod::batch ? info.no_batches
                                                                   : std::string();
  if (!why_not.empty()) return fail(ErrorCode::not_supported, why_not);
  const auto file = TemporaryFile::create();
  if (!file) return tl::unexpected(file.error());
  std::set<std::string> cards;
  for (const DeviceInfo& device : known->devices())
    if (device.id != kHost) cards.insert(device.name);
  for (const std::string& card : cards)
    if (Status written = cuda::write_calibration(
            file->path(), {card, info.driver, cuda::forced_calibration(method, blocks)});
        !written)
      return tl::unexpected(written.error());
  CudaOptions options;
  options.calibration_file = file->path();
  return MeasuredMachine::open(choice, SimulatedBytes::real, options);
}

Result<Methods> Methods::open(const MachineChoice& choice) {
  Methods methods;
  if (!choice.system.empty()) {
    auto machine = MeasuredMachine::open(choice);
    if (!machine) return tl::unexpected(machine.error());
    methods.found.push_back({"copy_engine", std::move(*machine)});
    return methods;
  }
  for (const auto& [name, method] :
       {std::pair{"copy_engine", cuda::CopyMethod::single}, std::pair{"kernel", cuda::CopyMethod::kernel}}) {
    auto machine = open_by_method(choice, method, kKernelBlocks);
    if (machine)
      methods.found.push_back({name, std::move(*machine)});
    else if (machine.error().code == ErrorCode::not_supported && has_cuda())
      methods.missing.push_back({name, machine.error().message});
    else
      return tl::unexpected(machine.error());
  }
  return methods;
}

}  // namespace harvest::cli::bench
