#include "regard/attention_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/error_of.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

AttentionConfig small() { return {.hidden_size = 64, .num_attention_heads = 8, .num_key_value_heads = 2}; }

RotaryConfig longrope(size_t factors) {
  return {.scaling = RopeScaling::longrope,
          .short_factor = std::vector<double>(factors, 1.0),
          .long_factor = std::vector<double>(factors, 2.0)};
}

struct Broken {
  const char* message;  // names the parameter and its value
  void (*change)(AttentionConfig&);
};

// Every constraint that validated() checks on the layer, one change each.
const std::vector<Broken> kBrokenLayers = {
    {"hidden_size is 0", [](auto& c) { c.hidden_size = 0; }},                                 // [CFG-1]
    {"hidden_size is 16777217", [](auto& c) { c.hidden_size = (1 << 24) + 1; }},              // [CFG-1]
    {"num_attention_heads is -8", [](auto& c) { c.num_attention_heads = -8; }},               // [CFG-2]
    {"num_key_value_heads is 0", [](auto& c) { c.num_key_value_heads = 0; }},                 // [CFG-3]
    {"num_key_value_heads is 3", [](auto& c) { c.num_key_value_heads = 3; }},                 // [CFG-3]
    {"num_key_value_heads is 16", [](auto& c) { c.num_key_value_heads = 16; }},               // [CFG-3]
    {"num_attention_heads is 8, expected a divisor", [](auto& c) { c.hidden_size = 60; }},    // [CFG-4]
    {"head_dim is -1", [](auto& c) { c.head_dim = -1; }},                                     // [CFG-4]
    {"v_head_dim is -1", [](auto& c) { c.v_head_dim = -1; }},                                 // [CFG-4]
    {"rms_norm_eps is -1", [](auto& c) { c.rms_norm_eps = -1; }},                             // [CFG-7]
    {"rms_norm_eps is nan", [](auto& c) { c.rms_norm_eps = kNan; }},                          // [CFG-7]
    {"q_layernorm is given without k_layernorm", [](auto& c) { c.q_layernorm = QKNorm{}; }},  // [CFG-10]
    {"k_layernorm is given without q_layernorm", [](auto& c) { c.k_layernorm = QKNorm{}; }},  // [CFG-10]
    {"q_layernorm is given without k_layernorm",                                              // [CFG-10], [CFG-56]
     [](auto& c) {
       c.qk_layernorm = true;
       c.q_layernorm = QKNorm{};
     }},
    {"q_layernorm.eps is -1",
     [](auto& c) {
       c.q_layernorm = QKNorm{.eps = -1};
       c.k_layernorm = QKNorm{};
     }},
    {"k_layernorm.eps is inf",
     [](auto& c) {
       c.q_layernorm = QKNorm{};
       c.k_layernorm = QKNorm{.eps = INFINITY};
     }},
    {"v_norm.eps is nan", [](auto& c) { c.v_norm = QKNorm{.eps = kNan}; }},
    {"clip_qkv is -0.5", [](auto& c) { c.clip_qkv = -0.5F; }},          // [CFG-12]
    {"clip_qkv is nan", [](auto& c) { c.clip_qkv = NAN; }},             // [CFG-12]
    {"softmax_scale is -1", [](auto& c) { c.softmax_scale = -1; }},     // [CFG-14]
    {"softmax_scale is nan", [](auto& c) { c.softmax_scale = kNan; }},  // [CFG-14]
    {"logit_soft_cap is -50", [](auto& c) { c.logit_soft_cap = -50; }},
    {"logit_soft_cap is inf", [](auto& c) { c.logit_soft_cap = INFINITY; }},
    {"query_position_scale.floor_scale is 0",
     [](auto& c) { c.query_position_scale = QueryPositionScale{.floor_scale = 0}; }},
    {"query_position_scale.offset is -1", [](auto& c) { c.query_position_scale = QueryPositionScale{.offset = -1}; }},
    {"q_layernorm.weight_per_head is true",
     [](auto& c) { c.q_layernorm = c.k_layernorm = QKNorm{.width = NormWidth::all, .weight_per_head = true}; }},
    {"v_norm.weight_per_head is true",
     [](auto& c) { c.v_norm = QKNorm{.has_weight = false, .weight_per_head = true}; }},
    {"query_position_scale.attn_scale is nan",
     [](auto& c) { c.query_position_scale = QueryPositionScale{.attn_scale = kNan}; }},
    {"value_scale is inf", [](auto& c) { c.value_scale = INFINITY; }},
    {"sliding_window is -1", [](auto& c) { c.sliding_window = -1; }},              // [CFG-20]
    {"attention_chunk_size is -4", [](auto& c) { c.attention_chunk_size = -4; }},  // [CFG-17]
    {"learned_sinks_size is -1", [](auto& c) { c.learned_sinks_size = -1; }},      // [CFG-23]
    {"learned_sinks_size is 1025", [](auto& c) { c.learned_sinks_size = 1025; }},  // [CFG-23]
    {"o_proj_layer_name is empty", [](auto& c) { c.o_proj_layer_name = ""; }},     // [CFG-22]
};

