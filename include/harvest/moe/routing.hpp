// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/model.hpp>
#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

/// Which experts a model's routers pick: from a recording, or from a seeded generator that behaves like what
/// was published of real models. Both give steps:
///
///     for (std::size_t i = 0; i < trace.size(); ++i) {
///       const moe::RoutingStep step = trace.step(i);                   // or generator->next()
///       for (std::uint32_t layer = 0; layer < step.layers(); ++layer)
///         experts.begin_layer(layer, step.experts(layer), stream, step.phase());
///     }
namespace harvest::moe {

/// What a recording must know of its model.
struct RoutingShape {
  std::uint32_t layers = 0;   ///< that have experts
  std::uint32_t experts = 0;  ///< of each layer, without those that every token goes to
  std::uint32_t top_k = 0;    ///< that a token is sent to
  friend bool operator==(const RoutingShape&, const RoutingShape&) = default;
  /// Errors: invalid_argument (names the field, value and limit), with the limits of `ModelDescription`.
  [[nodiscard]] Status validate() const;
};

/// A sequence in a step's batch.
struct BatchSequence {
  std::uint32_t id = 0;      ///< the same in all steps of the sequence
  std::uint32_t tokens = 1;  ///< of it that the step computes: in prefill many, in decode mostly one
  friend bool operator==(const BatchSequence&, const BatchSequence&) = default;
};

/// One step of a model: a batch of sequences goes through all layers. Steps that read a prompt are prefill,
/// also where other sequences decode beside it. A view: valid until what it came from changes.
class RoutingStep {
 public:
  /// Requires: `experts` are those of layer 0 for each sequence in order, then those of layer 1, and so on;
  /// `ends` says where each of these lists ends.
  RoutingStep(Phase phase, std::span<const BatchSequence> sequences, std::span<const std::uint32_t> ends,
              std::span<const std::uint32_t> experts)
      : phase_(phase), sequences_(sequences), ends_(ends), experts_(experts) {}

  [[nodiscard]] Phase phase() const { return phase_; }
  [[nodiscard]] std::uint32_t layers() const {
    return static_cast<std::uint32_t>(ends_.size() / sequences_.size());
  }
  /// At least one, each once.
  [[nodiscard]] std::span<const BatchSequence> sequences() const { return sequences_; }

  /// What the layer needs for `sequences()[sequence]`, each once: of one token as the router ranks them, the
  /// first with the largest weight; of several tokens in any order.
  [[nodiscard]] std::span<const std::uint32_t> experts(std::uint32_t layer, std::size_t sequence) const {
    return between(layer * sequences_.size() + sequence, 1);
  }
  /// The same of all sequences, one behind the other, so with repeats: what `ExpertCache::begin_layer` takes.
  [[nodiscard]] std::span<const std::uint32_t> experts(std::uint32_t layer) const {
    return between(layer * sequences_.size(), sequences_.size());
  }
  /// Makes `out` the experts that the layer needs, each once, ascending.
  void distinct_experts(std::uint32_t layer, std::vector<std::uint32_t>& out) const;

 private:
  [[nodiscard]] std::span<const std::uint32_t> between(std::size_t first, std::size_t count) const {
    const std::size_t begin = first == 0 ? 0 : ends_[first - 1];
    return experts_.subspan(begin, ends_[first + count - 1] - begin);
  }

  Phase phase_;
  std::span<const BatchSequence> sequences_;
  std::span<const std::uint32_t> ends_;
  std::span<const std::uint32_t> experts_;
};

// --- recordings ------------------------------------------------------------------------------------------

/// One line of a recording: what one layer's router picked for one sequence of a step.
struct RoutingLine {
  std::uint64_t step = 0;
  Phase phase = Phase::decode;
  std::uint32_t sequence = 0;
  std::uint32_t layer = 0;
  std::uint32_t tokens = 1;
  std::span<const std::uint32_t> experts{};
};

/// Steps of one model, in order. Takes 4 bytes an expert, 4 a line, and 8 a sequence of a step.
class RoutingTrace {
 public:
  /// Requires: `shape` is valid.
  explicit RoutingTrace(const RoutingShape& shape);

  [[nodiscard]] const RoutingShape& shape() const { return shape_; }
  /// Whole steps; one that `add` has begun counts when its last line is there.
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] bool empty() const { return size() == 0; }
  /// Requires: `index` < `size()`.
  [[nodiscard]] RoutingStep step(std::size_t index) const;

  /// Adds a line, for who records a model. Lines come step by step, and within a step layer by layer, with
  /// every layer of the model and the same sequences in each layer. Step numbers grow, and are not kept.
  /// Errors: invalid_argument, which names the field, its value and what it must be; then nothing was added.
  Status add(const RoutingLine& line);
  /// Adds a step of another source, not of this trace. Errors: as `add`; then nothing was added.
  Status add(const RoutingStep& step);
  /// Says what is missing if the last step is not whole. Errors: invalid_argument.
  [[nodiscard]] Status whole() const;

  /// Whether they have the same shape and the same whole steps.
  friend bool operator==(const RoutingTrace& a, const RoutingTrace& b);

 private:
  struct Step {
    Phase phase = Phase::decode;
    std::size_t first_sequence = 0;  ///< in `sequences_`; the step ends where the next begins
    std::size_t first_end = 0;       ///< in `ends_`
    std::size_t first_expert = 0;    ///< in `experts_`; `ends_` count from here
  };

