// What families make of config.json and GGUF metadata, without weights.
#include "regard/model_spec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "regard/checkpoint.h"
#include "support/byte_writer.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

using Json = nlohmann::json;

Json with(Json config, const Json& more) {
  config.update(more);
  return config;
}

Json small(const char* model_type = "llama", const Json& more = Json::object()) {
  return with({{"model_type", model_type},
               {"hidden_size", 32},
               {"num_hidden_layers", 6},
               {"num_attention_heads", 4},
               {"num_key_value_heads", 2},
               {"intermediate_size", 64},
               {"vocab_size", 100}},
              more);
}

ModelSpec spec_of(const Json& config) { return ModelSpec::from_config_json(config.dump(), "config.json"); }
ModelSpec llama_with(const Json& more) { return spec_of(small("llama", more)); }
RotaryConfig rotary_with(const Json& more) { return *llama_with(more).layers.front().attention.rotary_emb; }

std::vector<int64_t> windows_of(const ModelSpec& spec) {
  std::vector<int64_t> windows;
  for (const LayerSpec& layer : spec.layers) windows.push_back(layer.attention.sliding_window);
  return windows;
}

TEST(ModelSpec, OfAPlainLlama) {
  const ModelSpec spec = spec_of(small());
  EXPECT_EQ(spec.family, "llama");
  EXPECT_EQ(spec.vocab_size, 100);
  EXPECT_EQ(spec.hidden_size, 32);
  EXPECT_EQ(spec.context_length, 2048);
  EXPECT_FALSE(spec.head.tied);
  ASSERT_EQ(spec.layers.size(), 6U);
  const LayerSpec& layer = spec.layers[3];
  EXPECT_EQ(layer.attention.head_dim, 8);
  EXPECT_EQ(layer.attention.num_key_value_heads, 2);
  EXPECT_EQ(std::get<DenseMlp>(layer.mlp), (DenseMlp{.width = 64}));
  EXPECT_EQ(layer.attention_norm, (NormSpec{.eps = 1e-6}));
  EXPECT_EQ(layer.mlp_norm, (NormSpec{.eps = 1e-6}));
  EXPECT_FALSE(layer.post_attention_norm || layer.post_mlp_norm || layer.parallel);
  ASSERT_EQ(spec.equal_layers().size(), 1U);
  EXPECT_EQ(spec.equal_layers()[0].count, 6);
}

// A key that changes what a model computes is never passed over: today's loaders of other projects drop these.
TEST(ModelSpec, KeysThatAFamilyDoesNotKnowAreErrorsThatNameThem) {
  const auto refused = [](const Json& more, std::string_view part) { EXPECT_ERROR(llama_with(more), part); };
  refused({{"sliding_window", 16}}, "\"sliding_window\" is 16");
  refused({{"layer_types", std::vector<std::string>(6, "sliding_attention")}}, "\"layer_types\"");
  refused({{"no_rope_layers", {1, 1, 0, 1, 1, 0}}}, "\"no_rope_layers\"");
  refused({{"attn_logit_softcapping", 50.0}}, "\"attn_logit_softcapping\" is 50.0");
  refused({{"final_logit_softcapping", 30.0}}, "\"final_logit_softcapping\"");
  refused({{"quantization_config", {{"quant_method", "fp8"}}}}, "\"quantization_config\"");
  refused({{"partial_rotary_factor", 0.5}}, "\"partial_rotary_factor\" is 0.5");
  refused({{"residual_multiplier", 0.2}}, "\"residual_multiplier\"");
  refused({{"use_qk_norm", true}}, "\"use_qk_norm\" is true");
  refused({{"num_local_experts", 8}}, "\"num_local_experts\"");
  refused({{"rope_scaling", {{"rope_type", "default"}, {"mrope_section", {1, 2, 1}}}}},
          "\"rope_scaling\": \"mrope_section\"");
  refused({{"rope_parameters", {{"rope_theta", 1e4}, {"partial_rotary_factor", 0.5}}}},
          "\"rope_parameters\": \"partial_rotary_factor\"");
  EXPECT_ERROR(spec_of(small("qwen3", {{"attn_logit_softcapping", 50.0}})), "family \"qwen3\" does not know this key");
  EXPECT_ERROR(spec_of(small("olmo2", {{"sliding_window", 8}})), "\"sliding_window\" is 8");
}

