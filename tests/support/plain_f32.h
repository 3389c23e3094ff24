#pragma once

#include <vector>

#include "layers/oracle.h"

// Attention as one would write it down in f32: the same loops as the oracle's, every number rounded. Its error is what
// f32 itself costs, the yardstick of the library's. A small case may come out right by luck: then the errors of several
// orders of summation tell more. Sums of products begin at a place that `order` chooses, and go around.
namespace regard::test {

inline constexpr int kOrders = 8;
// Enough orders to see the errors of some hundreds of rows; the results of a row share its scores.
int orders_for(int64_t rows);

struct Attended {
  std::vector<float> out;  // [queries, heads, v_head_dim]
  std::vector<float> lse;  // [queries, heads]
};

struct PlainAttended : Attended {
  // What roundings on the way to each result could add up to, if each had the relative size 1: to the first order, the
  // sum of weight * |value| * (1 + size of the score), and for the log of the sum its own size instead of the value's.
  std::vector<float> out_sensitivity;  // [queries, heads, v_head_dim]
  std::vector<float> lse_sensitivity;  // [queries, heads]
};
PlainAttended plain_attend(const OracleAttendInput& input, int order);

struct PlainOutput {
  std::vector<float> hidden_states;  // [tokens, hidden_size]
  std::vector<float> keys, values;   // [tokens, kv_heads, head_dim] and [tokens, kv_heads, v_head_dim]
  PlainAttended attended;            // Of the tokens.
};
// `exact` is the oracle's output on the same input: cos and sin are its own, rounded.
PlainOutput plain_layer(const AttentionConfig& config, const AttentionWeights& weights, const OracleInput& input,
                        const OracleOutput& exact, int order);

}  // namespace regard::test
