#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace regard::test {

// A file that must be refused, and a part of the sentence that says why.
struct BrokenFile {
  std::string name;
  std::string bytes;
  std::string complaint;
};

[[nodiscard]] std::vector<BrokenFile> broken_ggufs();
[[nodiscard]] std::vector<BrokenFile> broken_safetensors();
// Texts of config.json; the folder's other files are those of a TinyLlama.
[[nodiscard]] std::vector<BrokenFile> broken_configs();
// Texts of tokenizer.json.
[[nodiscard]] std::vector<BrokenFile> broken_tokenizers();
// GGUF files that are well-formed but hold no whole llama model.
[[nodiscard]] std::vector<BrokenFile> broken_models();

// The numbers that parsers get wrong: 0, 1 and the ends and middles of the widths.
[[nodiscard]] std::vector<uint64_t> edge_numbers();

}  // namespace regard::test