  [[nodiscard]] std::size_t lines_missing() const;  ///< of the last step, if no sequence joins it
  [[nodiscard]] Status check(const RoutingLine& line) const;
  [[nodiscard]] Status check_place(const RoutingLine& line) const;
  [[nodiscard]] Status check_experts(const RoutingLine& line) const;
  [[nodiscard]] RoutingStep view(std::size_t index) const;

  RoutingShape shape_;
  std::vector<Step> steps_;
  std::vector<BatchSequence> sequences_;
  std::vector<std::uint32_t> ends_;
  std::vector<std::uint32_t> experts_;
  std::uint64_t last_step_ = 0;                 ///< number of the last line's step
  std::unordered_set<std::uint32_t> in_batch_;  ///< ids of the last step's sequences
};

/// What is read at most, so that a file that has no end, or unpacks to far more than it is, does no harm.
struct RoutingLimits {
  std::uint64_t line_bytes = 64ULL << 10;  ///< of one line: eight times what all experts of a layer take
  std::uint64_t text_bytes = 4ULL << 30;   ///< of the whole file, unpacked
};

/// Reads a recording: one JSON object a line,
///
///     {"step": 0, "phase": "decode", "sequence": 3, "layer": 0, "experts": [1, 5]}
///
/// with `"tokens": 77` too where the step computes not one token of the sequence but many. Lines come in the
/// order that `RoutingTrace::add` asks for. Other fields and blank lines are ignored. The file may be
/// gzipped, whatever its name. docs/routing.md says more. Errors: not_found (a folder, or it cannot be
/// opened), malformed (`file:line: what`: not JSON, a field that is missing or out of its limits, a line out
/// of order, a step that is not whole, none at all, a limit, a damaged gzip), invalid_argument (`shape`).
/// Cost: about 1 us a line.
[[nodiscard]] Result<RoutingTrace> read_routing(const std::string& path, const RoutingShape& shape,
                                                const RoutingLimits& limits = {});

/// Writes a recording that `read_routing` reads as the same trace; gzipped if the name ends in `.gz`. Steps
/// are numbered from 0; one that is not whole is left out. Errors: not_found (it cannot be written).
[[nodiscard]] Status write_routing(const std::string& path, const RoutingTrace& trace);

// --- generator -------------------------------------------------------------------------------------------

/// How the routers of a model pick. A share `linked` of a token's picks in a layer follows from its picks in
/// the layer before; the others are favourites of its sequence, of which the one of rank r (from 0) is picked
/// in proportion to 1 / (r + spread)^3. docs/routing.md says what was fitted to what.
struct RoutingHabits {
  double linked = 0;            ///< 0 to 1
  double first_spread = 1;      ///< of layer 0, in experts: 1 to 512
  double second_spread = 1;     ///< of layer 1; from here to
  double last_spread = 1;       ///< the last layer it changes evenly
  double common = 0;            ///< how alike the favourites of two sequences are: 0 not at all, 1 the same
  double subject_drift = 0;     ///< share of tokens after which a sequence has another favourite, 0 to 1
  double popularity_drift = 0;  ///< share of steps after which new sequences like another expert, 0 to 1
};

/// A model whose routers can be imitated.
struct RoutingModel {
  std::string_view name;
  RoutingShape shape;
  RoutingHabits habits{};
};

/// mixtral-8x7b, phi-3.5-moe, qwen1.5-moe-a2.7b, qwen3-30b-a3b, qwen3-235b-a22b, deepseek-v3, gpt-oss-120b.
[[nodiscard]] std::span<const RoutingModel> routing_models();
/// Errors: not_found; the message names the known models.
[[nodiscard]] Result<RoutingModel> find_routing_model(std::string_view name);

/// Lengths are drawn evenly from `least` to `most`.
struct TokenRange {
  std::uint32_t least = 1;
  std::uint32_t most = 1;
};

/// Who asks the model: `batch` sequences at a time, each read by a prefill step, followed by one decode step
/// for each further token; when one is done, the next takes its place (continuous batching).
struct RoutingTraffic {
  std::uint32_t batch = 1;
  TokenRange prompt_tokens{64, 512};
  TokenRange output_tokens{64, 512};
  std::uint64_t seed = 1;
};

/// Steps without an end. The same model and traffic give the same steps on every platform.
class RoutingGenerator {
 public:
  /// Errors: invalid_argument (names the field, value and limit): 1 to 4,096 sequences at a time, 1 to
  /// 1,048,576 tokens, `least` at most `most`, and the habits' own.
  [[nodiscard]] static Result<RoutingGenerator> create(const RoutingModel& model,
                                                       const RoutingTraffic& traffic);
  RoutingGenerator(RoutingGenerator&& other) noexcept;
  RoutingGenerator& operator=(RoutingGenerator&& other) noexcept;
  ~RoutingGenerator();

  /// The next step; the one before it ends. First come the prompts of all sequences that are new, in one
  /// step, then decode steps of all sequences until one is done. Allocates nothing once the longest step was
  /// seen. Cost: about 20 ns for each expert of a token that decodes: 0.5 ms for 32 sequences of Qwen3-235B,
  /// where a prompt of 512 tokens takes 1.3 ms.
  RoutingStep next();

 private:
  class Impl;
  explicit RoutingGenerator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace harvest::moe