TEST(ModelSpec, ValuesWithoutEffectPass) {
  const ModelSpec plain = spec_of(small());
  for (const Json& more :
       {Json{{"sliding_window", nullptr}}, Json{{"use_qk_norm", false}}, Json{{"logit_scale", 1.0}},
        Json{{"some_dropout", 0.0}}, Json{{"pruned_heads", Json::object()}}, Json{{"a_list", Json::array()}},
        Json{{"quantization_config", nullptr}}, Json{{"attention_dropout", 0.1}},
        Json{{"transformers_version", "5.24.0"}}, Json{{"architectures", {"LlamaForCausalLM"}}}})
    EXPECT_EQ(llama_with(more).layers, plain.layers) << more.dump();
}

TEST(ModelSpec, AnUnknownFamilyIsAnErrorThatListsTheKnownOnes) {
  EXPECT_ERROR(spec_of(small("mamba")), "family \"mamba\", expected one of \"llama\", \"qwen3\"");
  EXPECT_ERROR(spec_of(Json{{"hidden_size", 3}}), "family \"\"");
}

TEST(ModelSpec, CausalityIsTheFiles) {
  EXPECT_TRUE(spec_of(small()).layers[0].attention.is_causal);
  EXPECT_FALSE(llama_with({{"is_causal", false}}).layers[0].attention.is_causal);
}

TEST(ModelSpec, BiasesAreTheFiles) {
  const ModelSpec spec = llama_with({{"attention_bias", true}, {"mlp_bias", true}});
  EXPECT_TRUE(spec.layers[0].attention.qkv_bias && spec.layers[0].attention.o_bias);
  EXPECT_TRUE(std::get<DenseMlp>(spec.layers[0].mlp).has_bias);
  EXPECT_FALSE(std::get<DenseMlp>(llama_with({{"mlp_bias", false}}).layers[0].mlp).has_bias);
}

// transformers: _compute_yarn_parameters. [POS-7]
TEST(ModelSpec, YarnsFactorFollowsMscale) {
  const Json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}};
  EXPECT_FALSE(rotary_with({{"rope_scaling", yarn}}).attention_factor);  // 0.1 ln(factor) + 1, where it is used
  const RotaryConfig both = rotary_with({{"rope_scaling", with(yarn, {{"mscale", 2.0}, {"mscale_all_dim", 0.5}})}});
  EXPECT_DOUBLE_EQ(*both.attention_factor, (0.2 * std::log(4.0) + 1) / (0.05 * std::log(4.0) + 1));
  EXPECT_FALSE(rotary_with({{"rope_scaling", with(yarn, {{"mscale", 2.0}})}}).attention_factor);
  EXPECT_EQ(rotary_with({{"rope_scaling", with(yarn, {{"attention_factor", 1.5}, {"mscale", 2.0}})}}).attention_factor,
            1.5);
  EXPECT_EQ(both.original_max_position_embeddings, 512);
  // Without a factor it is the ratio of the lengths.
  EXPECT_EQ(rotary_with({{"max_position_embeddings", 2048},
                         {"rope_scaling", {{"rope_type", "yarn"}, {"original_max_position_embeddings", 512}}}})
                .factor,
            4.0);
}

TEST(ModelSpec, TheLengthOfLongropesTrainingStandsAtTheTopLevel) {
  const Json longrope = {{"rope_type", "longrope"}, {"short_factor", {1, 1, 1, 1}}, {"long_factor", {1, 2, 3, 4}}};
  const RotaryConfig rotary = rotary_with(
      {{"max_position_embeddings", 4096}, {"original_max_position_embeddings", 1024}, {"rope_scaling", longrope}});
  EXPECT_EQ(rotary.original_max_position_embeddings, 1024);
  EXPECT_EQ(rotary.factor, 4.0);
  EXPECT_EQ(rotary.long_factor, (std::vector<double>{1, 2, 3, 4}));
  // It wins over the one inside.
  EXPECT_EQ(rotary_with({{"original_max_position_embeddings", 1024},
                         {"rope_scaling", with(longrope, {{"original_max_position_embeddings", 99}})}})
                .original_max_position_embeddings,
            1024);
}