const std::vector<Broken> kBrokenRotations = {
    {"rotary_emb.rotary_dim is 3", [](auto& c) { c.rotary_emb = RotaryConfig{.rotary_dim = 3}; }},
    {"rotary_emb.rotary_dim is -2", [](auto& c) { c.rotary_emb = RotaryConfig{.rotary_dim = -2}; }},
    {"rotary_emb.rotary_dim is 10", [](auto& c) { c.rotary_emb = RotaryConfig{.rotary_dim = 10}; }},
    {"rotary_emb.rotary_dim is 7",
     [](auto& c) {
       c.head_dim = 7;
       c.rotary_emb = RotaryConfig{};
     }},
    {"rotary_emb.rope_theta is 0", [](auto& c) { c.rotary_emb = RotaryConfig{.rope_theta = 0}; }},
    {"rotary_emb.factor is 0", [](auto& c) { c.rotary_emb = RotaryConfig{.factor = 0}; }},
    {"rotary_emb.low_freq_factor is -1", [](auto& c) { c.rotary_emb = RotaryConfig{.low_freq_factor = -1}; }},
    {"rotary_emb.high_freq_factor is nan", [](auto& c) { c.rotary_emb = RotaryConfig{.high_freq_factor = kNan}; }},
    {"rotary_emb.beta_fast is 0", [](auto& c) { c.rotary_emb = RotaryConfig{.beta_fast = 0}; }},
    {"rotary_emb.beta_slow is inf", [](auto& c) { c.rotary_emb = RotaryConfig{.beta_slow = INFINITY}; }},
    {"rotary_emb.attention_factor is 0", [](auto& c) { c.rotary_emb = RotaryConfig{.attention_factor = 0.0}; }},
    {"rotary_emb.original_max_position_embeddings is 0",
     [](auto& c) { c.rotary_emb = RotaryConfig{.original_max_position_embeddings = 0}; }},
    {"rotary_emb.high_freq_factor is 1",
     [](auto& c) { c.rotary_emb = RotaryConfig{.scaling = RopeScaling::llama3, .high_freq_factor = 1}; }},
    {"rotary_emb.short_factor has 3 numbers, expected 4", [](auto& c) { c.rotary_emb = longrope(3); }},
    {"rotary_emb.long_factor has 0 numbers, expected 4",
     [](auto& c) {
       c.rotary_emb = longrope(4);
       c.rotary_emb->long_factor.clear();
     }},
    {"rotary_emb.short_factor or long_factor is -2",
     [](auto& c) {
       c.rotary_emb = longrope(4);
       c.rotary_emb->long_factor[3] = -2;
     }},
    {"rotary_emb.longrope_factors is unspecified", [](auto& c) { c.rotary_emb = longrope(4); }},
};

const std::vector<Broken> kBrokenInference = {
    {"batch_size is 0", [](auto& c) { c.inference.batch_size = 0; }},                      // [CFG-40]
    {"seq_len is -1", [](auto& c) { c.inference.seq_len = -1; }},                          // [CFG-42]
    {"kv_cache_batch_size is -1", [](auto& c) { c.inference.kv_cache_batch_size = -1; }},  // [CFG-59]
    {"max_context_length is 129",                                                          // [CFG-43]
     [](auto& c) {
       c.inference.seq_len = 128;
       c.inference.max_context_length = 129;
     }},
    {"max_context_length is 128",  // [CFG-43]
     [](auto& c) {
       c.inference.seq_len = 128;
       c.inference.max_length = 64;
     }},
    {"max_length is -1", [](auto& c) { c.inference.max_length = -1; }},  // [CFG-44]
    {"windowed_context_encoding_size is -1",                             // [CFG-68]
     [](auto& c) { c.inference.windowed_context_encoding_size = -1; }},
    {"torch_dtype is i8", [](auto& c) { c.inference.torch_dtype = DType::i8; }},            // [CFG-47]
    {"attention_dtype is f64", [](auto& c) { c.inference.attention_dtype = DType::f64; }},  // [CFG-48]
};

