// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything, for programs that do not mind. Read in this order to learn the library:
/// types, status, peer_cache, stats, topology, backend, machine, simulated_backend, cuda, loopback, policy,
/// runner, trace; then moe/model, moe/expert_cache, moe/predictor, moe/routing; and kv/layout, kv/keys,
/// kv/block_cache.
#include <harvest/backend.hpp>
#include <harvest/cuda.hpp>
#include <harvest/kv/block_cache.hpp>
#include <harvest/kv/keys.hpp>
#include <harvest/kv/layout.hpp>
#include <harvest/loopback.hpp>
#include <harvest/machine.hpp>
#include <harvest/moe/expert_cache.hpp>
#include <harvest/moe/model.hpp>
#include <harvest/moe/predictor.hpp>
#include <harvest/moe/routing.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/policy.hpp>
#include <harvest/runner.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/stats.hpp>
#include <harvest/status.hpp>
#include <harvest/topology.hpp>
#include <harvest/trace.hpp>
#include <harvest/types.hpp>
