#include "support/tiny_llama.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <fstream>
#include <random>

#include "regard/dtype.h"
#include "support/byte_writer.h"
#include "support/safetensors_builder.h"

namespace regard::test {
namespace {

constexpr const char* kEndToken = "<|endoftext|>";

// The visible character that stands for a byte, in UTF-8: see GPT-2's bytes_to_unicode.
std::string letter_of(int byte) {
  int code_point = byte;
  const auto visible = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  if (!visible(byte)) {
    code_point = 256;
    for (int b = 0; b < byte; ++b) code_point += visible(b) ? 0 : 1;
  }
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

std::string f32_bytes(const std::vector<float>& values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::string f16_bytes(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) bytes += bytes_of(Float16(value).bits);
  return bytes;
}

std::string q8_0_bytes(const std::vector<float>& values) {
  std::string bytes;
  for (size_t i = 0; i < values.size(); i += 32) {
    float largest = 0;
    for (size_t k = i; k < i + 32; ++k) largest = std::max(largest, std::fabs(values[k]));
    const Float16 scale(largest / 127.0F);
    bytes += bytes_of(scale.bits);
    for (size_t k = i; k < i + 32; ++k)
      bytes += bytes_of(static_cast<int8_t>(std::lround(values[k] / static_cast<float>(scale))));
  }
  return bytes;
}

std::string weight_bytes(const std::vector<float>& values, uint32_t type) {
  return type == gguf::type_q8_0 ? q8_0_bytes(values) : type == gguf::type_f16 ? f16_bytes(values) : f32_bytes(values);
}

// The order of rows that the conversion to GGUF gives q and k: the two halves of a head side by side.
std::vector<float> interleave_halves(const TinyLlama::Weight& weight, int64_t head_dim) {
  const auto columns = static_cast<size_t>(weight.shape[1]);
  std::vector<float> out(weight.values.size());
  for (int64_t row = 0; row < weight.shape[0]; ++row) {
    const int64_t in_head = row % head_dim;
    const int64_t half = head_dim / 2;
    const int64_t to = row - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
    std::copy_n(weight.values.begin() + row * weight.shape[1], columns, out.begin() + to * weight.shape[1]);
  }
  return out;
}

std::string gguf_name(std::string name) {
  static const std::vector<std::pair<std::string, std::string>> kNames = {{"model.embed_tokens", "token_embd"},
                                                                          {"model.norm", "output_norm"},
                                                                          {"lm_head", "output"},
                                                                          {"model.layers.", "blk."},
                                                                          {"self_attn.q_proj", "attn_q"},
                                                                          {"self_attn.k_proj", "attn_k"},
                                                                          {"self_attn.v_proj", "attn_v"},
                                                                          {"self_attn.o_proj", "attn_output"},
                                                                          {"input_layernorm", "attn_norm"},
                                                                          {"post_attention_layernorm", "ffn_norm"},
                                                                          {"mlp.gate_proj", "ffn_gate"},
                                                                          {"mlp.up_proj", "ffn_up"},
                                                                          {"mlp.down_proj", "ffn_down"}};
  for (const auto& [theirs, ours] : kNames)
    if (const size_t at = name.find(theirs); at != std::string::npos) name.replace(at, theirs.size(), ours);
  return name;
}

}  // namespace

std::vector<std::string> tiny_vocabulary() {
  std::vector<std::string> tokens = {kEndToken};
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(letter_of(byte));
  for (std::string merge : tiny_merges()) {
    std::erase(merge, ' ');
    tokens.push_back(merge);
  }
  return tokens;
}

std::vector<std::string> tiny_merges() {
  const std::string space = letter_of(' ');
  return {"h e", "i n", "e r", "a n", space + " t", "an d", space + "t he", "t h", space + " a", space + " and"};
}

std::map<std::string, TinyLlama::Weight> TinyLlama::weights() const {
  std::mt19937 generator(seed);
  std::map<std::string, Weight> all;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float offset, float range) {
    Weight weight{.shape = std::move(shape), .values = {}};
    int64_t count = 1;
    for (const int64_t size : weight.shape) count *= size;
    for (int64_t i = 0; i < count; ++i)
      weight.values.push_back(offset + range * (static_cast<float>(generator()) * 0x1p-31F - 1.0F));
    all.emplace(name + ".weight", std::move(weight));
  };
  const auto vocabulary = static_cast<int64_t>(tiny_vocabulary().size());
  add("model.embed_tokens", {vocabulary, hidden}, 0.0F, 1.0F);
  add("lm_head", {vocabulary, hidden}, 0.0F, 1.0F);
  add("model.norm", {hidden}, 1.0F, 0.1F);
  for (int64_t i = 0; i < layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add(layer + "self_attn.q_proj", {heads * head_dim(), hidden}, 0.0F, 0.5F);
    add(layer + "self_attn.k_proj", {kv_heads * head_dim(), hidden}, 0.0F, 0.5F);
    add(layer + "self_attn.v_proj", {kv_heads * head_dim(), hidden}, 0.0F, 0.5F);
    add(layer + "self_attn.o_proj", {hidden, heads * head_dim()}, 0.0F, 0.5F);
    add(layer + "mlp.gate_proj", {intermediate, hidden}, 0.0F, 0.5F);
    add(layer + "mlp.up_proj", {intermediate, hidden}, 0.0F, 0.5F);
    add(layer + "mlp.down_proj", {hidden, intermediate}, 0.0F, 0.5F);
    add(layer + "input_layernorm", {hidden}, 1.0F, 0.1F);
    add(layer + "post_attention_layernorm", {hidden}, 1.0F, 0.1F);
  }
  return all;
}

GgufBuilder TinyLlama::gguf() const {
  GgufBuilder file;
  file.add_text("general.architecture", "llama");
  file.add_u32("llama.block_count", static_cast<uint32_t>(layers));
  file.add_u32("llama.embedding_length", static_cast<uint32_t>(hidden));
  file.add_u32("llama.feed_forward_length", static_cast<uint32_t>(intermediate));
  file.add_u32("llama.context_length", static_cast<uint32_t>(context));
  file.add_u32("llama.attention.head_count", static_cast<uint32_t>(heads));
  file.add_u32("llama.attention.head_count_kv", static_cast<uint32_t>(kv_heads));
  file.add_f32("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  file.add_u32("llama.rope.dimension_count", static_cast<uint32_t>(head_dim()));
  file.add_f32("llama.rope.freq_base", 10000.0F);
  const auto vocabulary = tiny_vocabulary();
  std::vector<int32_t> types(vocabulary.size(), 1);
  types[0] = 3;
  file.add_text("tokenizer.ggml.model", "gpt2");
  file.add_text("tokenizer.ggml.pre", "gpt-2");
  file.add_texts("tokenizer.ggml.tokens", vocabulary);
  file.add_i32s("tokenizer.ggml.token_type", types);
  file.add_texts("tokenizer.ggml.merges", tiny_merges());
  if (has_end_token) file.add_u32("tokenizer.ggml.eos_token_id", 0);
  for (const auto& [name, weight] : weights()) {
    const bool matrix = weight.shape.size() == 2;
    const bool rotated = name.find("q_proj") != std::string::npos || name.find("k_proj") != std::string::npos;
    const auto values = rotated ? interleave_halves(weight, head_dim()) : weight.values;
    const uint32_t type = matrix ? weight_type : uint32_t{gguf::type_f32};
    file.tensors.push_back({.name = gguf_name(name),
                            .sizes = {weight.shape.rbegin(), weight.shape.rend()},
                            .type = type,
                            .data = weight_bytes(values, type)});
  }
  return file;
}

nlohmann::json TinyLlama::config_json() const {
  nlohmann::json config = {{"model_type", "llama"},
                           {"hidden_act", "silu"},
                           {"num_hidden_layers", layers},
                           {"hidden_size", hidden},
                           {"intermediate_size", intermediate},
                           {"num_attention_heads", heads},
                           {"num_key_value_heads", kv_heads},
                           {"vocab_size", tiny_vocabulary().size()},
                           {"max_position_embeddings", context},
                           {"rms_norm_eps", 1e-5},
                           {"rope_theta", 10000.0},
                           {"tie_word_embeddings", false},
                           {"torch_dtype", "float32"}};
  if (has_end_token) config["eos_token_id"] = 0;
  return config;
}

nlohmann::json TinyLlama::tokenizer_json() const {
  const auto vocabulary = tiny_vocabulary();
  nlohmann::json ids = nlohmann::json::object();
  for (size_t id = 1; id < vocabulary.size(); ++id) ids[vocabulary[id]] = id;
  return {{"added_tokens", nlohmann::json::array({{{"id", 0}, {"content", kEndToken}, {"special", true}}})},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
          {"model", {{"type", "BPE"}, {"vocab", ids}, {"merges", tiny_merges()}}}};
}

void TinyLlama::write_hugging_face(const std::filesystem::path& folder, int shards) const {
  std::ofstream(folder / "config.json") << config_json();
  std::ofstream(folder / "tokenizer.json") << tokenizer_json();
  std::vector<std::vector<SafeTensor>> files(static_cast<size_t>(shards));
  nlohmann::json index = {{"weight_map", nlohmann::json::object()}};
  const auto file_name = [&](size_t shard) {
    return shards == 1 ? std::string("model.safetensors")
                       : "model-" + std::to_string(shard + 1) + "-of-" + std::to_string(shards) + ".safetensors";
  };
  size_t next = 0;
  for (const auto& [name, weight] : weights()) {
    files[next].push_back({.name = name, .dtype = "F32", .shape = weight.shape, .data = f32_bytes(weight.values)});
    index["weight_map"][name] = file_name(next);
    next = (next + 1) % files.size();
  }
  for (size_t shard = 0; shard < files.size(); ++shard)
    std::ofstream(folder / file_name(shard), std::ios::binary) << safetensors_bytes(files[shard]);
  if (shards > 1) std::ofstream(folder / "model.safetensors.index.json") << index;
}

}  // namespace regard::test
