#pragma once

#include <span>

#include "layers/attention_shard.h"
#include "regard/tensor.h"
#include "regard/threads.h"

namespace regard {

// Projected tokens on their way to attention: f32 [tokens, heads * width] each, a row a token; or some of the three.
struct HeadRows {
  TensorView q, k, v;
};

// Where the tokens stand, and cos and sin of their angles, [tokens, rotary_dim / 2]; none without rotation.
struct HeadPlaces {
  std::span<const int64_t> positions;
  ConstTensorView cos, sin;
};

// cos and sin of tokens at these positions.
struct RowAngles {
  TensorView cos, sin;
};
void write_angles(const RotaryEmbedding& rotary, std::span<const int64_t> positions, const RowAngles& to,
                  const Threads& threads);

// Norms and rotation, in the order of [POS-1]; every norm on queries and keys follows qk_norm_placement [GAP-12]. Norms
// over all heads are taken over those of all ranks of the row, which call this together.
void prepare_heads(const AttentionShard& shard, const HeadPlaces& places, const HeadRows& rows, const Threads& threads);

}  // namespace regard