TEST(ModelSpec, OfTwoFormsOfARotationTheOlderWins) {
  const RotaryConfig rotary = rotary_with({{"rope_theta", 700.0},
                                           {"rope_scaling", {{"type", "linear"}, {"factor", 3.0}}},
                                           {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5.0}}}});
  EXPECT_EQ(rotary.scaling, RopeScaling::linear);
  EXPECT_EQ(rotary.factor, 3.0);
  EXPECT_EQ(rotary.rope_theta, 700.0);
  EXPECT_EQ(rotary_with({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5.0}}}}).rope_theta, 5.0);
}

TEST(ModelSpec, Qwen3HasNormsOnHeadsAndWindowsWhereAskedFor) {
  const ModelSpec spec = spec_of(small("qwen3", {{"sliding_window", 9}, {"max_window_layers", 4}}));
  EXPECT_EQ(spec.layers[0].attention.head_dim, 128);
  EXPECT_EQ(spec.layers[0].attention.q_layernorm, QKNorm{});
  EXPECT_EQ(windows_of(spec), std::vector<int64_t>(6));
  EXPECT_EQ(windows_of(spec_of(
                small("qwen3", {{"use_sliding_window", true}, {"sliding_window", 9}, {"max_window_layers", 4}}))),
            (std::vector<int64_t>{0, 0, 0, 0, 9, 9}));
  std::vector<std::string> types(6, "full_attention");
  types[2] = "sliding_attention";
  EXPECT_EQ(windows_of(
                spec_of(small("qwen3", {{"use_sliding_window", true}, {"sliding_window", 9}, {"layer_types", types}}))),
            (std::vector<int64_t>{0, 0, 9, 0, 0, 0}));
  EXPECT_ERROR(spec_of(small("qwen3", {{"layer_types", types}})), "layer 2 is of type \"sliding_attention\"");
  types[2] = "linear_attention";
  EXPECT_ERROR(spec_of(small("qwen3", {{"layer_types", types}})), "layer 2 is of type \"linear_attention\"");
  EXPECT_ERROR(spec_of(small("qwen3", {{"layer_types", {"full_attention"}}})), "\"layer_types\" has 1 entries");
}

TEST(ModelSpec, Gemma3HasTwoRotationsFourNormsAndAScaledEmbedding) {
  const ModelSpec spec = spec_of(small("gemma3_text", {{"head_dim", 16},
                                                       {"query_pre_attn_scalar", 64},
                                                       {"sliding_window", 7},
                                                       {"rope_theta", 5e5},
                                                       {"rope_local_base_freq", 3e3},
                                                       {"final_logit_softcapping", 30.0},
                                                       {"rope_scaling", {{"rope_type", "linear"}, {"factor", 8.0}}}}));
  EXPECT_EQ(windows_of(spec), (std::vector<int64_t>{7, 7, 7, 7, 7, 0}));
  EXPECT_EQ(spec.layers[0].attention.rotary_emb->rope_theta, 3e3);
  EXPECT_EQ(spec.layers[0].attention.rotary_emb->scaling, RopeScaling::none);
  EXPECT_EQ(spec.layers[5].attention.rotary_emb->rope_theta, 5e5);
  EXPECT_EQ(spec.layers[5].attention.rotary_emb->factor, 8.0);
  EXPECT_EQ(spec.layers[5].attention.softmax_scale, 1.0 / 8);
  EXPECT_EQ(spec.layers[5].attention.q_layernorm->kind, NormKind::rms_plus_one);
  EXPECT_EQ(spec.embedding.scale, std::sqrt(32.0));
  EXPECT_EQ(spec.head.soft_cap, 30.0);
  EXPECT_TRUE(spec.head.tied);
  EXPECT_EQ(std::get<DenseMlp>(spec.layers[0].mlp).activation, Activation::gelu_tanh);
  const LayerSpec& layer = spec.layers[0];
  for (const auto* norm : {&layer.attention_norm, &layer.post_attention_norm, &layer.mlp_norm, &layer.post_mlp_norm})
    EXPECT_EQ((*norm)->kind, NormKind::rms_plus_one);
  // The newer form names both rotations.
  const ModelSpec newer = spec_of(
      small("gemma3_text", {{"head_dim", 16},
                            {"rope_parameters",
                             {{"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 12.0}}},
                              {"full_attention", {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 34.0}}}}}}));
  EXPECT_EQ(newer.layers[0].attention.rotary_emb->rope_theta, 12.0);
  EXPECT_EQ(newer.layers[5].attention.rotary_emb->rope_theta, 34.0);
  EXPECT_ERROR(spec_of(small("gemma3_text", {{"use_bidirectional_attention", true}})), "use_bidirectional_attention");
  EXPECT_ERROR(spec_of(small("gemma3_text", {{"attn_logit_softcapping", 5.0}})), "attn_logit_softcapping");
}

