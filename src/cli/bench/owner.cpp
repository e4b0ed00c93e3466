// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/owner.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <harvest/cuda.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <system_error>
#include <vector>

#include "cli/bench/resources.hpp"

extern char** environ;  // NOLINT(readability-redundant-declaration): POSIX has it in no header

namespace harvest::cli::bench {
namespace {

class SimulatedOwner final : public Owner {
 public:
  SimulatedOwner(SimulatedBackend& machine, DeviceId device) : machine_(machine), device_(device) {}
  ~SimulatedOwner() override { static_cast<void>(SimulatedOwner::give_back()); }
  SimulatedOwner(const SimulatedOwner&) = delete;
  SimulatedOwner& operator=(const SimulatedOwner&) = delete;

  std::string who() const override { return "a simulated tenant"; }
  Status take_all_but(std::uint64_t leave_bytes) override {
    const auto memory = machine_.query_memory(device_);
    if (!memory) return tl::unexpected(memory.error());
    return take(memory->free_bytes - std::min(memory->free_bytes, leave_bytes));
  }
  Result<TimeNs> allocate(std::uint64_t bytes) override {
    const TimeNs begin = machine_.now_ns();
    if (Status taken = take(bytes); !taken) return tl::unexpected(taken.error());
    return machine_.now_ns() - begin;
  }
  Status give_back() override { return machine_.tenant_free(device_, std::exchange(held_bytes_, 0)); }

 private:
  Status take(std::uint64_t bytes) {
    Status taken = machine_.tenant_allocate(device_, bytes);
    if (taken) held_bytes_ += bytes;
    return taken;
  }

  SimulatedBackend& machine_;
  DeviceId device_;
  std::uint64_t held_bytes_ = 0;
};

// The two processes talk in lines: "take_all_but N", "allocate N", "give_back" there; "ok NANOSECONDS" or
// "error TEXT" back. The first line back says that the process is ready.

class OwnerProcess final : public Owner {
 public:
  static Result<std::unique_ptr<Owner>> start(DeviceId gpu);
  ~OwnerProcess() override;
  OwnerProcess(const OwnerProcess&) = delete;
  OwnerProcess& operator=(const OwnerProcess&) = delete;

  std::string who() const override { return "another process"; }
  Status take_all_but(std::uint64_t leave_bytes) override {
    return ask(fmt::format("take_all_but {}\n", leave_bytes)).map([](TimeNs) {});
  }
  Result<TimeNs> allocate(std::uint64_t bytes) override { return ask(fmt::format("allocate {}\n", bytes)); }
  Status give_back() override {
    return ask("give_back\n").map([](TimeNs) {});
  }

 private:
  OwnerProcess(pid_t process, std::FILE* to, std::FILE* from) : process_(process), to_(to), from_(from) {}
  Result<TimeNs> ask(const std::string& line);
  Result<TimeNs> answer();

