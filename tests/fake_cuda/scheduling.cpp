// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>

#include "fake_cuda/state.hpp"

/// Streams as threads: each runs its own queue in order; an entry starts when all that it follows has ended.
namespace harvest::fake_cuda::internal {
namespace {

bool is_ready(const Stream& stream) {
  if (stream.queue.empty()) return false;
  const auto& after = stream.queue.front().after;
  return std::all_of(after.begin(), after.end(),
                     [](const CompletionRef& completion) { return completion->done; });
}

void complete(Completion& completion) {
  completion.done = true;
  completion.when = Clock::now();
  release_edge(&completion);
  for (const auto& waiting : completion.wakes) {
    if (const auto stream = waiting.lock()) stream->wake.notify_all();
  }
  completion.wakes.clear();
  state().host_wake.notify_all();
}

void sleep_unlocked(Lock& lock, std::uint32_t us) {
  lock.unlock();
  std::this_thread::sleep_for(std::chrono::microseconds(us));
  lock.lock();
}

/// Most work starts at once, some late: both orders of what is not ordered come up.
void delay(Lock& lock, Stream& stream) {
  const auto longest_us = state().machine.max_delay_us;
  if (longest_us == 0 || stream.random() % 4 != 0) return;
  sleep_unlocked(lock, static_cast<std::uint32_t>(stream.random() % (longest_us + 1)));
}

void run_work(Lock& lock, Stream& stream, const Work& work) {
  auto& device = state().devices[static_cast<std::size_t>(stream.device)];
  if (work.has_delay() && device.sticky == cudaSuccess) delay(lock, stream);
  if (device.sticky != cudaSuccess || stream.stop) return;  // nothing runs after an error
  if (const auto lost = state().faults.on_device_work(stream.device)) {
    state().poison(stream.device, static_cast<cudaError_t>(*lost), "lost while work ran");
    return;
  }
  const auto error = work.run(lock);
  if (error != cudaSuccess) state().poison(stream.device, error, state().complaint);
}

/// Runs the stream's work until there is no stream any more.
void serve_queue(Lock& lock, const StreamRef& stream) {
  for (;;) {
    stream->wake.wait(lock, [&] {
      return stream->stop || is_ready(*stream) || (stream->destroyed && stream->queue.empty());
    });
    if (stream->stop || stream->queue.empty()) return;
    const auto entry = stream->queue.front();
    acquire_edge(entry.completion.get());  // released by who gave the work
    for (const auto& before : entry.after) acquire_edge(before.get());
    if (entry.work != nullptr) run_work(lock, *stream, *entry.work);
    if (stream->stop) return;
    stream->queue.pop_front();
    complete(*entry.completion);
  }
}

void serve(const StreamRef& stream) {
  const Inside inside;
  Lock lock(state().mutex);
  serve_queue(lock, stream);
  --state().workers;
  state().host_wake.notify_all();
}

}  // namespace

CompletionRef State::enqueue(const StreamRef& stream, WorkRef work, std::vector<CompletionRef> after) {
  auto& device = devices[static_cast<std::size_t>(stream->device)];
  // The legacy default stream waits for all blocking streams of its device, and they for it.
  if (stream->is_legacy) {
    for_each_stream(stream->device, [&](const StreamRef& other) {
      if (other->is_blocking() && other->tail != nullptr) after.push_back(other->tail);
    });
  } else if (stream->is_blocking() && device.legacy != nullptr && device.legacy->tail != nullptr) {
    after.push_back(device.legacy->tail);
  }
  for (const auto& before : after) {
    if (!before->done) before->wakes.push_back(stream);
  }

  auto completion = std::make_shared<Completion>();
  release_edge(completion.get());
  stream->queue.push_back({std::move(work), std::move(after), completion});
  stream->tail = completion;
  if (!stream->started) {
    stream->started = true;
    ++workers;
    stream->worker = std::thread(serve, stream);
  }
  stream->wake.notify_all();
  return completion;
}

void State::wait_on_host(Lock& lock, CompletionRef completion) {  // NOLINT: its owner may go on to another
  if (completion == nullptr) return;
  host_wake.wait(lock, [&] { return completion->done || shut_down; });
  acquire_edge(completion.get());
}

void State::for_each_stream(int device, const std::function<void(const StreamRef&)>& visit) {
  auto& own = devices[static_cast<std::size_t>(device)];
  if (own.legacy != nullptr) visit(own.legacy);
  for (const auto& [thread, stream] : own.per_thread) visit(stream);
  for (const auto& [number, stream] : streams) {
    if (stream->device == device) visit(stream);
  }
  for (const auto& stream : retired) {
    if (stream->device == device) visit(stream);
  }
}

void State::synchronise_device(Lock& lock, int device) {
  std::vector<CompletionRef> tails;
  for_each_stream(device, [&](const StreamRef& stream) {
    if (stream->tail != nullptr) tails.push_back(stream->tail);
  });
  for (const auto& tail : tails) wait_on_host(lock, tail);
}

void State::reap() {
  for (auto& stream : retired) {
    if (!stream->queue.empty()) continue;
    if (stream->worker.joinable()) stream->worker.detach();  // it has nothing left to do but to end
    stream = nullptr;
  }
  std::erase(retired, nullptr);
}

bool State::stop_all(Lock& lock, std::chrono::milliseconds patience) {
  std::vector<StreamRef> all = retired;
  for (std::size_t i = 0; i < devices.size(); ++i) {
    for_each_stream(static_cast<int>(i), [&](const StreamRef& stream) { all.push_back(stream); });
  }
  for (const auto& stream : all) {
    stream->stop = true;
    stream->wake.notify_all();
  }
  const bool stopped = host_wake.wait_for(lock, patience, [&] { return workers == 0; });
  for (const auto& stream : all) {
    if (stream->worker.joinable()) stream->worker.detach();
    if (stopped) stream->queue.clear();
  }
  return stopped;
}

}  // namespace harvest::fake_cuda::internal
