#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "regard/checkpoint.h"
#include "regard/model.h"

// A running model beside the fp64 oracles, part by part, and beside what another implementation computed.
namespace regard {

// How far rows of numbers are from others, each row relative to the root mean square of the right one: of the row that
// is worst. Infinite where a number is NaN or infinite, or a row should be zero and is not.
struct RowError {
  double largest = 0;
  double rms = 0;
};

// The embedding, a layer or the head.
struct PartError {
  std::string name;  // "embedding", "layer 7", "logits"
  RowError error;
  RowError allowed;

  [[nodiscard]] bool holds() const { return error.largest <= allowed.largest && error.rms <= allowed.rms; }
};

// What a model gave for one sequence from position 0 on.
struct ModelStates {
  ConstTensorView hidden;  // [layers + 1, tokens, hidden_size], as Model::ForwardOptions::hidden_states
  ConstTensorView logits;  // [tokens, vocab_size]; empty: none
};

// The embedding, each layer and the logits on the input that this part had, as `ours` (f32) tells, against oracles with
// the weights of `checkpoint`. Allowed is kInputRoundings times what changes in the exact result when each number of
// the input changes by one rounding of f32 up or down, and kResultRoundings roundings of the row's largest number: so a
// part may err as much as its function makes of rounded numbers, no more. Where a token's experts nearly tie, rounding
// may choose others.
// `progress` is called with the parts done so far. Throws Error for a checkpoint that was cut for ranks.
[[nodiscard]] std::vector<PartError> verify_parts(const Model& model, const Checkpoint& checkpoint,
                                                  std::span<const int32_t> tokens, const ModelStates& ours,
                                                  const Threads& threads, const std::function<void(int64_t)>& progress);

// Throws Error unless a reference has these shapes, of f32 or f64; its hidden states may be left out.
void check_reference(const ModelStates& reference, const Shape& hidden, const Shape& logits);

// What `ours` differs from `reference` (f32 or f64; without hidden states, the logits alone), layer by layer, with what
// layers before have left in it. Allowed is kReferenceTolerance in the root mean square, and ten times that for a
// single number. Throws Error for other shapes or types.
[[nodiscard]] std::vector<PartError> compare_states(const ModelStates& ours, const ModelStates& reference);

inline constexpr double kInputRoundings = 16;
inline constexpr double kResultRoundings = 2;
inline constexpr double kReferenceTolerance = 1e-4;

}  // namespace regard
