#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "support/broken_files.h"
#include "support/byte_writer.h"
#include "support/tiny_llama.h"

namespace regard::test {
namespace {

using Json = nlohmann::json;

void add_numbers(std::vector<BrokenFile>& files) {
  const auto add = [&](const std::string& key, const std::string& value_name, uint32_t type, const std::string& bytes,
                       std::string complaint) {
    GgufBuilder file = TinyLlama().gguf();
    file.replace_raw(key, type, bytes);
    files.push_back({key + " " + value_name, file.build(), std::move(complaint)});
  };
  for (const char* name : {"block_count", "embedding_length", "feed_forward_length", "context_length",
                           "attention.head_count", "attention.head_count_kv"}) {
    const std::string key = std::string("llama.") + name;
    for (const int64_t value : {int64_t{-1}, int64_t{0}, int64_t{1} << 32, std::numeric_limits<int64_t>::min(),
                                std::numeric_limits<int64_t>::max()})
      add(key, std::to_string(value), gguf::i64, bytes_of(value), std::to_string(value));
    add(key, "as text", gguf::string, bytes_of(std::string_view("4")), "expected an integer");
    add(key, "as a float", gguf::f32, bytes_of(4.0F), "expected an integer");
    add(key, "as an array", gguf::array, array_bytes(gguf::u32, 1, bytes_of(4U)), "expected an integer");
  }
  add("llama.attention.head_count_kv", "3", gguf::u32, bytes_of(3U), "expected a divisor");
  add("llama.block_count", "3", gguf::u32, bytes_of(3U), "blk.2.");
  add("llama.embedding_length", "64", gguf::u32, bytes_of(64U), "token_embd.weight");
  add("llama.feed_forward_length", "32", gguf::u32, bytes_of(32U), "ffn_gate.weight");
  for (const float value : {0.0F, -1.0F, std::nanf(""), HUGE_VALF})
    add("llama.rope.freq_base", std::to_string(value), gguf::f32, bytes_of(value), "rope_theta");
  for (const float value : {-1.0F, std::nanf(""), HUGE_VALF})
    add("llama.attention.layer_norm_rms_epsilon", std::to_string(value), gguf::f32, bytes_of(value), "eps");
  add("llama.rope.freq_base", "as text", gguf::string, bytes_of(std::string_view("1e4")), "expected a number");
  add("llama.rope.dimension_count", "7", gguf::u32, bytes_of(7U), "rotary_dim is 7");
  add("llama.rope.dimension_count", "64", gguf::u32, bytes_of(64U), "rotary_dim is 64");
  add("llama.rope.scaling.type", "magic", gguf::string, bytes_of(std::string_view("magic")), "magic");
  add("llama.rope.scaling.factor", "0", gguf::f32, bytes_of(0.0F), "factor is 0");
  add("llama.attention.key_length", "10", gguf::u32, bytes_of(10U), "expected [40, 32]");
  add("llama.attention.key_length", "of a damaged file", gguf::u32, bytes_of(1U << 24), "expected [67108864, 32]");
  add("llama.attention.sliding_window", "-1", gguf::i32, bytes_of(int32_t{-1}), "sliding_window is -1");
  add("general.architecture", "other", gguf::string, bytes_of(std::string_view("mamba")), "family \"mamba\"");
  add("general.architecture", "1", gguf::u32, bytes_of(1U), "expected a string");
}

void add_tensors(std::vector<BrokenFile>& files) {
  const auto add = [&](std::string name, const std::function<void(GgufBuilder&)>& change, std::string complaint) {
    GgufBuilder file = TinyLlama().gguf();
    change(file);
    files.push_back({std::move(name), file.build(), std::move(complaint)});
  };
  for (const char* key : {"general.architecture", "llama.block_count", "llama.embedding_length",
                          "llama.feed_forward_length", "llama.context_length", "llama.attention.head_count"})
    add(
        std::string("no ") + key, [=](auto& file) { file.remove(key); },
        key == std::string_view("general.architecture") ? "family \"\"" : key);
  for (const char* name : {"token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.1.attn_output.weight",
                           "blk.1.ffn_down.weight", "blk.0.attn_norm.weight"})
    add(
        std::string("no ") + name,
        [=](auto& file) { std::erase_if(file.tensors, [&](auto& tensor) { return tensor.name == name; }); }, name);
  add(
      "no tensors", [](auto& file) { file.tensors.clear(); }, "token_embd.weight");
  add(
      "embedding of one axis", [](auto& file) { file.tensor("token_embd.weight").sizes = {267 * 32}; },
      "expected two axes");
  add(
      "a norm too short",
      [](auto& file) {
        file.tensor("blk.1.ffn_norm.weight").sizes = {16};
        file.tensor("blk.1.ffn_norm.weight").data.resize(64);
      },
      "has 16 numbers, expected 32");
  const auto add_bias = [](GgufBuilder& file, const char* name, uint64_t size) {
    file.tensors.push_back({.name = name, .sizes = {size}, .data = std::string(size * 4, '\0')});
  };
  for (const char* name : {"blk.0.attn_q.bias", "blk.1.ffn_gate.bias", "output.bias"})
    add(
        std::string(name) + " too short", [=](auto& file) { add_bias(file, name, 1); }, "bias");
  add(
      "an odd head with a bias",
      [=](auto& file) {
        // 3 heads of 5 in a model of width 32, where only 4 of each 5 rotate.
        file.replace_raw("llama.attention.head_count", gguf::u32, bytes_of(3U));
        file.replace_raw("llama.attention.head_count_kv", gguf::u32, bytes_of(3U));
        file.replace_raw("llama.rope.dimension_count", gguf::u32, bytes_of(4U));
        file.add_u32("llama.attention.key_length", 5);
        for (const char* part : {"attn_q", "attn_k", "attn_v"}) {
          GgufTensor& weight = file.tensor(std::string("blk.0.") + part + ".weight");
          weight.sizes = {32, 15};
          weight.data.resize(32 * 15 * 4);
          add_bias(file, (std::string("blk.0.") + part + ".bias").c_str(), 15);
        }
      },
      "head_dim is 5");
  for (const char* name : {"token_embd.weight", "output.weight", "output_norm.weight", "blk.0.attn_k.weight",
                           "blk.1.ffn_up.weight", "blk.1.ffn_norm.weight"})
    add(
        std::string("NaN in ") + name,
        [=](auto& file) { file.tensor(name).data.replace(40, 4, bytes_of(std::nanf(""))); }, "NaN");
}

void add_tokenizers(std::vector<BrokenFile>& files) {
  const auto add = [&](const std::string& key, const std::string& value_name, uint32_t type, const std::string& bytes,
                       std::string complaint) {
    GgufBuilder file = TinyLlama().gguf();
    file.replace_raw("tokenizer.ggml." + key, type, bytes);
    files.push_back({"tokenizer " + key + " " + value_name, file.build(), std::move(complaint)});
  };
  const auto texts = [](std::vector<std::string> values) {
    std::string elements;
    for (const std::string& value : values) elements += bytes_of(value);
    return array_bytes(gguf::string, values.size(), elements);
  };
  const auto text = [](std::string_view value) { return bytes_of(value); };
  add("model", "of another kind", gguf::string, text("llama"), "\"llama\"");
  add("model", "as a number", gguf::u32, bytes_of(1U), "wrong kind");
  add("pre", "unknown", gguf::string, text("nobody"), "\"nobody\"");
  add("tokens", "empty", gguf::array, texts({}), "tokens");
  add("tokens", "of numbers", gguf::array, array_bytes(gguf::i32, 1, bytes_of(1)), "wrong kind");
  add("tokens", "that are no UTF-8", gguf::array, texts(std::vector<std::string>(267, "\xC3")), "UTF-8");
  add("tokens", "twice", gguf::array, texts(std::vector<std::string>(267, "a")), "comes twice");
  add("tokens", "fewer than types", gguf::array, texts({"a", "b"}), "token_type has 267 entries, expected 2");
  add("token_type", "of texts", gguf::array, texts({"a"}), "wrong kind");
  add("merges", "without a space", gguf::array, texts({"ab"}), "\"ab\"");
  add("merges", "with two spaces", gguf::array, texts({"a b c"}), "\"a b c\"");
  add("merges", "of unknown tokens", gguf::array, texts({"q z"}), "not in the vocabulary");
  add("eos_token_id", "past the end", gguf::u32, bytes_of(267U), "is 267");
  add("eos_token_id", "negative", gguf::i32, bytes_of(int32_t{-1}), "is -1");
  add("bos_token_id", "as text", gguf::string, text("0"), "wrong kind");
  add("add_sep_token", "true", gguf::boolean, std::string(1, 1), "add_sep_token is true, expected false");
  add("a_new_key", "of any kind", gguf::u32, bytes_of(1U), "tokenizer.ggml.a_new_key is a key that is not known");
  add("add_bos_token", "as a number", gguf::u32, bytes_of(1U), "wrong kind");
  const auto add_pieces = [&](const std::string& name, const std::vector<float>& scores, std::string complaint) {
    GgufBuilder pieces = TinyLlama().gguf();
    pieces.replace_raw("tokenizer.ggml.model", gguf::string, bytes_of(std::string_view("llama")));
    std::string bytes;
    for (const float score : scores) bytes += bytes_of(score);
    pieces.add_raw("tokenizer.ggml.scores", gguf::array, array_bytes(gguf::f32, scores.size(), bytes));
    files.push_back({"tokenizer " + name, pieces.build(), std::move(complaint)});
  };
  add_pieces("few scores", {1, 2}, "scores has 2 entries, expected 267");
  add_pieces("scores that are no numbers", std::vector<float>(267, std::nanf("")), "the score of token 0 is nan");
  add_pieces("scores without end", std::vector<float>(267, HUGE_VALF), "the score of token 0 is inf");
  const auto add_charsmap = [&](const std::string& name, const std::string& table, std::string complaint) {
    GgufBuilder pieces = TinyLlama().gguf();
    pieces.replace_raw("tokenizer.ggml.model", gguf::string, bytes_of(std::string_view("t5")));
    pieces.add_raw("tokenizer.ggml.precompiled_charsmap", gguf::array, array_bytes(gguf::u8, table.size(), table));
    files.push_back({"tokenizer " + name, pieces.build(), std::move(complaint)});
  };
  add_charsmap("charsmap of nothing", "", "precompiled_charsmap has 0 bytes");
  add_charsmap("charsmap of a long trie", bytes_of(8U) + bytes_of(0U), "a trie of 8 bytes in a table of 8");
  add_charsmap("charsmap of half a unit", bytes_of(2U) + bytes_of(0U), "a trie of 2 bytes");
  add_charsmap("charsmap with other texts", bytes_of(4U) + bytes_of(0U) + "\xC3", "no valid UTF-8");
  GgufBuilder file = TinyLlama().gguf();
  auto tokens = tiny_vocabulary();
  tokens[0] = "\xC3";  // a control token, which is searched in the text as it is
  file.remove("tokenizer.ggml.tokens").add_texts("tokenizer.ggml.tokens", tokens);
  files.push_back({"control token that is no UTF-8", file.build(), "UTF-8"});
}

}  // namespace

std::vector<BrokenFile> broken_models() {
  std::vector<BrokenFile> files;
  add_numbers(files);
  add_tensors(files);
  add_tokenizers(files);
  return files;
}

std::vector<BrokenFile> broken_configs() {
  std::vector<BrokenFile> files = {{"empty", " ", "no valid JSON"},
                                   {"half", "{\"model_type\":", "no valid JSON"},
                                   {"a list", "[]", "no valid JSON object"},
                                   {"invalid UTF-8", "{\"model_type\":\"\xFF\"}", "no valid JSON"},
                                   {"a number past every double", "{\"model_type\":1e999}", "no valid JSON"}};
  const auto add = [&](const std::string& key, const Json& value, std::string complaint) {
    Json config = TinyLlama().config_json();
    config[key] = value;
    files.push_back({key, config.dump(), std::move(complaint)});
  };
  for (const char* key : {"num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
                          "num_key_value_heads", "vocab_size", "max_position_embeddings"}) {
    for (const Json& wrong : {Json("4"), Json(4.0), Json(1e300), Json(true), Json::array({4}), Json::object(),
                              Json(std::numeric_limits<uint64_t>::max())})
      add(key, wrong, key);
    for (const int64_t value : {int64_t{-1}, int64_t{0}, int64_t{1} << 32, std::numeric_limits<int64_t>::max()})
      add(key, value, std::to_string(value));
  }
  for (const char* key :
       {"model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"})
    add(key, nullptr, key == std::string_view("model_type") ? "family" : key);
  add("model_type", "mamba", "mamba");
  add("model_type", 7, "model_type");
  add("hidden_act", "mish", "mish");
  add("hidden_act", Json::array(), "hidden_act");
  for (const char* key : {"rms_norm_eps", "rope_theta"})
    for (const Json& wrong : {Json("1e-5"), Json(true), Json(-1), Json::object()}) add(key, wrong, "");
  add("tie_word_embeddings", "yes", "tie_word_embeddings");
  add("tie_word_embeddings", 1, "tie_word_embeddings");
  add("attention_bias", 0, "attention_bias");
  add("attention_bias", true, "q_proj");
  add("torch_dtype", 16, "torch_dtype");
  add("rope_scaling", "linear", "rope_scaling");
  add("rope_scaling", 2.0, "rope_scaling");
  add("rope_scaling", {{"rope_type", "magic"}}, "magic");
  add("rope_scaling", {{"rope_type", "linear"}, {"factor", "2"}}, "factor");
  add("rope_scaling", {{"rope_type", "linear"}, {"factor", -2}}, "factor");
  add("rope_scaling", {{"rope_type", "llama3"}, {"factor", 2}}, "low_freq_factor");
  add("rope_scaling", {{"rope_type", "longrope"}, {"short_factor", {1, "2"}}, {"long_factor", {1}}}, "short_factor");
  add("rope_scaling", {{"rope_type", "longrope"}, {"short_factor", {1}}, {"long_factor", {1}}}, "short_factor");
  add("num_attention_heads", 3, "attention");
  add("num_key_value_heads", 3, "expected a divisor");
  add("head_dim", 16, "expected [64, 32]");
  add("head_dim", 1 << 24, "expected [67108864, 32]");
  add("num_hidden_layers", 3, "model.layers.2.");
  add("hidden_size", 64, "model.embed_tokens");
  add("vocab_size", 5, "model.embed_tokens");
  for (const Json& wrong : {Json("0"), Json(-1), Json(uint64_t{1} << 32), Json(267), Json::array({0, "1"})})
    add("eos_token_id", wrong, "eos_token_id");
  // dump() of a deep value would recurse, so the text is put together.
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  files.push_back({"deep nesting", R"({"model_type":"llama","hidden_act":)" + deep + "}", "hidden_act"});
  return files;
}

}  // namespace regard::test
