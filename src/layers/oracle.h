#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "regard/attention.h"

// The attention layer in plain loops over doubles: what Attention::forward approximates. It shares no code with the
// kernels, is slow, and is written to be read. Tests compare against it.
namespace regard {

/// Rows of doubles, one after the other.
struct OracleMatrix {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> numbers;  ///< [rows * columns]

  OracleMatrix() = default;
  OracleMatrix(int64_t row_count, int64_t column_count)
      : rows(row_count), columns(column_count), numbers(static_cast<size_t>(row_count * column_count)) {}
  [[nodiscard]] double* operator[](int64_t row) { return numbers.data() + row * columns; }
  [[nodiscard]] const double* operator[](int64_t row) const { return numbers.data() + row * columns; }
};

/// Attention by itself: queries of one sequence against its keys and values.
struct OracleAttendInput {
  int64_t heads = 0;
  int64_t kv_heads = 0;      ///< Query head h uses KV head h / (heads / kv_heads) [MATH-2].
  OracleMatrix queries;      ///< [queries, heads * head_dim]
  OracleMatrix keys;         ///< [keys, kv_heads * head_dim]
  OracleMatrix values;       ///< [keys, kv_heads * v_head_dim]
  double scale = 1.0;        ///< Multiplies the scores.
  double soft_cap = 0.0;     ///< 0: off; otherwise scores become cap * tanh(score / cap).
  std::vector<float> sinks;  ///< [heads * n]: n logits per query head [MATH-6]; empty: none.
  std::function<bool(int64_t query, int64_t key)> sees;  ///< The mask: whether a row of queries sees a row of keys.
};

struct OracleAttended {
  OracleMatrix out;  ///< [queries, heads * v_head_dim]; zeros for a query that sees nothing.
  OracleMatrix lse;  ///< [queries, heads]: log of the sum of exp(scores), sinks included; -infinity for an empty sum.
};

[[nodiscard]] OracleAttended oracle_attend(const OracleAttendInput& input);

/// Whether the query at one position sees the key at another, by comparison: causal [MASK-1], window [MASK-3],
/// [MASK-25], chunk [MASK-4], [MASK-26]; tokens before `prefix_end` see each other [MASK-27].
[[nodiscard]] bool oracle_sees(const AttentionConfig& config, int64_t query, int64_t key, int64_t prefix_end = 0);

/// Keys, rotated and normalised, and values of consecutive positions.
struct OracleKeyValues {
  OracleMatrix keys;    ///< [positions, kv_heads * head_dim]
  OracleMatrix values;  ///< [positions, kv_heads * v_head_dim]
};

/// Consecutive tokens of one sequence.
struct OracleInput {
  OracleMatrix hidden_states;  ///< [tokens, input_size]
  int64_t first_position = 0;  ///< Of the first token.
  int64_t prefix = 0;          ///< How many of the tokens, from the first on, see each other.
  /// Keys and values of the positions 0 .. first_position + tokens - 1, as a cache holds them: rounded to its type.
  /// None: the tokens see only each other, unrounded.
  const OracleKeyValues* cached = nullptr;
  std::vector<float> rmsnorm;                ///< [input_size]: gain of the norm before the projection; empty: none.
  OracleMatrix residual;                     ///< [tokens, input_size], added to the input before that norm; or empty.
  std::vector<int64_t> rotary_position_ids;  ///< [tokens]: rotates by these instead of by the positions; or empty.
};

struct OracleOutput {
  OracleMatrix hidden_states;      ///< [tokens, hidden_size]
  OracleKeyValues key_values;      ///< Of the tokens, as they enter the cache, unrounded.
  OracleMatrix cos, sin;           ///< [tokens, rotary_dim / 2]; empty without rotation.
  OracleMatrix queries, attended;  ///< [tokens, heads * head_dim] as they meet the keys; [tokens, heads * v_head_dim].
  OracleMatrix lse;                ///< [tokens, heads]
};

/// The whole layer. Throws Error for a config that is not valid.
[[nodiscard]] OracleOutput oracle(const AttentionConfig& config, const AttentionWeights& weights,
                                  const OracleInput& input);

}  // namespace regard