void expect_errors(const std::vector<Broken>& table) {
  for (const Broken& broken : table) {
    AttentionConfig config = small();
    broken.change(config);
    const std::string message = error_of([&] { (void)config.validated(); });
    EXPECT_THAT(message, HasSubstr(broken.message));
    EXPECT_TRUE(message.starts_with("attention: ")) << message;
  }
}

TEST(AttentionConfig, BrokenLayerConstraintsAreErrorsThatNameTheParameter) { expect_errors(kBrokenLayers); }
TEST(AttentionConfig, BrokenRotationConstraintsAreErrorsThatNameTheParameter) { expect_errors(kBrokenRotations); }
TEST(AttentionConfig, BrokenInferenceConstraintsAreErrorsThatNameTheParameter) { expect_errors(kBrokenInference); }

// [CFG-5] .. [CFG-23]
TEST(AttentionConfig, LayerDefaultsAreTheReferences) {
  const AttentionConfig config;
  EXPECT_FALSE(config.rotary_emb);
  EXPECT_FALSE(config.rms_norm_eps);
  EXPECT_FALSE(config.use_qk_norm);
  EXPECT_EQ(config.qk_norm_placement, QKNormPlacement::PRE_ROPE);
  EXPECT_EQ(static_cast<int>(QKNormPlacement::PRE_ROPE), 0);
  EXPECT_EQ(static_cast<int>(QKNormPlacement::POST_ROPE), 1);
  EXPECT_FALSE(config.q_layernorm || config.k_layernorm);
  EXPECT_FALSE(config.clip_qkv);
  EXPECT_FALSE(config.qkv_bias || config.o_bias);
  EXPECT_EQ(config.attention_chunk_size, 0);
  EXPECT_EQ(config.sliding_window, 0);
  EXPECT_EQ(config.o_proj_layer_name, "o_proj");
  EXPECT_EQ(config.learned_sinks_size, 0);
  EXPECT_FALSE(config.fused_qkv);                 // [CFG-55]
  EXPECT_FALSE(config.qk_layernorm);              // [CFG-56]
  EXPECT_EQ(RotaryConfig{}.rope_theta, 10000.0);  // [POS-3]
}

TEST(AttentionConfig, DerivedDefaultsFollowFromTheHeads) {
  const AttentionConfig config = small().validated();
  EXPECT_EQ(config.head_dim, 8);  // [CFG-4]
  EXPECT_EQ(config.v_head_dim, 8);
  EXPECT_EQ(config.group_size(), 4);
  EXPECT_DOUBLE_EQ(config.softmax_scale, 1.0 / std::sqrt(8.0));  // [CFG-14], [MATH-1]
  EXPECT_EQ(config.input_size(), 64);
}

// [CFG-4]: projections may be narrower or wider than the residual stream.
TEST(AttentionConfig, HeadDimNeedNotBeHiddenSizeOverHeads) {
  AttentionConfig config = small();
  config.hidden_size = 60;
  config.head_dim = 16;
  EXPECT_EQ(config.validated().head_dim, 16);
  EXPECT_EQ(config.validated().v_head_dim, 16);
  config.v_head_dim = 4;
  EXPECT_EQ(config.validated().v_head_dim, 4);
}

// [CFG-1]
TEST(AttentionConfig, AnEagle3DraftReadsTwiceTheHiddenSize) {
  AttentionConfig config = small();
  config.is_eagle3_draft = true;
  EXPECT_EQ(config.input_size(), 128);
  EXPECT_EQ(config.validated().hidden_size, 64);
}

// [CFG-56], [POS-23]
TEST(AttentionConfig, QkLayernormStandsForALayerNormOnQueriesAndKeys) {
  AttentionConfig config = small();
  config.qk_layernorm = true;
  const QKNorm expected{.kind = NormKind::layer_norm, .width = NormWidth::head, .eps = 1e-5, .has_weight = true};
  EXPECT_EQ(config.validated().q_layernorm, expected);
  EXPECT_EQ(config.validated().k_layernorm, expected);
  const QKNorm own{.kind = NormKind::rms, .eps = 1e-3};
  config.q_layernorm = config.k_layernorm = own;
  EXPECT_EQ(config.validated().q_layernorm, own);
}

