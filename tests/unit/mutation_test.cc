// A small fuzzer that always tries the same files: whatever the bytes, a file is read or refused with an Error. The
// sanitizers see what happens in between; tests/fuzz searches further.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "checkpoint/parsed_file.h"
#include "regard/generation.h"
#include "regard/model.h"
#include "regard/tokenizer.h"
#include "support/broken_files.h"
#include "support/byte_writer.h"
#include "support/safetensors_builder.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

using test::as_bytes;
using test::TempFolder;
using test::TinyLlama;

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : generator_(seed) {}

  // One to four changes in the first `range` bytes.
  std::string mutate(std::string bytes, size_t range) {
    for (size_t changes = 1 + below(4); changes > 0 && !bytes.empty(); --changes)
      change(bytes, std::min(range, bytes.size()));
    return bytes;
  }

 private:
  size_t below(size_t limit) { return generator_() % limit; }

  void change(std::string& bytes, size_t range) {
    const size_t at = below(range);
    const size_t length = std::min<size_t>(1 + below(16), bytes.size() - at);
    switch (below(7)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(below(256));
        break;
      case 2:
        bytes.erase(at, length);
        break;
      case 3:
        bytes.insert(at, bytes.substr(below(range), length));
        break;
      case 4:
        bytes.replace(at, length, bytes.substr(below(range), length));
        break;
      case 5:
        bytes.resize(at);
        break;
      default: {
        const auto numbers = test::edge_numbers();
        const std::string number = test::bytes_of(numbers[below(numbers.size())]);
        bytes.replace(at, length, number, 0, length);
      }
    }
  }

  std::mt19937 generator_;
};

// Calls `read` with mutations of `file`; how many it accepted.
template <class Read>
int accepted(const std::string& file, size_t range, uint32_t seed, int rounds, Read read) {
  SCOPED_TRACE(fmt::format("seed {}", seed));
  Mutator mutator(seed);
  int count = 0;
  for (int round = 0; round < rounds; ++round) {
    const std::string mutated = mutator.mutate(file, range);
    try {
      read(mutated);
      ++count;
    } catch (const Error& error) {
      EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << "round " << round;
    } catch (const std::exception& error) {
      ADD_FAILURE() << "round " << round << ": " << error.what();
    }
  }
  return count;
}

TEST(Mutation, GgufFilesAreReadOrRefused) {
  const int read = accepted(test::small_gguf().build(), 1 << 20, 1, 20'000, [](const std::string& bytes) {
    for (const StoredTensor& tensor : parse_gguf(as_bytes(bytes), "file").tensors) (void)tensor.matrix();
  });
  EXPECT_GT(read, 100);
  EXPECT_LT(read, 19'900);
}

TEST(Mutation, SafetensorsFilesAreReadOrRefused) {
  const std::string file =
      test::safetensors_bytes({{.name = "a", .dtype = "F32", .shape = {2, 3}, .data = std::string(24, '\1')},
                               {.name = "b", .dtype = "U8", .shape = {0, 5}, .data = ""},
                               {.name = "c", .dtype = "BF16", .shape = {}, .data = "12"}});
  const int read = accepted(file, 1 << 20, 2, 20'000, [](const std::string& bytes) {
    for (const StoredTensor& tensor : parse_safetensors(as_bytes(bytes), "file").tensors) (void)tensor.matrix();
  });
  EXPECT_GT(read, 100);
  EXPECT_LT(read, 19'900);
}

TEST(Mutation, TokenizersAreReadAndUsedOrRefused) {
  const std::string file = R"json({"added_tokens":[{"id":9,"content":"<s>","special":true,"lstrip":true}],
      "pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split",
          "pattern":{"Regex":"[a-c]+|\\s+(?!\\S)"},"behavior":"Isolated","invert":false},
        {"type":"ByteLevel","add_prefix_space":false,"use_regex":true}]},
      "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},
          {"Sequence":{"id":"A"}}],"special_tokens":{"<s>":{"ids":[9]}}},
      "model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2,"ab":3,"abc":4,"Ġ":5,"Ġa":6},
        "merges":["a b","ab c",["Ġ","a"]]}})json";
  const int read = accepted(file, file.size(), 3, 60'000, [](const std::string& bytes) {
    const auto tokenizer = Tokenizer::from_json(bytes);
    (void)tokenizer.decode(tokenizer.encode("abc a\xC3\xA9 <s> b"));
  });
  EXPECT_GT(read, 100);
  EXPECT_LT(read, 9'900);
}

TEST(Mutation, ConfigsAreReadOrRefused) {
  const TempFolder folder;
  TinyLlama().write_hugging_face(folder.path());
  const std::string file = TinyLlama().config_json().dump();
  const int read = accepted(file, file.size(), 4, 2'000, [&](const std::string& bytes) {
    folder.write("config.json", bytes);
    const auto checkpoint = Checkpoint::open(folder.path());
    (void)ModelSpec::from(checkpoint);
    (void)AttentionConfig::from(checkpoint, 1);
  });
  EXPECT_GT(read, 20);
  EXPECT_LT(read, 1'980);
}

TEST(Mutation, WholeModelsAreReadAndRunOrRefused) {
  const TempFolder folder;
  const test::GgufBuilder gguf = TinyLlama{.layers = 1, .weight_type = test::gguf::type_q8_0}.gguf();
  Workspace workspace(1);
  const int read = accepted(gguf.build(), gguf.header().size(), 5, 2'000, [&](const std::string& bytes) {
    const auto checkpoint = Checkpoint::open(folder.write("model.gguf", bytes));
    const auto tokenizer = Tokenizer::from(checkpoint);
    const auto decoder = Model::load(checkpoint, workspace.threads());
    const auto prompt = tokenizer.encode("the inn");
    const auto tokens =
        generate(decoder, {.prompt = prompt, .max_tokens = 3}, {.end_tokens = tokenizer.end_tokens()}, workspace)
            .tokens;
    (void)tokenizer.decode(tokens);
  });
  EXPECT_GT(read, 20);
  EXPECT_LT(read, 1'980);
}

}  // namespace
}  // namespace regard
