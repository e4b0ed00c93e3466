// SPDX-License-Identifier: Apache-2.0
// The experts of a model in safetensors files, brought to a GPU that cannot hold them all: what a loader of
// one's own needs of Harvest.
//
//   expert_loader --generate FILE     writes a small model with names as in Mixtral
//   expert_loader FILE...             walks its layers, and checks every byte that arrives
//
// The machine is simulated. On real GPUs it is make_cuda_backend of <harvest/cuda.hpp> and a harvest::Runner
// that polls the PeerCache; nothing else changes.
#include <fmt/format.h>
#include <harvest/harvest.hpp>
#include <harvest/moe/expert_cache.hpp>

#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mixtral_file.hpp"
#include "safetensors.hpp"

using namespace harvest;
using examples::SafetensorsFile;

namespace {

constexpr std::array<const char*, 3> kMatrices{"w1", "w2", "w3"};  // gate, down, up
constexpr std::uint32_t kTopK = 2, kTokens = 32;

template <typename T>
T need(Result<T> result) {
  if (result) return std::move(*result);
  fmt::print(stderr, "expert_loader: {}\n", result.error().message);
  std::exit(1);
}

void need(const Status& status) {
  need(status ? Result<int>(0) : tl::unexpected(status.error()));
}

/// A model that is too large for one file lies in several.
const examples::Tensor* find(const std::vector<SafetensorsFile>& files, std::uint32_t layer,
                             std::uint32_t expert, const char* matrix) {
  for (const SafetensorsFile& file : files)
    if (const auto* tensor = file.find(examples::mixtral_expert_tensor(layer, expert, matrix))) return tensor;
  return nullptr;
}

/// All experts are as the first one is.
const examples::Tensor& tensor_of(const std::vector<SafetensorsFile>& files, std::uint32_t layer,
                                  std::uint32_t expert, const char* matrix) {
  const auto* tensor = find(files, layer, expert, matrix);
  const auto* first = find(files, 0, 0, matrix);
  const std::string name = examples::mixtral_expert_tensor(layer, expert, matrix);
  if (tensor == nullptr || first == nullptr)
    need(fail(ErrorCode::not_found, name + " is in none of the files"));
  if (tensor->bytes.size() != first->bytes.size())
    need(fail(ErrorCode::malformed, fmt::format("{} has {} bytes, that of layer 0 and expert 0 has {}", name,
                                                tensor->bytes.size(), first->bytes.size())));
  return *tensor;
}

moe::ModelDescription describe(const std::vector<SafetensorsFile>& files) {
  moe::ModelDescription model;
  model.top_k = kTopK;
  for (const char* matrix : kMatrices)
    model.tensors.push_back({matrix, tensor_of(files, 0, 0, matrix).bytes.size()});
  while (find(files, model.layers, 0, kMatrices.front()) != nullptr) ++model.layers;
  while (find(files, 0, model.experts, kMatrices.front()) != nullptr) ++model.experts;
  return model;
}

/// The bytes stay in the mapped files: Harvest is told where.
void add_experts(moe::ExpertCache& experts, const std::vector<SafetensorsFile>& files) {
  for (const SafetensorsFile& file : files)
    need(experts.pin_weights(file.mapping().data(), file.mapping().size()));
  for (std::uint32_t layer = 0; layer < experts.config().model.layers; ++layer)
    for (std::uint32_t expert = 0; expert < experts.config().model.experts; ++expert) {
      std::array<const std::byte*, kMatrices.size()> addresses{};
      for (std::size_t i = 0; i < kMatrices.size(); ++i)
        addresses[i] = tensor_of(files, layer, expert, kMatrices[i]).bytes.data();
      need(experts.add_expert(layer, expert, addresses));
    }
}

/// A kernel would read here. The example copies the bytes back, behind what the stream waits for, and
/// compares.
bool is_right(Backend& backend, StreamId stream, const std::byte* address, const examples::Tensor& tensor) {
  std::vector<std::byte> scratch(tensor.bytes.size());
  const Copy back{scratch.data(), address, scratch.size()};
  need(backend.copy(stream, {0, kHost}, {&back, 1}));
  const EventId done = need(backend.record_event(stream));
  const bool arrived = backend.wait_event(done, kNever) == EventState::complete;
  backend.release_event(done);
  return arrived && std::memcmp(scratch.data(), tensor.bytes.data(), scratch.size()) == 0;
}

int walk(const std::vector<SafetensorsFile>& files) {
  const moe::ModelDescription model = describe(files);
  need(model.validate());
  auto backend = need(make_simulated_backend(need(machine_from_preset("2xh100-nvl"))));
  auto cache = need(PeerCache::create(*backend, {.consumer = 0}));
  moe::ExpertCacheConfig config;
  config.model = model;
  config.local_budget_bytes = model.layers * model.experts * model.expert_bytes() / 4;
  config.predictor = "next_layer";
  auto experts = need(moe::ExpertCache::create(*cache, config));
  add_experts(*experts, files);
  const StreamId stream = need(backend->create_stream(0));

  std::uint64_t wrong = 0;
  for (std::uint32_t token = 0; token < kTokens; ++token) {
    for (std::uint32_t layer = 0; layer < model.layers; ++layer) {
      // What the router would say: one expert that is often asked for, and another.
      const std::array<std::uint32_t, kTopK> routed{(token + layer) % 3 % model.experts,
                                                    (token * 5 + layer) % model.experts};
      moe::LayerStep step = need(experts->begin_layer(layer, routed, stream));
      while (const moe::ReadyExpert* expert = step.next())
        for (std::size_t i = 0; i < kMatrices.size(); ++i)
          wrong += is_right(*backend, stream, expert->address + model.tensor_offset(i),
                            tensor_of(files, layer, expert->expert, kMatrices[i]))
                       ? 0
                       : 1;
      need(experts->end_layer(std::move(step)));
    }
    need(experts->confirm());  // before the token is shown
    experts->poll();
    cache->poll();
  }

  const moe::ExpertCacheStats stats = experts->stats();
  const auto count = [&](Tier tier) { return stats.experts(moe::Phase::decode, tier); };
  fmt::print(
      "{} layers of {} experts, {} slots: {} were local, {} came from the peer, {} from host (simulated)\n",
      model.layers, model.experts, stats.slots, count(Tier::local), count(Tier::peer), count(Tier::host));
  fmt::print("tensors that were wrong: {}\n", wrong);
  return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 2 && arguments[0] == "--generate") {
    need(examples::generate_mixtral_file(arguments[1], {}));
    return 0;
  }
  if (arguments.empty() || arguments[0].starts_with('-')) {
    fmt::print(stderr, "usage: expert_loader FILE...\n       expert_loader --generate FILE\n");
    return 2;
  }
  std::vector<SafetensorsFile> files;
  for (const std::string& path : arguments) files.push_back(need(SafetensorsFile::open(path)));
  return walk(files);
}
