#include "regard/model_shape.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "support/expect_error.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

using Json = nlohmann::json;

ModelShape shape_of(const Json& config) { return ModelShape::from_config_json(config.dump(), "config.json"); }

Json small() {
  return {{"model_type", "llama"}, {"hidden_size", 32},        {"num_hidden_layers", 6}, {"num_attention_heads", 4},
          {"vocab_size", 100},     {"num_key_value_heads", 2}, {"intermediate_size", 64}};
}

Json with(Json config, const Json& more) {
  config.update(more);
  return config;
}

// Windows of the layers, 0 for none; chunks negative.
std::vector<int64_t> masks_of(const Json& config) {
  const ModelShape shape = shape_of(config);
  std::vector<int64_t> masks;
  for (const auto& same : shape.layers)
    for (int64_t i = 0; i < same.count; ++i)
      masks.push_back(same.attention.mask.sliding_window - same.attention.mask.attention_chunk_size);
  return masks;
}

TEST(ModelShape, OfAPlainModel) {
  const ModelShape shape = shape_of(small());
  EXPECT_EQ(shape.family, "llama");
  EXPECT_EQ(shape.num_layers(), 6);
  ASSERT_EQ(shape.layers.size(), 1U);
  EXPECT_EQ(
      shape.layers[0].attention,
      (LayerShape{
          .hidden_size = 32, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 8, .v_head_dim = 8}));
  EXPECT_EQ(shape.layers[0].mlp, (MlpShape{.width = 64}));
  // Of a layer q and o are 32 x 32, k and v 32 x 16, the MLP 3 x 32 x 64; embedding and head 100 x 32.
  EXPECT_EQ(shape.weight_bytes(), 2 * (6 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 2 * 100 * 32));
}

ModelShape shape_of_file(const std::string& name) {
  std::ifstream in(std::string(REGARD_TEST_DATA "/data/") + name);
  return ModelShape::from_config_json(std::string(std::istreambuf_iterator<char>(in), {}), name);
}

TEST(ModelShape, TheWeightsOfKnownModelsAreAsMany) {
  EXPECT_NEAR(shape_of_file("llama-3-70b.json").weight_bytes(), 2 * 70.55e9, 0.01e9);
  const ModelShape oss = shape_of_file("gpt-oss-120b.json");
  ASSERT_EQ(oss.layers.size(), 2U);
  EXPECT_EQ(oss.layers[0].attention.mask.sliding_window, 128);
  EXPECT_EQ(oss.layers[0].count, 18);
  EXPECT_EQ(oss.layers[1].attention.mask.sliding_window, 0);
  EXPECT_EQ(oss.layers[0].mlp, (MlpShape{.width = 2880, .experts = 128, .experts_per_token = 4}));
  EXPECT_NEAR(oss.weight_bytes(), 65.2e9, 0.5e9);  // the published files have 65 GB
}

TEST(ModelShape, OtherNamesOfTheSameThings) {
  const ModelShape gpt2 = shape_of(
      {{"model_type", "gpt2"}, {"n_embd", 48}, {"n_layer", 2}, {"n_head", 6}, {"vocab_size", 9}, {"n_inner", nullptr}});
  EXPECT_EQ(gpt2.layers[0].attention.num_key_value_heads, 6);
  EXPECT_EQ(gpt2.layers[0].mlp, (MlpShape{.width = 192, .matrices = 2}));
  const ModelShape dbrx =
      shape_of({{"model_type", "dbrx"},
                {"d_model", 48},
                {"n_layers", 2},
                {"n_heads", 6},
                {"vocab_size", 9},
                {"attn_config", {{"kv_n_heads", 2}}},
                {"ffn_config", {{"ffn_hidden_size", 80}, {"moe_num_experts", 16}, {"moe_top_k", 4}}}});
  EXPECT_EQ(dbrx.layers[0].attention.num_key_value_heads, 2);
  EXPECT_EQ(dbrx.layers[0].mlp, (MlpShape{.width = 80, .experts = 16, .experts_per_token = 4}));
  EXPECT_EQ(shape_of(with(small(), {{"model_type", "falcon"}, {"multi_query", true}, {"num_key_value_heads", nullptr}}))
                .layers[0]
                .attention.num_key_value_heads,
            1);
  const ModelShape nested = shape_of({{"model_type", "gemma3"}, {"torch_dtype", "float32"}, {"text_config", small()}});
  EXPECT_EQ(nested.hidden_size, 32);
  EXPECT_EQ(nested.mlp_weight_bytes, 4);
}

TEST(ModelShape, WhichLayersSeeAWindow) {
  const Json list = {"full_attention",    "sliding_attention", "chunked_attention",
                     "sliding_attention", "full_attention",    "full_attention"};
  // Equal layers are counted together.
  EXPECT_EQ(masks_of(with(small(), {{"layer_types", list}, {"sliding_window", 9}, {"attention_chunk_size", 5}})),
            (std::vector<int64_t>{0, 0, 0, 9, 9, -5}));
  EXPECT_EQ(masks_of(with(small(), {{"sliding_window", 9}})), std::vector<int64_t>(6, 9));
  EXPECT_EQ(masks_of(with(small(), {{"sliding_window", nullptr}})), std::vector<int64_t>(6));
  EXPECT_EQ(masks_of(with(small(), {{"sliding_window", 9}, {"use_sliding_window", false}})), std::vector<int64_t>(6));
  EXPECT_EQ(masks_of(with(small(), {{"model_type", "qwen2"}, {"sliding_window", 9}})), std::vector<int64_t>(6));
  EXPECT_EQ(
      masks_of(with(
          small(),
          {{"model_type", "qwen2"}, {"sliding_window", 9}, {"use_sliding_window", true}, {"max_window_layers", 4}})),
      (std::vector<int64_t>{0, 0, 0, 0, 9, 9}));
  EXPECT_EQ(masks_of(with(small(), {{"model_type", "gemma2"}, {"sliding_window", 9}})),
            (std::vector<int64_t>{9, 9, 9, 0, 0, 0}));
  EXPECT_EQ(masks_of(with(small(), {{"sliding_window", 9}, {"sliding_window_pattern", 6}})),
            (std::vector<int64_t>{9, 9, 9, 9, 9, 0}));
  EXPECT_EQ(masks_of(with(small(), {{"attention_chunk_size", 9}})), (std::vector<int64_t>{-9, -9, -9, -9, -9, 0}));
}