TEST(ModelSpec, GptOssHasSinksWindowsInTurnsAndExperts) {
  const ModelSpec spec = spec_of(
      small("gpt_oss",
            {{"num_local_experts", 16}, {"num_experts_per_tok", 3}, {"sliding_window", 8}, {"swiglu_limit", 5.0}}));
  EXPECT_EQ(windows_of(spec), (std::vector<int64_t>{8, 0, 8, 0, 8, 0}));
  const AttentionConfig& attention = spec.layers[0].attention;
  EXPECT_EQ(attention.learned_sinks_size, 1);
  EXPECT_TRUE(attention.qkv_bias && attention.o_bias);
  EXPECT_EQ(attention.rotary_emb->scaling, RopeScaling::yarn);
  EXPECT_FALSE(attention.rotary_emb->truncate);
  const auto& mlp = std::get<ExpertsMlp>(spec.layers[0].mlp);
  EXPECT_EQ(mlp.experts, 16);
  EXPECT_EQ(mlp.experts_per_token, 3);
  EXPECT_EQ(mlp.expert,
            (DenseMlp{.width = 64, .activation = Activation::clamped_silu, .has_bias = true, .limit = 5.0}));
  EXPECT_EQ(mlp.router.scores, RouterScores::top_k_then_softmax);
  EXPECT_TRUE(mlp.router.has_bias);
  EXPECT_ERROR(spec_of(small("gpt_oss", {{"num_local_experts", 4}, {"num_experts_per_tok", 5}})),
               "\"num_experts_per_tok\" is 5, expected 1 to 4");
  EXPECT_ERROR(
      spec_of(small("gpt_oss", {{"num_local_experts", 4}, {"quantization_config", {{"quant_method", "fp8"}}}})),
      "\"quant_method\" is \"fp8\"");
}

TEST(ModelSpec, Olmo2HasNormsAfterItsBranchesAndOverAllHeads) {
  const LayerSpec layer = spec_of(small("olmo2")).layers[0];
  EXPECT_FALSE(layer.attention_norm || layer.mlp_norm);
  EXPECT_TRUE(layer.post_attention_norm && layer.post_mlp_norm);
  EXPECT_EQ(layer.attention.q_layernorm, (QKNorm{.width = NormWidth::all, .eps = 1e-5}));
}

TEST(ModelSpec, MixtralHasExpertsAndOneWindowForAllLayers) {
  const ModelSpec spec = spec_of(small("mixtral", {{"num_local_experts", 5}, {"num_experts_per_tok", 3}}));
  EXPECT_EQ(windows_of(spec), std::vector<int64_t>(6));
  ExpertsMlp expected{.experts = 5, .experts_per_token = 3, .expert = {.width = 64}};
  expected.router = {.scores = RouterScores::softmax_then_top_k, .normalized = true};
  EXPECT_EQ(std::get<ExpertsMlp>(spec.layers[5].mlp), expected);
  const AttentionConfig& attention = spec.layers[5].attention;
  EXPECT_FALSE(attention.qkv_bias || attention.o_bias);
  // [CFG-97]
  EXPECT_EQ(windows_of(spec_of(small("mixtral", {{"sliding_window", 9}}))), std::vector<int64_t>(6, 9));
  EXPECT_EQ(windows_of(spec_of(small("mixtral", {{"sliding_window", nullptr}}))), std::vector<int64_t>(6));
  const ModelSpec relu = spec_of(small("mixtral", {{"hidden_act", "relu"}}));
  EXPECT_EQ(std::get<ExpertsMlp>(relu.layers[0].mlp).expert.activation, Activation::relu);
}

