#include <gtest/gtest.h>

#include <numeric>

#include "engine/score.h"
#include "regard/generation.h"
#include "regard/model.h"
#include "regard/model_spec.h"
#include "regard/tokenizer.h"
#include "support/broken_files.h"
#include "support/byte_writer.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

using test::TempFolder;
using test::TinyLlama;

// Everything that a command does with a model before it speaks, and a little of that.
std::vector<int32_t> run(const std::filesystem::path& path) {
  const auto checkpoint = Checkpoint::open(path);
  const auto tokenizer = Tokenizer::from(checkpoint);
  Workspace workspace(1);
  const auto decoder = Model::load(checkpoint, workspace.threads());
  const auto prompt = tokenizer.encode("the inn and the tin hen");
  return generate(decoder, {.prompt = prompt, .max_tokens = 12}, {.end_tokens = tokenizer.end_tokens()}, workspace)
      .tokens;
}

TEST(LlamaFamily, GgufAndHuggingFaceFormsOfAModelSayTheSame) {
  const TempFolder folder;
  const TinyLlama model{.has_end_token = false};
  model.write_hugging_face(folder.path());
  const auto expected = run(folder.path());
  EXPECT_EQ(expected.size(), 12U);
  const TempFolder sharded;
  model.write_hugging_face(sharded.path(), 4);
  EXPECT_EQ(run(sharded.path()), expected);
  const TempFolder gguf;
  EXPECT_EQ(run(gguf.write("model.gguf", model.gguf().build())), expected);
  // Another model says something else: the tokens do come from the weights.
  EXPECT_NE(run(gguf.write("other.gguf", TinyLlama{.has_end_token = false, .seed = 2}.gguf().build())), expected);
}

TEST(LlamaFamily, BothFormsGiveTheSameConfigs) {
  const TempFolder folder;
  TinyLlama().write_hugging_face(folder.path());
  const auto hugging_face = Checkpoint::open(folder.path());
  const TempFolder other;
  const auto gguf = Checkpoint::open(other.write("model.gguf", TinyLlama().gguf().build()));
  for (const Checkpoint* checkpoint : {&hugging_face, &gguf}) {
    const ModelSpec model = ModelSpec::from(*checkpoint);
    EXPECT_EQ(model.family, "llama");
    EXPECT_EQ(model.layers.size(), 2U);
    EXPECT_EQ(model.hidden_size, 32);
    EXPECT_EQ(std::get<DenseMlp>(model.layers[1].mlp).width, 64);
    EXPECT_EQ(model.vocab_size, 267);
    EXPECT_EQ(model.context_length, 64);
    EXPECT_FALSE(model.head.tied);
    const AttentionConfig attention = AttentionConfig::from(*checkpoint, 1);
    EXPECT_EQ(attention.num_attention_heads, 4);
    EXPECT_EQ(attention.num_key_value_heads, 2);
    EXPECT_EQ(attention.head_dim, 8);
    ASSERT_TRUE(attention.rotary_emb);
    EXPECT_EQ(attention.rotary_emb->rotary_dim, 8);
    EXPECT_EQ(attention.rotary_emb->rope_theta, 10000.0);
    EXPECT_ERROR(AttentionConfig::from(*checkpoint, 2), "layer is 2, expected 0 to 1");
    EXPECT_ERROR(AttentionConfig::from(*checkpoint, -1), "layer is -1");
  }
}

TEST(LlamaFamily, MissingValuesHaveTheFormatsDefaults) {
  const TempFolder folder;
  test::GgufBuilder gguf = TinyLlama{.kv_heads = 4}.gguf();
  gguf.remove("llama.attention.head_count_kv").remove("llama.rope.freq_base").remove("llama.rope.dimension_count");
  const auto checkpoint = Checkpoint::open(folder.write("model.gguf", gguf.build()));
  const AttentionConfig attention = AttentionConfig::from(checkpoint, 0);
  EXPECT_EQ(attention.num_key_value_heads, 4);
  EXPECT_EQ(attention.rotary_emb->rotary_dim, 8);
  EXPECT_EQ(attention.rotary_emb->rope_theta, 10000.0);
}

