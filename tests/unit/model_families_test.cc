// The attention of today's open models, written down as an AttentionConfig: head counts and parameters of a published
// model of each family, from transformers.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "regard/attention_config.h"
#include "support/error_of.h"

namespace regard {
namespace {

struct Model {
  const char* name;
  AttentionConfig config;
  int64_t head_dim;
  int64_t v_head_dim;
  int64_t group_size;
};

AttentionConfig heads(int64_t hidden, int64_t queries, int64_t keys, int64_t head_dim = 0) {
  return {.hidden_size = hidden, .num_attention_heads = queries, .num_key_value_heads = keys, .head_dim = head_dim};
}

template <class Change>
AttentionConfig with(AttentionConfig config, Change change) {
  change(config);
  return config;
}

const std::vector<Model> kModels = {
    {"llama 3.1 8B [CFG-90]",
     with(heads(4096, 32, 8),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.rope_theta = 500000, .scaling = RopeScaling::llama3, .factor = 8};
          }),
     128, 128, 4},
    {"mistral 7B [CFG-96]",
     with(heads(4096, 32, 8),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{};
            c.sliding_window = 4096;
          }),
     128, 128, 4},
    {"qwen2 7B [CFG-92]",
     with(heads(3584, 28, 4),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.rope_theta = 1e6};
            c.qkv_bias = true;
          }),
     128, 128, 7},
    {"qwen3 4B [CFG-93]",
     with(heads(2560, 32, 8, 128),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.rope_theta = 1e6};
            c.q_layernorm = c.k_layernorm = QKNorm{};
          }),
     128, 128, 4},
    {"gpt-oss 20B, window layer [CFG-95]",
     with(heads(2880, 64, 8, 64),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.rope_theta = 150000,
                                        .scaling = RopeScaling::yarn,
                                        .factor = 32,
                                        .original_max_position_embeddings = 4096};
            c.sliding_window = 128;
            c.learned_sinks_size = 1;
            c.qkv_bias = c.o_bias = true;
          }),
     64, 64, 8},
    {"mimo v2 flash, window layer",
     with(heads(4096, 64, 8, 192),
          [](auto& c) {
            c.v_head_dim = 128;
            c.value_scale = 0.707;
            c.sliding_window = 128;
            c.learned_sinks_size = 1;
            c.rotary_emb = RotaryConfig{.rotary_dim = 64};
          }),
     192, 128, 8},
    {"llama 4 scout, chunked layer [CFG-91]",
     with(heads(5120, 40, 8, 128),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.style = RotaryStyle::interleaved, .rope_theta = 500000};
            c.use_qk_norm = true;
            c.qk_norm_placement = QKNormPlacement::POST_ROPE;
            c.attention_chunk_size = 8192;
          }),
     128, 128, 5},
    {"llama 4 scout, layer without rotation [CFG-91]",
     with(heads(5120, 40, 8, 128), [](auto& c) { c.query_position_scale = QueryPositionScale{}; }), 128, 128, 5},
    {"gemma 2 9B, window layer",
     with(heads(3584, 16, 8, 256),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{};
            c.softmax_scale = 1 / std::sqrt(256.0);
            c.logit_soft_cap = 50;
            c.sliding_window = 4096;
          }),
     256, 256, 2},
    {"gemma 3 4B, global layer [CFG-94]",
     with(heads(2560, 8, 4, 256),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.rope_theta = 1e6, .scaling = RopeScaling::linear, .factor = 8};
            c.q_layernorm = c.k_layernorm = QKNorm{.kind = NormKind::rms_plus_one};
          }),
     256, 256, 2},
    {"phi 3 mini 128k",
     with(heads(3072, 32, 32),
          [](auto& c) {
            c.fused_qkv = true;
            c.sliding_window = 262144;
            c.rotary_emb = RotaryConfig{.scaling = RopeScaling::longrope,
                                        .factor = 32,
                                        .original_max_position_embeddings = 4096,
                                        .short_factor = std::vector<double>(48, 1.05),
                                        .long_factor = std::vector<double>(48, 20.0),
                                        .longrope_factors = LongropeFactors::long_factor};
          }),
     96, 96, 1},
    {"dbrx [CFG-98]",
     with(heads(6144, 48, 8),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.rope_theta = 500000};
            c.fused_qkv = true;
            c.clip_qkv = 8.0F;
            c.o_proj_layer_name = "out_proj";
          }),
     128, 128, 6},
    {"olmo 2 7B",
     with(heads(4096, 32, 32),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.rope_theta = 500000};
            c.q_layernorm = c.k_layernorm = QKNorm{.width = NormWidth::all};
          }),
     128, 128, 1},
    {"command r7b, window layer",
     with(heads(4096, 32, 8),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.style = RotaryStyle::interleaved, .rope_theta = 50000};
            c.sliding_window = 4096;
          }),
     128, 128, 4},
    {"granite 3 8B",
     with(heads(4096, 32, 8),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.rope_theta = 1e7};
            c.softmax_scale = 0.0078125;
          }),
     128, 128, 4},
    {"glm 4 9B",
     with(heads(4096, 32, 2, 128),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.style = RotaryStyle::interleaved, .rotary_dim = 64};
            c.qkv_bias = true;
          }),
     128, 128, 16},
    {"phi 2",
     with(heads(2560, 32, 32),
          [](auto& c) {
            c.rotary_emb = RotaryConfig{.rotary_dim = 32};
            c.qk_layernorm = true;
            c.qkv_bias = c.o_bias = true;
            c.o_proj_layer_name = "dense";
          }),
     80, 80, 1},
    {"falcon 7B", with(heads(4544, 71, 1), [](auto& c) { c.rotary_emb = RotaryConfig{}; }), 64, 64, 71},
    {"gpt2", with(heads(768, 12, 12), [](auto& c) { c.qkv_bias = c.o_bias = true; }), 64, 64, 1},
    {"deepseek v3 with its latent as one KV head",
     with(heads(7168, 128, 1, 576),
          [](auto& c) {
            c.v_head_dim = 512;
            c.softmax_scale = 1 / std::sqrt(192.0);
          }),
     576, 512, 128},
    {"a vision encoder [CFG-100]",
     with(heads(1024, 16, 16),
          [](auto& c) {
            c.is_causal = false;
            c.qkv_bias = c.o_bias = true;
          }),
     64, 64, 1},
};

TEST(ModelFamilies, EveryFamilyIsDescribable) {
  for (const Model& model : kModels) {
    SCOPED_TRACE(model.name);
    ASSERT_EQ(test::error_of([&] { (void)model.config.validated(); }), "");
    const AttentionConfig config = model.config.validated();
    EXPECT_EQ(config.head_dim, model.head_dim);
    EXPECT_EQ(config.v_head_dim, model.v_head_dim);
    EXPECT_EQ(config.group_size(), model.group_size);
  }
}

}  // namespace
}  // namespace regard
