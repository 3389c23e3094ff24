// Calls of 1 to 4 tokens beside PyTorch's own: layers of six shapes, against the oracle. See
// make_short_calls_golden.py.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "golden/golden_files.h"
#include "layers/oracle.h"
#include "support/layer_oracle.h"
#include "support/sanitized.h"
#include "support/test_layer.h"

namespace regard {
namespace {

constexpr double kEps = 1e-5;

enum Part : uint64_t { kQ = 1, kK, kV, kO, kQNorm, kKNorm };

// The script's function of the same name: uniform in -amplitude..amplitude, from SplitMix64 of the index.
std::vector<float> numbers(uint64_t stream, int64_t count, double amplitude) {
  std::vector<float> out;
  for (uint64_t i = 0; i < static_cast<uint64_t>(count); ++i) {
    uint64_t z = (i + 1 + (stream << 32)) * 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    z ^= z >> 31;
    const float unit = (static_cast<float>(z >> 40) - 0x1p23F) * 0x1p-23F;
    out.push_back(unit * static_cast<float>(amplitude));
  }
  return out;
}

AttentionConfig config_of(int64_t hidden, int64_t heads, int64_t kv_heads, int64_t head_dim) {
  AttentionConfig config;
  config.hidden_size = hidden;
  config.num_attention_heads = heads;
  config.num_key_value_heads = kv_heads;
  config.head_dim = head_dim;
  config.rotary_emb = RotaryConfig{.rope_theta = 10000.0};
  return config;
}

struct NamedLayer {
  const char* name;
  AttentionConfig config;
};

// In the order of the script's LAYERS, which the numbers follow from.
std::vector<NamedLayer> layers() {
  std::vector<NamedLayer> all = {
      {"llama_64", config_of(64, 4, 2, 16)},     {"llama_120", config_of(120, 5, 1, 24)},
      {"llama_576", config_of(576, 9, 3, 64)},   {"llama_1024", config_of(1024, 8, 2, 128)},
      {"granite_256", config_of(256, 4, 2, 64)}, {"dbrx_256", config_of(256, 4, 2, 64)},
      {"llama4_256", config_of(256, 2, 1, 128)}, {"gemma3_320", config_of(320, 2, 1, 256)},
  };
  all[4].config.softmax_scale = 0.25;
  all[5].config.clip_qkv = 1.5F;
  AttentionConfig& llama4 = all[6].config;
  llama4.rotary_emb->style = RotaryStyle::interleaved;
  llama4.use_qk_norm = true;
  llama4.qk_norm_placement = QKNormPlacement::POST_ROPE;
  llama4.rms_norm_eps = kEps;
  AttentionConfig& gemma3 = all[7].config;
  gemma3.q_layernorm = gemma3.k_layernorm = QKNorm{.kind = NormKind::rms_plus_one, .eps = kEps};
  return all;
}

test::TestLayer layer_of(const AttentionConfig& config, uint64_t index) {
  test::TestLayer layer{.config = config};
  const int64_t width = config.num_attention_heads * config.head_dim;
  const int64_t kv_width = config.num_key_value_heads * config.head_dim;
  const auto matrix = [&](Part part, int64_t rows, int64_t columns) {
    return numbers(16 * index + part, rows * columns, 2.5 / std::sqrt(static_cast<double>(columns)));
  };
  layer.q = matrix(kQ, width, config.hidden_size);
  layer.k = matrix(kK, kv_width, config.hidden_size);
  layer.v = matrix(kV, kv_width, config.hidden_size);
  layer.output = matrix(kO, config.hidden_size, width);
  if (config.q_layernorm) {
    layer.weights.q_norm = numbers(16 * index + kQNorm, config.head_dim, 0.5);
    layer.weights.k_norm = numbers(16 * index + kKNorm, config.head_dim, 0.5);
  }
  return layer;
}

// The last `tokens` rows of the layer's output; those before them are cached by a call of their own.
Tensor last_rows(const Attention& attention, const Tensor& hidden, int64_t tokens, Workspace& workspace) {
  const int64_t history = hidden.shape()[0] - tokens;
  KvCache cache =
      attention.make_cache(KvStorage::contiguous, {.slots = 1, .capacity = hidden.shape()[0], .dtype = DType::f32});
  const auto call = [&](int64_t first, int64_t count) {
    const Span span{.slot = 0, .first_position = first, .count = count};
    AttentionInput input;
    input.cache = &cache;
    input.hidden_states = hidden.view().slice(0, first, count);
    input.spans = {&span, 1};
    input.workspace = &workspace;
    return attention.forward(input).hidden_states;
  };
  if (history > 0) (void)call(0, history);
  return call(history, tokens);
}

TEST(ShortCallsGolden, ErrorsAreAtMostTwiceThoseOfPyTorch) {
  const auto golden = golden::read_json("short_calls.json");
  const auto all = layers();
  Workspace workspace(2);
  size_t checked = 0;
  for (uint64_t index = 0; index < all.size(); ++index) {
    const auto& [name, config] = all[index];
    const test::TestLayer layer = layer_of(config, index);
    const Attention attention = layer.load();
    for (const auto& expected : golden["cases"]) {
      if (expected["layer"] != name) continue;
      const auto history = expected["history"].get<int64_t>();
      const auto tokens = expected["tokens"].get<int64_t>();
      ++checked;
      if (test::kSanitized && (history > 0 || config.hidden_size > 128)) continue;  // the oracle takes minutes
      SCOPED_TRACE(testing::Message() << name << ", " << tokens << " tokens after " << history);
      double error = 0.0;
      for (uint64_t call = 0; call < golden["calls"].get<uint64_t>(); ++call) {
        Tensor hidden(DType::f32, {history + tokens, config.hidden_size});
        const uint64_t stream = 16 * (100 + 10 * index + call) + static_cast<uint64_t>(tokens);
        std::ranges::copy(numbers(stream, hidden.shape().elements(), 1.75), hidden.elements<float>().begin());
        const OracleOutput exact = oracle(config, layer.views(), {.hidden_states = test::oracle_matrix(hidden.view())});
        const double* row = exact.hidden_states[history];
        if (call == 0) {
          ASSERT_NEAR(row[0], expected["first"].get<double>(), 1e-11);
        }
        const Tensor ours = last_rows(attention, hidden, tokens, workspace);
        for (const float number : ours.elements<float>()) error = std::max(error, std::fabs(number - *row++));
      }
      EXPECT_LE(error, 2 * expected["error"].get<double>());
    }
  }
  EXPECT_EQ(checked, golden["cases"].size());
}

}  // namespace
}  // namespace regard
