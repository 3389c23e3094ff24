#pragma once

#include <cstdint>
#include <vector>

#include "regard/dtype.h"
#include "regard/model_spec.h"
#include "regard/parallel.h"

namespace regard {

/// What one rank can do; docs/scaling.md says how to measure it.
struct RankSpeed {
  double flops = 3e12;         ///< Floating-point operations a second.
  double bandwidth = 200e9;    ///< Bytes a second from memory.
  double link = 25e9;          ///< Bytes a second that it sends to ranks of other hosts.
  double latency = 2e-6;       ///< Seconds that an exchange between hosts takes however small it is.
  double per_message = 3e-7;   ///< Seconds that each message of it costs the rank that sends it.
  int64_t ranks_per_host = 1;  ///< So many ranks in a row share a host; the last one may have fewer.
  double host_link = 40e9;     ///< Bytes a second that it sends to ranks of its own host.
  double host_latency = 1e-6;  ///< Seconds that an exchange inside hosts takes.

  /// Throws Error for what is not finite, rates of 0 or less, times below 0, and ranks_per_host below 1.
  void check() const;
};

/// What is to be run.
struct Workload {
  int64_t sequences = 1;     ///< Sequences that decode together.
  int64_t context = 0;       ///< Tokens of each when a decode step is looked at, the new one included.
  int64_t prompt = 0;        ///< Tokens of a prompt; at most context.
  int64_t output = 256;      ///< Tokens that each sequence gets: what weighs decode against prefill.
  DType cache = DType::f32;  ///< Type of cached keys and values.

  /// Throws Error for numbers out of range.
  void check() const;
};

/// Seconds of a prefill or of a decode step, and bytes that the busiest rank sends in it.
struct StageCost {
  double compute = 0;      ///< Attention layers: the larger of arithmetic and memory, phase by phase.
  double link = 0;         ///< Their bytes over the links.
  double latency = 0;      ///< Their rounds and messages.
  double rest = 0;         ///< MLPs and output head with their exchanges: the same for all plans but for SP's.
  double layer_bytes = 0;  ///< That a rank sends in an attention layer: the mean over layers.
  double step_bytes = 0;   ///< That it sends in the whole call: attention layers, MLPs, the last hidden states.

  [[nodiscard]] double seconds() const { return compute + link + latency + rest; }
};

/// Bytes that the fullest rank holds all the time.
struct RankMemory {
  double attention_weights = 0;  ///< Twice, where prefill and decode cut heads differently.
  double other_weights = 0;      ///< Its part of MLPs; routers, embedding and output head are whole on every rank.
  double cache = 0;              ///< Keys and values of all sequences at their full length.

  [[nodiscard]] double total() const { return attention_weights + other_weights + cache; }
};

/// One way to spread a model over ranks, and what it comes to.
struct Plan {
  ParallelConfig config;
  RankMemory memory;
  StageCost prefill;   ///< Of one prompt.
  StageCost decode;    ///< Of one token for every sequence.
  double seconds = 0;  ///< The whole workload: every prompt, one after the other, and then all steps.
};

/// The parts of a plan, as docs/scaling.md says: bytes of a cost are those that Communicator::bytes_sent counts in a
/// call of Model::forward on the rank that sends most; sizes of weights are those that a rank of a Model holds. Throw
/// Error for what does not fit together.
[[nodiscard]] RankMemory rank_memory(const ModelSpec& model, const Workload& workload, const ParallelConfig& config);
[[nodiscard]] StageCost prefill_cost(const ModelSpec& model, const Workload& workload, const RankSpeed& speed,
                                     const ParallelConfig& config);
[[nodiscard]] StageCost decode_cost(const ModelSpec& model, const Workload& workload, const RankSpeed& speed,
                                    const ParallelConfig& config);

/// Every sensible combination of degrees for `ranks` ranks, the fastest for the whole workload first; also those that
/// exchange keys and values between prefill and decode, since rank_orders has no order for them. Left out is what
/// leaves rows without a token or a sequence. Context parallelism splits contiguously or strided, data parallelism
/// dispatches, as is faster. Throws Error for ranks out of range, or what the parts above refuse.
[[nodiscard]] std::vector<Plan> plans(const ModelSpec& model, const Workload& workload, const RankSpeed& speed,
                                      int64_t ranks);

}  // namespace regard