  pid_t process_;
  std::FILE* to_;
  std::FILE* from_;
};

Error of_system(const char* what, int error) {
  return {ErrorCode::unavailable, fmt::format("{}: {}", what, std::generic_category().message(error))};
}

Result<std::unique_ptr<Owner>> OwnerProcess::start(DeviceId gpu) {
  std::array<int, 2> there{};
  std::array<int, 2> back{};
  if (::pipe2(there.data(), O_CLOEXEC) != 0) return tl::unexpected(of_system("pipe", errno));
  if (::pipe2(back.data(), O_CLOEXEC) != 0) {
    const int error = errno;
    for (const int end : there) ::close(end);
    return tl::unexpected(of_system("pipe", error));
  }
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, there[0], STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, back[1], STDOUT_FILENO);
  std::vector<std::string> words{"harvest", "bench", "reclaim", kOwnerOption, fmt::format("{}", gpu)};
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t process = 0;
  const int error = ::posix_spawn(&process, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(there[0]);
  ::close(back[1]);
  if (error != 0) {
    ::close(there[1]);
    ::close(back[0]);
    return tl::unexpected(of_system("the owner's process does not start", error));
  }
  std::unique_ptr<OwnerProcess> owner(
      new OwnerProcess(process, ::fdopen(there[1], "w"), ::fdopen(back[0], "r")));
  if (owner->to_ == nullptr || owner->from_ == nullptr) return tl::unexpected(of_system("fdopen", errno));
  if (const auto ready = owner->answer(); !ready) return tl::unexpected(ready.error());
  return owner;
}

OwnerProcess::~OwnerProcess() {
  if (to_ != nullptr) std::fclose(to_);  // the end of its input is the end of its work
  if (from_ != nullptr) std::fclose(from_);
  while (::waitpid(process_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

Result<TimeNs> OwnerProcess::ask(const std::string& line) {
  if (std::fputs(line.c_str(), to_) < 0 || std::fflush(to_) != 0)
    return fail(ErrorCode::unavailable, "the owner's process is gone");
  return answer();
}

Result<TimeNs> OwnerProcess::answer() {
  std::array<char, 1024> line{};
  if (std::fgets(line.data(), static_cast<int>(line.size()), from_) == nullptr)
    return fail(ErrorCode::unavailable, "the owner's process is gone");
  std::istringstream words(line.data());
  std::string word;
  TimeNs ns = 0;
  if (words >> word && word == "ok" && words >> ns) return ns;
  std::string text(line.data());
  text.erase(text.find_last_not_of('\n') + 1);
  return fail(ErrorCode::out_of_memory, "the owner's process: " + text);
}

/// What the other process holds.
class Holdings {
 public:
  Holdings(Backend& backend, DeviceId gpu) : backend_(backend), gpu_(gpu) {}

  Status obey(const std::string& order, std::uint64_t bytes) {
    if (order == "allocate") return take(bytes);
    if (order == "give_back") {
      segments_.clear();
      return {};
    }
    if (order != "take_all_but")
      return fail(ErrorCode::invalid_argument, fmt::format("no order '{}'", order));
    const auto memory = backend_.query_memory(gpu_);
    if (!memory) return tl::unexpected(memory.error());
    return take(memory->free_bytes - std::min(memory->free_bytes, bytes));
  }

 private:
  Status take(std::uint64_t bytes) {
    constexpr std::uint64_t kPartBytes = 1ULL << 30;
    const std::uint64_t unit = device_of(backend_, gpu_)->segment_granularity_bytes;
    for (std::uint64_t left = bytes / unit * unit; left > 0;) {
      auto segment = Segment::map(backend_, gpu_, std::min(left, kPartBytes));
      if (!segment) return tl::unexpected(segment.error());
      left -= segment->bytes();
      segments_.push_back(std::move(*segment));
    }
    return {};
  }

  Backend& backend_;
  DeviceId gpu_;
  std::vector<Segment> segments_;
};

void say(const std::string& line) {
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

}  // namespace

Result<std::unique_ptr<Owner>> make_owner(const MeasuredMachine& machine, DeviceId device) {
  const DeviceId gpu = machine.is_loopback() ? 0 : device;  // in loopback the peer is the GPU itself
  if (machine.simulated() != nullptr) return std::make_unique<SimulatedOwner>(*machine.simulated(), gpu);
  // A pipe whose reader has died is an error that we tell, not a signal that ends us.
  std::signal(SIGPIPE, SIG_IGN);
  return OwnerProcess::start(gpu);
}

Exit run_owner(DeviceId gpu) {
  auto backend = make_cuda_backend();
  if (!backend || device_of(**backend, gpu) == nullptr) {
    say(fmt::format("error {}", backend ? fmt::format("no GPU {}", gpu) : backend.error().message));
    return Exit::failed;
  }
  Holdings holdings(**backend, gpu);
  say("ok 0");
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string order;
    std::uint64_t bytes = 0;
    words >> order >> bytes;
    const TimeNs begin = (*backend)->now_ns();
    const Status done = holdings.obey(order, bytes);
    say(done ? fmt::format("ok {}", (*backend)->now_ns() - begin) : "error " + done.error().message);
  }
  return Exit::ok;
}

}  // namespace harvest::cli::bench
