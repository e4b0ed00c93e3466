// SPDX-License-Identifier: Apache-2.0
#include "simulator/trial.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <stdexcept>
#include <string_view>

namespace harvest::simulator {
namespace {

constexpr std::uint32_t kOperationsBetweenAlarms = 16;

/// What a life and its parent both see.
struct Progress {
  std::uint32_t number = 0;
  Operation operation = Operation::calm;
  bool finished = false;
  LifeResult result;
};

struct Child {
  pid_t process = -1;
  int output = -1;  ///< its standard error
  std::string text;
  Case life;
  Progress* progress = nullptr;
};

[[noreturn]] void be_the_child(const Case& life, const TrialOptions& options, int output,
                               Progress& progress) {
  dup2(output, STDERR_FILENO);
  alarm(options.patience_s);
  progress.result = live(life, options.repeat, false, [&](std::uint32_t number, Operation) {
    progress.number = number;
    if (number % kOperationsBetweenAlarms == 0) alarm(options.patience_s);
  });
  progress.finished = true;
  _exit(0);
}

Child begin(const Case& life, const TrialOptions& options) {
  Child child;
  child.life = life;
  void* const shared =
      mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  int ends[2] = {-1, -1};
  if (shared == MAP_FAILED || pipe(ends) != 0)
    throw std::runtime_error(fmt::format("no memory or pipe for a life: {}", std::strerror(errno)));
  child.progress = new (shared) Progress;
  child.output = ends[0];
  child.process = fork();
  if (child.process < 0)
    throw std::runtime_error(fmt::format("no process for a life: {}", std::strerror(errno)));
  if (child.process == 0) {
    close(ends[0]);
    be_the_child(life, options, ends[1], *child.progress);
  }
  close(ends[1]);
  return child;
}

/// The first line that names an invariant, or else the last of what a process said when it ended.
std::string what_happened(const std::string& text, int status) {
  std::string last;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    if (!line.empty() && line.find("[warning]") == std::string::npos &&
        line.find("[error]") == std::string::npos) {
      last = line;
      break;
    }
    at = end + 1;
  }
  if (!last.empty()) return last.starts_with("harvest: ") ? "assertion: " + last : last;
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) return "hang: an operation does not end";
  return WIFSIGNALED(status) ? fmt::format("signal: {}", strsignal(WTERMSIG(status)))
                             : fmt::format("exit: code {}", WEXITSTATUS(status));
}

Outcome end(Child& child) {
  int status = 0;
  while (waitpid(child.process, &status, 0) < 0 && errno == EINTR) {
  }
  close(child.output);
  Outcome outcome;
  outcome.life = child.life;
  outcome.passed = WIFEXITED(status) && WEXITSTATUS(status) == 0 && child.progress->finished;
  outcome.result = child.progress->result;
  outcome.number = child.progress->number;
  if (!outcome.passed) outcome.message = what_happened(child.text, status);
  munmap(child.progress, sizeof(Progress));
  return outcome;
}

/// Reads what the children say, and takes out those that have ended.
std::vector<Outcome> listen(std::vector<Child>& children) {
  std::vector<pollfd> ends;
  for (const Child& child : children) ends.push_back({child.output, POLLIN, 0});
  ::poll(ends.data(), ends.size(), -1);
  std::vector<Outcome> ended;
  for (std::size_t i = children.size(); i-- > 0;) {
    if (ends[i].revents == 0) continue;
    char buffer[4096];
    const ssize_t read_bytes = read(children[i].output, buffer, sizeof buffer);
    if (read_bytes > 0) {
      children[i].text.append(buffer, static_cast<std::size_t>(read_bytes));
      continue;
    }
    ended.push_back(end(children[i]));
    children.erase(children.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return ended;
}

}  // namespace

void run_trials(const TrialOptions& options, const std::function<bool(Case& life)>& next,
                const std::function<bool(const Outcome& outcome)>& tell) {
  std::vector<Child> children;
  bool more = true;
  bool go_on = true;
  while (true) {
    while (go_on && more && children.size() < options.jobs) {
      Case life;
      more = next(life);
      if (more) children.push_back(begin(life, options));
    }
    if (children.empty()) return;
    for (const Outcome& outcome : listen(children))
      if (go_on) go_on = tell(outcome);
    if (go_on) continue;
    for (Child& child : children) kill(child.process, SIGKILL);
  }
}

Outcome try_case(const Case& life, const TrialOptions& options) {
  Child child = begin(life, options);
  std::vector<Child> children;
  children.push_back(std::move(child));
  while (true) {
    std::vector<Outcome> ended = listen(children);
    if (!ended.empty()) return std::move(ended.front());
  }
}

}  // namespace harvest::simulator