// transformers: MixtralConfig.
TEST(ModelSpec, MixtralsDefaults) {
  Json config = small("mixtral", {{"num_attention_heads", 16}});
  config.erase("num_key_value_heads");
  const ModelSpec spec = spec_of(config);
  EXPECT_EQ(spec.family, "mixtral");
  EXPECT_EQ(spec.context_length, 131072);
  EXPECT_EQ(spec.final_norm, (NormSpec{.eps = 1e-5}));
  EXPECT_FALSE(spec.head.tied);
  const AttentionConfig& attention = spec.layers[0].attention;
  EXPECT_EQ(attention.num_key_value_heads, 8);
  EXPECT_EQ(attention.head_dim, 2);
  EXPECT_EQ(attention.rotary_emb->rope_theta, 1e6);
  const auto& mlp = std::get<ExpertsMlp>(spec.layers[0].mlp);
  EXPECT_EQ(mlp.experts, 8);
  EXPECT_EQ(mlp.experts_per_token, 2);
}

// [CFG-97], as __post_init__ of both classes says; an absent key stands for 8.
TEST(ModelSpec, NullKeyValueHeadsAreTheQueryHeads) {
  for (const char* family : {"mixtral", "gpt_oss"}) {
    SCOPED_TRACE(family);
    Json config = small(family, {{"num_attention_heads", 16}, {"num_local_experts", 8}});
    config["num_key_value_heads"] = nullptr;
    EXPECT_EQ(spec_of(config).layers[0].attention.num_key_value_heads, 16);
    config.erase("num_key_value_heads");
    EXPECT_EQ(spec_of(config).layers[0].attention.num_key_value_heads, 8);
  }
}

TEST(ModelSpec, MixtralsKeysThatMakeNoSenseAreRefused) {
  const auto refused = [](const Json& more, std::string_view part) {
    EXPECT_ERROR(spec_of(small("mixtral", more)), part);
  };
  refused({{"num_local_experts", 4}, {"num_experts_per_tok", 5}}, "\"num_experts_per_tok\" is 5, expected 1 to 4");
  refused({{"sliding_window", 0}}, "\"sliding_window\" is 0");
  // transformers' class does not read these.
  refused({{"attention_bias", true}}, "family \"mixtral\" does not know this key");
  refused({{"layer_types", std::vector<std::string>(6, "sliding_attention")}}, "\"layer_types\"");
}

ModelSpec spec_of_file(const std::string& name) {
  std::ifstream in(std::string(REGARD_TEST_DATA "/data/") + name);
  return ModelSpec::from_config_json(std::string(std::istreambuf_iterator<char>(in), {}), name);
}

// The numbers of weights that the models' makers publish, without norms, biases and routers.
TEST(ModelSpec, ReleasedConfigsAreUnderstoodAndHaveAsManyWeights) {
  const auto weights = [](const std::string& name) {
    ModelSpec spec = spec_of_file(name);
    spec.bytes_per_weight = {.attention = 1, .mlp = 1, .embedding = 1};
    return spec.weight_bytes();
  };
  EXPECT_NEAR(weights("llama-3-70b.json"), 70.55e9, 0.01e9);
  EXPECT_NEAR(weights("llama-3.1-8b.json"), 8.030e9, 0.005e9);
  EXPECT_NEAR(weights("qwen3-8b.json"), 8.191e9, 0.005e9);
  EXPECT_NEAR(weights("gemma-3-1b-it.json"), 0.9999e9, 0.0005e9);
  EXPECT_NEAR(weights("gemma-3-270m.json"), 0.2681e9, 0.0005e9);
  EXPECT_NEAR(weights("olmo-2-7b.json"), 7.299e9, 0.005e9);
  EXPECT_NEAR(weights("mixtral-8x7b.json"), 46.70e9, 0.005e9);
  EXPECT_NEAR(weights("gpt-oss-20b.json"), 20.9e9, 0.05e9);
  EXPECT_NEAR(weights("gpt-oss-120b.json"), 116.8e9, 0.1e9);
}