// [CFG-40] .. [CFG-49], [CFG-59], [CFG-75]
TEST(AttentionConfig, InferenceDefaultsAreTheReferencesExceptLengthsAndTypes) {
  const InferenceConfig inference = small().validated().inference;
  EXPECT_EQ(inference.batch_size, 1);
  for (const int64_t length : {inference.seq_len, inference.max_context_length, inference.max_length})
    EXPECT_EQ(length, 0);
  EXPECT_EQ(inference.torch_dtype, DType::f32);
  EXPECT_EQ(inference.attention_dtype, DType::f32);
  EXPECT_EQ(inference.windowed_context_encoding_size, 0);
  EXPECT_FALSE(inference.allow_input_truncation);
}

TEST(AttentionConfig, LengthsAndBatchesFollowSeqLenAndBatchSize) {
  AttentionConfig config = small();
  config.inference.seq_len = 77;
  config.inference.batch_size = 3;
  const InferenceConfig inference = config.validated().inference;
  for (const int64_t length : {inference.max_context_length, inference.max_length})
    EXPECT_EQ(length, 77);                      // [CFG-42] .. [CFG-44]
  EXPECT_EQ(inference.kv_cache_batch_size, 3);  // [CFG-59]
}

// [CFG-48]
TEST(AttentionConfig, AttentionDtypeMayDifferFromTorchDtype) {
  AttentionConfig config = small();
  config.inference.torch_dtype = DType::bf16;
  config.inference.attention_dtype = DType::f32;
  EXPECT_EQ(config.validated().inference.attention_dtype, DType::f32);
}

TEST(AttentionConfig, EqualListsOfALongropeRotationNeedNoChoice) {
  AttentionConfig config = small();
  config.rotary_emb = longrope(4);
  config.rotary_emb->long_factor = config.rotary_emb->short_factor;
  EXPECT_EQ(config.validated().rotary_emb->longrope_factors, LongropeFactors::short_factor);
}

// The list follows from the length that sequences may come to, and no inference flag changes it.
TEST(AttentionConfig, TheLongListOfALongropeRotationStartsBeyondTheLengthOfTheTraining) {
  const RotaryConfig rotary{.original_max_position_embeddings = 4096};
  EXPECT_EQ(rotary.longrope_factors_for(4096), LongropeFactors::short_factor);
  EXPECT_EQ(rotary.longrope_factors_for(4097), LongropeFactors::long_factor);
}

// Bounds that are still inside: clip 0 is a value, not off [POS-20].
TEST(AttentionConfig, TheEdgesOfTheRangesAreAllowed) {
  AttentionConfig config = small();
  config.clip_qkv = 0.0F;
  config.rms_norm_eps = 0.0;
  config.learned_sinks_size = 1024;
  config.sliding_window = 1;
  config.attention_chunk_size = 1;
  config.rotary_emb = RotaryConfig{.rotary_dim = 8};
  config.inference.max_context_length = 128;
  EXPECT_EQ(error_of([&] { (void)config.validated(); }), "");
  EXPECT_EQ(config.validated().clip_qkv, 0.0F);
}

TEST(AttentionConfig, RotationCoversTheWholeHeadUnlessToldOtherwise) {
  AttentionConfig config = small();
  config.rotary_emb = RotaryConfig{};
  EXPECT_EQ(config.validated().rotary_emb->rotary_dim, 8);
  config.rotary_emb->rotary_dim = 4;
  EXPECT_EQ(config.validated().rotary_emb->rotary_dim, 4);
}

TEST(AttentionConfig, ValidatingTwiceChangesNothing) {
  AttentionConfig config = small();
  config.qk_layernorm = true;
  config.rotary_emb = RotaryConfig{};
  const AttentionConfig once = config.validated();
  const AttentionConfig twice = once.validated();
  EXPECT_EQ(twice.head_dim, once.head_dim);
  EXPECT_EQ(twice.softmax_scale, once.softmax_scale);
  EXPECT_EQ(twice.rotary_emb, once.rotary_emb);
  EXPECT_EQ(twice.q_layernorm, once.q_layernorm);
  EXPECT_EQ(twice.inference.max_length, once.inference.max_length);
}

}  // namespace
}  // namespace regard