TEST(ModelShape, ExpertsOfLayers) {
  const Json experts = {{"num_experts", 8}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 16}};
  const MlpShape sparse{.width = 16, .experts = 8, .experts_per_token = 2};
  EXPECT_EQ(shape_of(with(small(), experts)).layers[0].mlp, sparse);
  const ModelShape mixed =
      shape_of(with(with(small(), experts), {{"first_k_dense_replace", 1}, {"mlp_only_layers", {4}}}));
  ASSERT_EQ(mixed.layers.size(), 2U);
  EXPECT_EQ(mixed.layers[0].mlp, (MlpShape{.width = 64}));
  EXPECT_EQ(mixed.layers[0].count, 2);
  EXPECT_EQ(mixed.layers[1].mlp, sparse);
  EXPECT_EQ(shape_of(with(with(small(), experts), {{"n_shared_experts", 2}})).layers[0].mlp.shared_width, 32);
  EXPECT_EQ(shape_of(with(with(small(), experts), {{"decoder_sparse_step", 3}})).layers[1].count, 2);
}

TEST(ModelShape, BytesOfWeights) {
  const auto bytes = [](const Json& quantization) {
    const ModelShape shape = shape_of(with(small(), {{"quantization_config", quantization}}));
    EXPECT_EQ(shape.embedding_weight_bytes, 2);
    return std::pair(shape.attention_weight_bytes, shape.mlp_weight_bytes);
  };
  EXPECT_EQ(bytes({{"quant_method", "mxfp4"}}), std::pair(2.0, 0.53125));
  EXPECT_EQ(bytes({{"quant_method", "fp8"}}), std::pair(1.0, 1.0));
  EXPECT_EQ(bytes({{"quant_method", "gptq"}, {"bits", 4}}), std::pair(0.5, 0.5));
  EXPECT_EQ(bytes({{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}}), std::pair(1.0, 1.0));
  EXPECT_EQ(bytes(nullptr), std::pair(2.0, 2.0));
}

TEST(ModelShape, OfCheckpoints) {
  const test::TempFolder folder;
  const test::TinyLlama tiny;
  const std::string gguf = folder.write("model.gguf", tiny.gguf().build());
  const ModelShape shape = ModelShape::from(Checkpoint::open(gguf));
  EXPECT_EQ(shape.num_layers(), 2);
  ASSERT_EQ(shape.layers.size(), 1U);
  EXPECT_EQ(shape.layers[0].attention.num_key_value_heads, 2);
  EXPECT_EQ(shape.layers[0].attention.head_dim, 8);
  const test::TempFolder other;
  tiny.write_hugging_face(other.path(), 2);
  const ModelShape same = ModelShape::from(Checkpoint::open(other.path()));
  EXPECT_EQ(same.layers[0].attention, shape.layers[0].attention);
  EXPECT_EQ(same.layers[0].mlp, shape.layers[0].mlp);
}

TEST(ModelShape, WhatMakesNoSenseIsRefused) {
  EXPECT_ERROR(ModelShape::from_config_json("", "config.json"), "config.json is no valid JSON object");
  EXPECT_ERROR(ModelShape::from_config_json("[1]", "x.json"), "x.json is no valid JSON object");
  EXPECT_ERROR(ModelShape::from_config_json(std::string(100000, '['), "x.json"), "no valid JSON object");
  EXPECT_ERROR(shape_of(Json::object()), "config.json has no \"hidden_size\"");
  const auto refused = [](const Json& more, std::string_view part) {
    EXPECT_ERROR(shape_of(with(small(), more)), part);
  };
  refused({{"num_hidden_layers", 1000000}}, "\"num_hidden_layers\" is 1000000, expected 1 to 4096");
  refused({{"hidden_size", -1}}, "\"hidden_size\" is -1");
  refused({{"hidden_size", "32"}}, "expected an integer");
  refused({{"num_key_value_heads", 3}}, "num_key_value_heads is 3, expected a divisor of num_attention_heads 4");
  refused({{"head_dim", 1 << 20}}, "head_dim is 1048576");
  refused({{"layer_types", {"full_attention"}}}, "\"layer_types\" has 1 entries, expected one a layer");
  refused({{"layer_types", std::vector<std::string>(6, "linear_attention")}},
          "layer 0 is of type \"linear_attention\"");
  refused({{"layer_types", std::vector<std::string>(6, "sliding_attention")}}, "has no \"sliding_window\"");
  refused({{"kv_lora_rank", 512}}, "latent attention");
  refused({{"num_experts", 4}}, "has no \"num_experts_per_tok\"");
  refused({{"num_experts", 4}, {"num_experts_per_tok", 5}}, "\"num_experts_per_tok\" is 5, expected 1 to 4");
  refused({{"quantization_config", 3}}, "expected an object");
  refused({{"quantization_config", {{"bits", 4000}}}}, "\"bits\" of \"quantization_config\" is 4000");
}

}  // namespace
}  // namespace regard
