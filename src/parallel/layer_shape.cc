#include <algorithm>
#include <string_view>

#include "parallel/traffic.h"
#include "regard/attention_config.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// Keeps every product of the formulas inside int64.
constexpr int64_t kMostWidth = int64_t{1} << 20;

int64_t totals_of(const std::optional<QKNorm>& norm) {
  if (!norm || norm->width != NormWidth::all) return 0;
  return norm->kind == NormKind::layer_norm ? 2 : 1;
}

}  // namespace

LayerShape LayerShape::of(const AttentionConfig& config) {
  return {.hidden_size = config.hidden_size,
          .num_attention_heads = config.num_attention_heads,
          .num_key_value_heads = config.num_key_value_heads,
          .head_dim = config.head_dim,
          .v_head_dim = config.v_head_dim,
          .mask = Mask::of(config),
          .input_size = config.input_size() == config.hidden_size ? 0 : config.input_size(),
          .query_totals = totals_of(config.q_layernorm),
          .key_totals = totals_of(config.k_layernorm),
          .value_totals = totals_of(config.v_norm),
          .windowed_context_encoding_size = config.inference.windowed_context_encoding_size};
}

void LayerShape::check() const {
  const auto check_size = [](std::string_view name, int64_t value, int64_t most) {
    require(value >= 1 && value <= most, "layer shape: {} is {}, expected 1 to {}", name, value, most);
  };
  constexpr int64_t kMostHeads = int64_t{1} << 12;
  constexpr int64_t kMostHeadDim = int64_t{1} << 12;
  check_size("hidden_size", hidden_size, kMostWidth);
  check_size("input_size", input_size + 1, kMostWidth);
  check_size("num_attention_heads", num_attention_heads, kMostHeads);
  check_size("num_key_value_heads", num_key_value_heads, kMostHeads);
  check_size("head_dim", head_dim, kMostHeadDim);
  check_size("v_head_dim", v_head_dim, kMostHeadDim);
  check_size("the width of all heads", num_attention_heads * std::max(head_dim, v_head_dim), kMostWidth);
  require(num_attention_heads % num_key_value_heads == 0,
          "layer shape: num_key_value_heads is {}, expected a divisor of num_attention_heads {}", num_key_value_heads,
          num_attention_heads);
  mask.check("layer shape");
  check_size("windowed_context_encoding_size", windowed_context_encoding_size + 1, int64_t{1} << 40);
  for (const int64_t totals : {query_totals, key_totals, value_totals})
    require(totals >= 0 && totals <= 2, "layer shape: a norm needs {} sums over all heads, expected 0 to 2", totals);
}

}  // namespace regard
