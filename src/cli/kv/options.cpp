// SPDX-License-Identifier: Apache-2.0
#include "cli/kv/options.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>

#include "cli/arguments.hpp"
#include "cli/output.hpp"

namespace harvest::cli {
namespace {

constexpr std::uint64_t kGiB = 1ULL << 30;
/// What peers lend where nothing else is said: less than half of a GPU of a study's median is in use.
constexpr std::uint64_t kPeerBytes = 50 * kGiB;
constexpr double kMostFactor = 1000;

/// The fewest GPUs whose memory is a quarter KV cache at least.
std::uint32_t default_ranks(const DenseModel& model, const Machine& machine) {
  const std::uint64_t quarter = machine.devices[0].info.total_bytes / 4;
  for (std::uint32_t ranks = 1; ranks <= 8; ranks *= 2) {
    const auto rank = Rank::create(model, machine, ranks);
    if (rank && rank->kv_room_bytes() >= quarter) return ranks;
  }
  return 1;
}

/// What was typed, or `usual`; at most `limit`, and at least a block where there has to be one.
Result<std::uint64_t> size_of(const char* option, const std::string& text, std::uint64_t usual,
                              std::uint64_t limit, const std::string& whose) {
  if (text.empty()) return std::min(usual, limit);
  const auto bytes = parse_bytes(text);
  if (!bytes) return fail(bytes.error().code, fmt::format("{}: {}", option, bytes.error().message));
  if (*bytes <= limit) return *bytes;
  return fail(ErrorCode::invalid_argument, fmt::format("{}: {} do not fit: {} has {}", option,
                                                       format_bytes(*bytes), whose, format_bytes(limit)));
}

}  // namespace

void add_kv_machine(CLI::App& command, KvMachineOptions& target) {
  std::string presets;
  for (const std::string_view name : machine_preset_names())
    presets += fmt::format("{}{}", presets.empty() ? "" : ", ", name);
  add_name(command, "--system", target.system, "A machine's preset or JSON file: " + presets)
      ->type_name("NAME|FILE");
  add_name(command, "--model", target.model, "A model: " + dense_model_names());
  add_count(command, "--tensor-parallel", target.ranks, {1, 8}, "GPUs that serve the model together")
      ->default_str("as few as leave a quarter of their memory for KV cache");
  add_name(command, "--local-bytes", target.local, "The GPU's memory for KV cache")
      ->type_name("BYTES")
      ->default_str("what weights and activations leave");
  add_name(command, "--peer-bytes", target.peer, "Memory used on each peer, at most")
      ->type_name("BYTES")
      ->default_str(format_bytes(kPeerBytes));
  add_name(command, "--host-bytes", target.host, "Pinned host memory of each GPU that serves")
      ->type_name("BYTES")
      ->default_str("half of the host's, divided among its GPUs");
}

Result<KvPlace> place_of(const KvMachineOptions& options) {
  auto machine = read_system_with_peer(options.system);
  if (!machine) return tl::unexpected(machine.error());
  const auto model = find_dense_model(options.model);
  if (!model) return fail(model.error().code, "--model: " + model.error().message);
  const auto gpus = static_cast<std::uint32_t>(machine->devices.size() - 1);
  const std::uint32_t ranks =
      options.ranks != 0 ? static_cast<std::uint32_t>(options.ranks) : default_ranks(*model, *machine);
  auto rank = Rank::create(*model, *machine, ranks);
  if (!rank) return fail(rank.error().code, "--model: " + rank.error().message);
  const std::uint32_t peers = gpus <= ranks ? 0 : (gpus - ranks) / ranks;
  if (peers == 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("--tensor-parallel: {} of the {} GPUs of {} leave no peer for each", ranks, gpus,
                            machine->name));
  KvPlace place;
  place.machine = std::move(*machine);
  place.rank = *rank;
  for (std::uint32_t peer = 0; peer < peers; ++peer)
    place.peers.push_back(static_cast<DeviceId>(ranks + peer));
  const DeviceInfo& gpu = place.machine.devices[0].info;
  const DeviceInfo& host = place.machine.devices.back().info;
  const auto local = size_of("--local-bytes", options.local, UINT64_MAX, rank->kv_room_bytes(),
                             fmt::format("a GPU beside {}", model->name));
  if (!local) return tl::unexpected(local.error());
  const auto peer = size_of("--peer-bytes", options.peer, kPeerBytes, gpu.total_bytes, "a GPU");
  if (!peer) return tl::unexpected(peer.error());
  const auto pinned = size_of("--host-bytes", options.host, host.total_bytes / 2 / gpus,
                              host.total_bytes / ranks, "the host");
  if (!pinned) return tl::unexpected(pinned.error());
  place.local_bytes = *local;
  place.peer_bytes = *peer;
  place.host_bytes = *pinned;
  return place;
}

void add_factor(CLI::App& command, const std::string& name, double& target, const std::string& description) {
  command
      .add_option_function<std::string>(
          name,
          [name, &target](const std::string& text) {
            double value = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
            if (error != std::errc{} || end != text.data() + text.size() ||
                !(value > 0 && value <= kMostFactor))
              throw CLI::ValidationError(
                  name, fmt::format("'{}' is not a number above 0, at most {:g}", text, kMostFactor));
            target = value;
          },
          description)
      ->type_name("NUMBER")
      ->default_str(fmt::format("{:g}", target));
}

}  // namespace harvest::cli