TEST(LlamaFamily, WithoutAnOutputMatrixTheEmbeddingIsTheHead) {
  const TempFolder folder;
  test::GgufBuilder gguf = TinyLlama{.has_end_token = false}.gguf();
  const std::string tied = [&] {
    test::GgufBuilder same = gguf;
    same.tensor("output.weight").data = same.tensor("token_embd.weight").data;
    return same.build();
  }();
  std::erase_if(gguf.tensors, [](const auto& tensor) { return tensor.name == "output.weight"; });
  const auto without = folder.write("without.gguf", gguf.build());
  EXPECT_TRUE(ModelSpec::from(Checkpoint::open(without)).head.tied);
  EXPECT_EQ(run(without), run(folder.write("tied.gguf", tied)));
}

TEST(LlamaFamily, HuggingFaceScalingsAreRead) {
  const auto rotary_of = [](const nlohmann::json& scaling) {
    const TempFolder folder;
    TinyLlama().write_hugging_face(folder.path());
    auto config = TinyLlama().config_json();
    config["rope_scaling"] = scaling;
    folder.write("config.json", config.dump());
    return *AttentionConfig::from(Checkpoint::open(folder.path()), 0).rotary_emb;
  };
  EXPECT_EQ(rotary_of(nullptr).scaling, RopeScaling::none);
  EXPECT_EQ(rotary_of({{"type", "linear"}, {"factor", 2}}).factor, 2.0);
  const auto llama3 = rotary_of({{"rope_type", "llama3"},
                                 {"factor", 8.0},
                                 {"low_freq_factor", 1.0},
                                 {"high_freq_factor", 4.0},
                                 {"original_max_position_embeddings", 32}});
  EXPECT_EQ(llama3.scaling, RopeScaling::llama3);
  EXPECT_EQ(llama3.factor, 8.0);
  EXPECT_EQ(llama3.original_max_position_embeddings, 32);
  const auto longrope =
      rotary_of({{"rope_type", "longrope"}, {"short_factor", {1, 1, 1.5, 2}}, {"long_factor", {1, 2, 3, 4}}});
  EXPECT_EQ(longrope.long_factor, (std::vector<double>{1, 2, 3, 4}));
  EXPECT_EQ(longrope.longrope_factors, LongropeFactors::short_factor);
  const auto stretched = rotary_of({{"rope_type", "longrope"},
                                    {"short_factor", {1, 1, 1.5, 2}},
                                    {"long_factor", {1, 2, 3, 4}},
                                    {"original_max_position_embeddings", 8}});
  EXPECT_EQ(stretched.longrope_factors, LongropeFactors::long_factor);
}

TEST(LlamaFamily, BrokenModelsAreRefusedWithTheReason) {
  const TempFolder folder;
  for (const auto& broken : test::broken_models())
    EXPECT_ERROR(run(folder.write("model.gguf", broken.bytes)), broken.complaint) << broken.name;
}

TEST(LlamaFamily, BrokenConfigsAreRefusedWithTheReason) {
  const TempFolder folder;
  TinyLlama().write_hugging_face(folder.path());
  for (const auto& broken : test::broken_configs()) {
    folder.write("config.json", broken.bytes);
    EXPECT_ERROR(run(folder.path()), broken.complaint) << broken.name << ": " << broken.bytes.substr(0, 300);
  }
}

TEST(LlamaFamily, FoldersWithoutTheirPartsAreRefused) {
  const TempFolder folder;
  TinyLlama().write_hugging_face(folder.path());
  std::filesystem::remove(folder.path() / "config.json");
  EXPECT_ERROR(run(folder.path()), "no config.json");
  TinyLlama().write_hugging_face(folder.path());
  std::filesystem::remove(folder.path() / "tokenizer.json");
  EXPECT_ERROR(run(folder.path()), "holds no tokenizer");
}

TEST(LlamaFamily, ATextOfMoreTokensThanTheContextIsRefused) {
  const TempFolder folder;
  const auto checkpoint = Checkpoint::open(folder.write("model.gguf", TinyLlama{.context = 16}.gguf().build()));
  const auto tokenizer = Tokenizer::from(checkpoint);
  Workspace workspace(1);
  const auto decoder = Model::load(checkpoint, workspace.threads());
  const auto generate_from = [&](size_t count) {
    return generate(decoder, {.prompt = std::vector<int32_t>(count, 5), .max_tokens = 100},
                    {.end_tokens = tokenizer.end_tokens()}, workspace);
  };
  EXPECT_ERROR(generate_from(17), "17 tokens, expected 1 to 16");
  EXPECT_ERROR(generate_from(0), "0 tokens");
  EXPECT_EQ(generate_from(16).tokens.size(), 1U);
  const auto score_of = [&](std::vector<int32_t> tokens) {
    return score(decoder, tokens, workspace, [](int64_t) {}).mean_nll;
  };
  EXPECT_ERROR(score_of(std::vector<int32_t>(17, 5)), "17 tokens, expected 2 to 16");
  EXPECT_ERROR(score_of({5}), "1 tokens");
  EXPECT_GT(score_of(std::vector<int32_t>(16, 5)), 0.0);
}

