// Writes the files that the fuzzers start from: write_seeds FOLDER makes FOLDER/gguf and so on, one folder a fuzzer.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "regard/attention_config.h"
#include "regard/cache.h"
#include "regard/saved_sequence.h"
#include "support/broken_files.h"
#include "support/gguf_builder.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace {

namespace fs = std::filesystem;

void write(const fs::path& folder, const std::string& name, const std::string& bytes) {
  constexpr size_t kLargest = 1 << 16;
  if (bytes.size() <= kLargest) std::ofstream(folder / name, std::ios::binary) << bytes;
}

void write_chat_templates(const fs::path& folder) {
  const fs::path golden = std::string(REGARD_TEST_DATA) + "/golden/chat_templates.json";
  const auto known = nlohmann::json::parse(regard::test::read_whole_file(golden));
  for (const auto& [family, source] : known.at("families").items()) write(folder, family, source.get<std::string>());
  int count = 0;
  for (const auto& snippet : known.at("snippets"))
    write(folder, std::to_string(count++), snippet.at("template").get<std::string>());
}

// Of the caches that the fuzzer restores to.
void write_saved_sequence(const std::string& path) {
  const regard::AttentionConfig config{.hidden_size = 8, .num_attention_heads = 2, .num_key_value_heads = 1};
  std::vector<regard::KvCache> caches;
  caches.push_back(regard::KvCache::contiguous({.slots = 1, .capacity = 64}, config.validated()));
  const regard::Tensor rows(regard::DType::f32, {3, 1, 4});
  caches.front().append({.slot = 0, .first_position = 0, .count = 3}, rows, rows, regard::Threads(1));
  regard::save_sequence(path, caches, 0, std::vector<int32_t>{1, 2, 3, 4});
}

void write_all(const fs::path& folder, const std::vector<regard::test::BrokenFile>& files) {
  for (size_t i = 0; i < files.size(); ++i) write(folder, "broken_" + std::to_string(i), files[i].bytes);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace regard::test;
  if (argc != 2) {
    std::fputs("usage: write_seeds FOLDER\n", stderr);
    return 2;
  }
  const fs::path root = argv[1];
  for (const char* name :
       {"gguf", "safetensors", "tokenizer_json", "chat_template", "saved_sequence", "batch_lines", "config_json"})
    fs::create_directories(root / name);
  write(root / "gguf", "small", small_gguf().build());
  const TinyLlama tiny{.layers = 1, .weight_type = gguf::type_q8_0};
  write(root / "gguf", "model", tiny.gguf().build());
  write_all(root / "gguf", broken_ggufs());
  const TempFolder folder;
  TinyLlama{.layers = 1, .hidden = 8, .heads = 2, .kv_heads = 1, .intermediate = 8}.write_hugging_face(folder.path());
  write(root / "safetensors", "model", read_whole_file(folder.file("model.safetensors")));
  write_all(root / "safetensors", broken_safetensors());
  write(root / "tokenizer_json", "tiny", tiny.tokenizer_json().dump());
  for (const auto& kind : fs::directory_iterator(std::string(REGARD_TEST_DATA) + "/golden/tokenizer_kinds"))
    write(root / "tokenizer_json", kind.path().filename(), read_whole_file(kind.path()));
  write_all(root / "tokenizer_json", broken_tokenizers());
  write_all(root / "config_json", broken_configs());
  for (const auto& config : fs::directory_iterator(std::string(REGARD_TEST_DATA) + "/data"))
    if (config.path().extension() == ".json")
      write(root / "config_json", config.path().filename(), read_whole_file(config.path()));
  write_chat_templates(root / "chat_template");
  write_saved_sequence((root / "saved_sequence" / "small").string());
  write(root / "batch_lines", "requests",
        R"({"id":"a","prompt":"the","max_tokens":3,"temperature":0.5,"seed":1})"
        "\n"
        R"({"id":"b","prompt":"inn","top_k":4,"top_p":0.9,"salt":7})"
        "\n");
  write(root / "batch_lines", "results",
        R"({"id":"a","prompt_tokens":[1,2],"tokens":[3],"text":"x","finish_reason":"stop"})"
        "\n");
  return 0;
}
