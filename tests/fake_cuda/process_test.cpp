// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "fake_cuda/driver_calls.hpp"
#include "fake_cuda/sanitizer.hpp"

/// Several processes with one device; and whole programs, whose machine and end are looked at.
namespace harvest::fake_cuda {
namespace {

/// A variable of the environment for a scope, for this process and those that it starts.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  ~Variable() { unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text = "") {
    path_ = (std::getenv("TMPDIR") != nullptr ? std::getenv("TMPDIR") : std::string("/tmp")) +
            "/fake_cuda_XXXXXX";
    const int fd = mkstemp(path_.data());
    EXPECT_GE(fd, 0);
    close(fd);
    if (!text.empty()) std::ofstream(path_) << text;
  }
  ~TemporaryFile() { unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string text() const {
    std::ostringstream text;
    text << std::ifstream(path_).rdbuf();
    return text.str();
  }

 private:
  std::string path_;
};

/// The helper program, with a channel for single bytes.
class Process {
 public:
  explicit Process(std::vector<std::string> task, const std::string& errors_to = "/dev/null") {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    channel_ = ends[0];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 3);
    posix_spawn_file_actions_addopen(&actions, 2, errors_to.c_str(), O_WRONLY, 0);
    std::string program = HARVEST_PROCESS;
    std::vector<char*> arguments{program.data()};
    for (auto& word : task) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    EXPECT_EQ(posix_spawn(&pid_, HARVEST_PROCESS, &actions, nullptr, arguments.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
  }
  ~Process() {
    close(channel_);
    if (pid_ > 0) (void)wait();
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void say(char word) const { EXPECT_EQ(::write(channel_, &word, 1), 1); }
  [[nodiscard]] char hear() const {
    char word = 0;
    return ::read(channel_, &word, 1) == 1 ? word : '\0';
  }
  void send_descriptor(int fd) const {
    char word = 'x';
    iovec data{&word, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    auto* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    EXPECT_EQ(sendmsg(channel_, &message, 0), 1);
  }
  /// Its status; -1 where it ended by a signal.
  int wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  int channel_ = -1;
};

class Sharing : public ::testing::Test {
 protected:
  void SetUp() override { reset(); }
  void TearDown() override {
    EXPECT_EQ(to_string(leaks()), "nothing");
    reset();  // while the file is there
  }
  TemporaryFile file_{};
  Variable shared_{"HARVEST_FAKE_CUDA_SHARED", file_.path()};
  Variable devices_{"HARVEST_FAKE_CUDA_DEVICES", "1"};
  Variable bytes_{"HARVEST_FAKE_CUDA_BYTES", std::to_string(64 * kMiB)};
};

TEST_F(Sharing, TwoProcessesCompeteForOneDevice) {
  EXPECT_EQ(used_bytes(0), 0U);
  Process other({"hold", std::to_string(40 * kMiB)});
  ASSERT_EQ(other.hear(), 'y');
  std::size_t free_bytes = 0;
  std::size_t total = 0;
  ASSERT_CUDA(cudaSuccess, cudaMemGetInfo(&free_bytes, &total));
  EXPECT_EQ(free_bytes, 24 * kMiB);
  void* memory = nullptr;
  EXPECT_CUDA(cudaErrorMemoryAllocation, cudaMalloc(&memory, 32 * kMiB));
  other.say('f');
  ASSERT_EQ(other.hear(), 'f');
  EXPECT_CUDA(cudaSuccess, cudaMalloc(&memory, 32 * kMiB));
  Process third({"hold", std::to_string(40 * kMiB)});
  EXPECT_EQ(third.hear(), 'n');
  EXPECT_CUDA(cudaSuccess, cudaFree(memory));
  third.say('f');
  ASSERT_EQ(third.hear(), 'f');
  third.say('e');
  other.say('e');
  EXPECT_EQ(other.wait(), 0);
  EXPECT_EQ(third.wait(), 0);
}

TEST_F(Sharing, WhatAProcessHeldIsFreeWhenItDies) {
  Process other({"hold", std::to_string(40 * kMiB)});
  ASSERT_EQ(other.hear(), 'y');
  EXPECT_EQ(used_bytes(0), 40 * kMiB);
  other.say('d');
  EXPECT_EQ(other.wait(), -1);
  EXPECT_EQ(used_bytes(0), 0U);
}

TEST_F(Sharing, AnImportersMappingPinsTheMemory) {
  Process other({"import"});
  auto segment = std::make_unique<Segment>(0, kGranularity, true);
  const int value = 41;
  ASSERT_TRUE(write(segment->get(), &value, sizeof value));
  int fd = -1;
  ASSERT_CUDA(CUDA_SUCCESS,
              segment->cu.export_handle(&fd, segment->handle(), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  other.send_descriptor(fd);
  close(fd);
  ASSERT_EQ(other.hear(), 'i');
  int found = 0;
  ASSERT_TRUE(read(segment->get(), &found, sizeof found));
  EXPECT_EQ(found, 42) << "the other process wrote it";
  EXPECT_EQ(used_bytes(0), kGranularity) << "it is counted once";
  segment.reset();
  EXPECT_EQ(used_bytes(0), kGranularity) << "the importer still has it";
  other.say('g');
  ASSERT_EQ(other.hear(), 'g');
  EXPECT_EQ(used_bytes(0), 0U);
  other.say('e');
  EXPECT_EQ(other.wait(), 0);
}

TEST_F(Sharing, AnImporterThatDiesLetsGo) {
  Process other({"import"});
  auto segment = std::make_unique<Segment>(0, kGranularity, true);
  const int value = 41;
  ASSERT_TRUE(write(segment->get(), &value, sizeof value));
  int fd = -1;
  ASSERT_CUDA(CUDA_SUCCESS,
              segment->cu.export_handle(&fd, segment->handle(), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  other.send_descriptor(fd);
  close(fd);
  ASSERT_EQ(other.hear(), 'i');
  segment.reset();
  EXPECT_EQ(used_bytes(0), kGranularity);
  other.say('g');
  other.say('e');
  (void)other.wait();
  EXPECT_EQ(used_bytes(0), 0U);
}

TEST(Programs, GetTheirMachineFromTheEnvironment) {
  {
    const Variable devices("HARVEST_FAKE_CUDA_DEVICES", "5");
    EXPECT_EQ(Process({"count"}).wait(), 5);
  }
  const TemporaryFile machine(R"({"devices": [{"count": 7}]})");
  const Variable path("HARVEST_FAKE_CUDA_MACHINE", machine.path());
  EXPECT_EQ(Process({"count"}).wait(), 7);
  const Variable faults("HARVEST_FAKE_CUDA_FAULTS", "fail:cudaGetDeviceCount@1=100");
  EXPECT_EQ(Process({"count"}).wait(), 93);
}

TEST(Programs, AreToldOfBadDescriptions) {
  const TemporaryFile errors;
  const TemporaryFile machine("{");
  const Variable path("HARVEST_FAKE_CUDA_MACHINE", machine.path());
  EXPECT_EQ(Process({"count"}, errors.path()).wait(), 93);
  EXPECT_NE(errors.text().find("fake cuda: machine:"), std::string::npos) << errors.text();
}

TEST(Programs, AreToldWhatTheyLeaked) {
  const TemporaryFile errors;
  EXPECT_EQ(Process({"leak"}, errors.path()).wait(), 0);
  EXPECT_NE(errors.text().find("leaked at exit: 1 streams"), std::string::npos) << errors.text();
  const Variable mode("HARVEST_FAKE_CUDA_LEAKS", "fail");
  EXPECT_EQ(Process({"leak"}).wait(), 23);
  EXPECT_EQ(Process({"count"}).wait(), 2) << "who leaks nothing is not bothered";
}

TEST(Programs, DoNotGoOnInAForkedChild) {
  reset(uniform_machine(1));
  int count = 0;
  ASSERT_CUDA(cudaSuccess, cudaGetDeviceCount(&count));
  const pid_t child = fork();
  if (child == 0) _exit(cudaGetDeviceCount(&count) == cudaErrorInitializationError ? 7 : 8);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST(Programs, AreOrderedByEvents) {
  EXPECT_EQ(Process({"read_after_event"}).wait(), 0);
  EXPECT_EQ(Process({"copy_after_event"}).wait(), 0);
}

#if defined(HARVEST_FAKE_CUDA_TSAN)
TEST(Programs, MissingAnEventAreFoundByTheThreadSanitizer) {
  const Variable options("TSAN_OPTIONS", "exitcode=66");
  const TemporaryFile errors;
  EXPECT_EQ(Process({"read_without_event"}, errors.path()).wait(), 66);
  EXPECT_NE(errors.text().find("data race"), std::string::npos) << errors.text();
  EXPECT_EQ(Process({"copy_without_event"}, errors.path()).wait(), 66)
      << "between two devices' streams as well";
}
#endif

}  // namespace
}  // namespace harvest::fake_cuda