// The last token is only looked up among the logits, which the decoder itself never checks.
TEST(LlamaFamily, ScoringATokenThatTheModelLacksIsRefused) {
  const TempFolder folder;
  const auto checkpoint = Checkpoint::open(folder.write("model.gguf", TinyLlama().gguf().build()));
  Workspace workspace(1);
  const auto decoder = Model::load(checkpoint, workspace.threads());
  const auto score_of = [&](std::vector<int32_t> tokens) {
    return score(decoder, tokens, workspace, [](int64_t) {}).mean_nll;
  };
  for (const int32_t wrong : {267, -1, 1'000'000'000}) {
    EXPECT_ERROR(score_of({5, wrong}), "token id is " + std::to_string(wrong));
    EXPECT_ERROR(score_of({wrong, 5}), "token id is " + std::to_string(wrong));
  }
}

// Infinite weights are numbers, but no text comes out of them.
TEST(LlamaFamily, TensorsThatTheModelWouldLeaveOutAreRefused) {
  const TempFolder folder;
  for (const char* name : {"blk.1.attn_q_norm.weight", "blk.0.attn_sinks.weight", "blk.0.attn_k.bias",
                           "blk.0.post_attention_norm.weight", "blk.2.attn_q.weight", "blk.0.attn_q.scale"}) {
    test::GgufBuilder gguf = TinyLlama().gguf();
    gguf.tensors.push_back({.name = name, .sizes = {8}, .data = std::string(32, '\0')});
    const auto path = folder.write("model.gguf", gguf.build());
    EXPECT_ERROR(run(path), name);
  }
  // One layer alone has an eye on its own tensors.
  test::GgufBuilder gguf = TinyLlama().gguf();
  gguf.tensors.push_back({.name = "blk.1.attn_q_norm.weight", .sizes = {8}, .data = std::string(32, '\0')});
  const auto checkpoint = Checkpoint::open(folder.write("model.gguf", gguf.build()));
  const auto load = [&](int64_t layer) {
    return Attention::load(checkpoint, layer, AttentionConfig::from(checkpoint, layer), Threads(1));
  };
  EXPECT_ERROR(load(1), "blk.1.attn_q_norm.weight");
  EXPECT_GT(load(0).bytes(), 0);
}

// transformers ignores a stored head where the config ties it to the embedding.
TEST(LlamaFamily, AHeadThatIsStoredBesideATiedEmbeddingIsNotUsed) {
  const TempFolder folder;
  const TinyLlama model{.has_end_token = false};
  model.write_hugging_face(folder.path());
  const auto untied = run(folder.path());
  auto config = model.config_json();
  config["tie_word_embeddings"] = true;
  folder.write("config.json", config.dump());
  const auto tied = run(folder.path());
  EXPECT_NE(tied, untied);
  test::GgufBuilder gguf = model.gguf();
  std::erase_if(gguf.tensors, [](const auto& tensor) { return tensor.name == "output.weight"; });
  EXPECT_EQ(tied, run(folder.write("model.gguf", gguf.build())));
}

TEST(LlamaFamily, LogitsOfNaNAreRefused) {
  const TempFolder folder;
  test::GgufBuilder gguf = TinyLlama().gguf();
  for (const char* name : {"blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"})
    for (size_t i = 0; i < gguf.tensor(name).data.size(); i += 4)
      gguf.tensor(name).data.replace(i, 4, test::bytes_of(std::numeric_limits<float>::infinity()));
  const auto path = folder.write("model.gguf", gguf.build());
  EXPECT_ERROR(run(path), "NaN");
  const auto checkpoint = Checkpoint::open(path);
  Workspace workspace(1);
  const auto decoder = Model::load(checkpoint, workspace.threads());
  EXPECT_ERROR(score(decoder, std::vector<int32_t>{1, 2, 3}, workspace, [](int64_t) {}).mean_nll, "NaN");
}

}  // namespace
}  // namespace regard
