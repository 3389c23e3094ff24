#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/gguf_builder.h"

namespace regard::test {

// A random llama model that runs in milliseconds, with a byte-level BPE tokenizer, as GGUF and as a Hugging Face
// folder. Both forms hold the same weights.
struct TinyLlama {
  int64_t layers = 2;
  int64_t hidden = 32;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t intermediate = 64;
  int64_t context = 64;
  bool has_end_token = true;
  uint32_t weight_type = gguf::type_f32;  // of the matrices of the GGUF form: f32, f16 or q8_0
  uint32_t seed = 1;

  [[nodiscard]] int64_t head_dim() const { return hidden / heads; }

  [[nodiscard]] GgufBuilder gguf() const;

  [[nodiscard]] nlohmann::json config_json() const;
  [[nodiscard]] nlohmann::json tokenizer_json() const;
  // Hugging Face's names, shapes and f32 values.
  struct Weight {
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  [[nodiscard]] std::map<std::string, Weight> weights() const;
  // config.json, tokenizer.json and model.safetensors or, for more than one shard, an index and its files.
  void write_hugging_face(const std::filesystem::path& folder, int shards = 1) const;
};

// The vocabulary as byte-level BPE spells it, by id: the end token, 256 bytes, merged tokens.
[[nodiscard]] std::vector<std::string> tiny_vocabulary();
[[nodiscard]] std::vector<std::string> tiny_merges();

}  // namespace regard::test
