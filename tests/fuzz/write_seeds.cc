// Writes the files that the fuzzers start from: write_seeds FOLDER makes FOLDER/gguf, FOLDER/safetensors and
// FOLDER/tokenizer_json.
#include <cstdio>
#include <filesystem>
#include <fstream>

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
  for (const char* name : {"gguf", "safetensors", "tokenizer_json"}) fs::create_directories(root / name);
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
  return 0;
}