TEST(ModelSpec, Mxfp4TakesAsManyBytesAsThePublishedFiles) {
  const ModelSpec oss = spec_of_file("gpt-oss-120b.json");
  const auto equal = oss.equal_layers();
  ASSERT_EQ(equal.size(), 2U);
  EXPECT_EQ(equal[0].layer->attention.sliding_window, 128);
  EXPECT_EQ(equal[0].count, 18);
  EXPECT_EQ(equal[1].layer->attention.sliding_window, 0);
  EXPECT_NEAR(oss.weight_bytes(), 65.2e9, 0.5e9);
}

TEST(ModelSpec, WhatMakesNoSenseIsRefused) {
  EXPECT_ERROR(ModelSpec::from_config_json("", "config.json"), "config.json is no valid JSON object");
  EXPECT_ERROR(ModelSpec::from_config_json("[1]", "x.json"), "x.json is no valid JSON object");
  EXPECT_ERROR(ModelSpec::from_config_json(std::string(100000, '['), "x.json"), "no valid JSON object");
  const auto refused = [](const Json& more, std::string_view part) { EXPECT_ERROR(llama_with(more), part); };
  refused({{"num_hidden_layers", 1000000}}, "\"num_hidden_layers\" is 1000000, expected 1 to 4096");
  refused({{"hidden_size", -1}}, "\"hidden_size\" is -1");
  refused({{"hidden_size", "32"}}, "expected an integer");
  refused({{"num_key_value_heads", 3}}, "num_key_value_heads is 3, expected a divisor of num_attention_heads");
  refused({{"hidden_act", "mish"}}, "\"hidden_act\" is \"mish\"");
  refused({{"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}}}, "\"dynamic\"");
}

class GgufSpec : public testing::Test {
 protected:
  ModelSpec spec_of(const test::GgufBuilder& gguf) {
    return ModelSpec::from(Checkpoint::open(folder_.write("model.gguf", gguf.build())));
  }
  static test::GgufBuilder with(const std::string& key, uint32_t type, const std::string& bytes) {
    test::GgufBuilder gguf = test::TinyLlama().gguf();
    gguf.add_raw("llama." + key, type, bytes);
    return gguf;
  }
  test::TempFolder folder_;
};

TEST_F(GgufSpec, KeysThatChangeWhatIsComputedAreReadOrRefused) {
  using test::bytes_of;
  EXPECT_EQ(spec_of(with("attention.scale", test::gguf::f32, bytes_of(0.25F))).layers[0].attention.softmax_scale, 0.25);
  EXPECT_FALSE(
      spec_of(with("attention.causal", test::gguf::boolean, bytes_of(uint8_t{0}))).layers[0].attention.is_causal);
  EXPECT_EQ(*spec_of(with("rope.scaling.attn_factor", test::gguf::f32, bytes_of(1.25F)))
                 .layers[0]
                 .attention.rotary_emb->attention_factor,
            1.25);
  EXPECT_ERROR(spec_of(with("logit_scale", test::gguf::f32, bytes_of(0.5F))), "\"llama.logit_scale\"");
  EXPECT_ERROR(spec_of(with("rope.scaling.yarn_log_multiplier", test::gguf::f32, bytes_of(0.5F))),
               "yarn_log_multiplier");
  EXPECT_ERROR(spec_of(with("attn_logit_softcapping", test::gguf::f32, bytes_of(50.0F))), "attn_logit_softcapping");
  EXPECT_EQ(spec_of(with("logit_scale", test::gguf::f32, bytes_of(1.0F))).layers,
            spec_of(test::TinyLlama().gguf()).layers);
}

}  // namespace
}  // namespace regard
