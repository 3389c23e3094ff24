#include <gtest/gtest.h>

#include "golden/golden_files.h"
#include "regard/tokenizer.h"
#include "support/gguf_builder.h"
#include "support/temp_folder.h"
#include "text/charsmap.h"
#include "text/utf8.h"

namespace regard {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;
using Place = Tokenizer::Place;

const json& golden_kinds() {
  static const json kGolden = golden::read_json("tokenizer_kinds.json");
  return kGolden;
}

std::string kind_path(const std::string& kind) { return golden::path("tokenizer_kinds/" + kind + ".json"); }

Tokenizer kind_tokenizer(const std::string& kind) { return Tokenizer::from_json(golden::read_file(kind_path(kind))); }

std::string decoded_one_by_one(const Tokenizer& tokenizer, const Ids& tokens) {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i)
    text += tokenizer.decode({&tokens[i], 1}, i == 0 ? Place::beginning : Place::behind_others);
  return text;
}

// Compares with what PyPI `tokenizers` made of the same texts; see make_tokenizer_kinds_golden.py.
void expect_golden_ids(const Tokenizer& tokenizer, const std::string& kind, const std::string& but = "") {
  const json& golden = golden_kinds()["cases"][kind];
  const auto front = golden["front"].get<Ids>();
  const auto back = golden["back"].get<Ids>();
  int compared = 0;
  for (const auto& [name, expected] : golden["texts"].items()) {
    if (name == but) continue;
    SCOPED_TRACE(kind + ", " + name);
    const auto text = golden_kinds()["texts"][name].get<std::string>();
    const auto ids = expected["ids"].get<Ids>();
    const Ids plain = tokenizer.encode(text, Tokenizer::Bos::never);
    EXPECT_EQ(plain, ids);
    Ids surrounded = front;
    surrounded.insert(surrounded.end(), plain.begin(), plain.end());
    surrounded.insert(surrounded.end(), back.begin(), back.end());
    EXPECT_EQ(tokenizer.encode(text), surrounded);
    const std::string decoded = tokenizer.decode(ids);
    EXPECT_EQ(decoded_one_by_one(tokenizer, ids), decoded);
    // What is no UTF-8, the original decodes to U+FFFD.
    if (find_invalid_utf8(decoded) == std::string::npos) {
      EXPECT_EQ(decoded, expected.value("decoded", text));
    }
    ++compared;
  }
  EXPECT_GT(compared, 100);
}

TEST(TokenizerKinds, EveryTokenizerJsonGivesTheIdsOfTheOriginal) {
  for (const char* kind : {"qwen2", "gpt_oss", "olmo2", "roberta", "many_steps", "words", "llama2", "mixtral", "gemma",
                           "t5", "unigram_bytes"})
    expect_golden_ids(kind_tokenizer(kind), kind);
}

// ---- The same as GGUF ----

constexpr int32_t kNormal = 1;
constexpr int32_t kControl = 3;
constexpr int32_t kUserDefined = 4;

Tokenizer from_gguf(const test::GgufBuilder& file) {
  const test::TempFolder folder;
  return Tokenizer::from(Checkpoint::open(folder.write("tokenizer.gguf", file.build())));
}

// A byte-level tokenizer.json as the metadata that llama.cpp's converter writes.
test::GgufBuilder byte_level_gguf(const std::string& kind, std::string_view pre) {
  const json source = json::parse(golden::read_file(kind_path(kind)));
  std::vector<std::string> tokens(static_cast<size_t>(kind_tokenizer(kind).vocabulary_size()));
  std::vector<int32_t> types(tokens.size(), kNormal);
  for (const auto& [text, id] : source["model"]["vocab"].items()) tokens[id.get<size_t>()] = text;
  for (const json& added : source["added_tokens"]) {
    tokens[added["id"].get<size_t>()] = added["content"];
    types[added["id"].get<size_t>()] = added["special"] ? kControl : kUserDefined;
  }
  std::vector<std::string> merges;
  for (const json& merge : source["model"]["merges"])
    merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  test::GgufBuilder file;
  file.add_text("tokenizer.ggml.model", "gpt2");
  file.add_text("tokenizer.ggml.pre", pre);
  file.add_texts("tokenizer.ggml.tokens", tokens);
  file.add_i32s("tokenizer.ggml.token_type", types);
  file.add_texts("tokenizer.ggml.merges", merges);
  return file;
}

// The pieces that SentencePiece trained.
test::GgufBuilder pieces_gguf(const std::string& kind, std::string_view model) {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::string scores;
  for (const json& piece : golden_kinds()["pieces"][kind]) {
    tokens.push_back(piece[0]);
    const float score = piece[1];
    scores.append(reinterpret_cast<const char*>(&score), sizeof(score));
    types.push_back(piece[2]);
  }
  test::GgufBuilder file;
  file.add_text("tokenizer.ggml.model", model);
  file.add_texts("tokenizer.ggml.tokens", tokens);
  file.add_i32s("tokenizer.ggml.token_type", types);
  file.add_raw("tokenizer.ggml.scores", test::gguf::array, test::array_bytes(test::gguf::f32, tokens.size(), scores));
  return file;
}

TEST(TokenizerKinds, ByteLevelGgufGivesTheSameIds) {
  expect_golden_ids(from_gguf(byte_level_gguf("qwen2", "qwen2")), "qwen2");
  expect_golden_ids(from_gguf(byte_level_gguf("olmo2", "dbrx")), "olmo2");
  // GGUF can't say that two tokens stand in front.
  const auto gpt_oss = from_gguf(byte_level_gguf("gpt_oss", "gpt-4o"));
  for (const auto& [name, expected] : golden_kinds()["cases"]["gpt_oss"]["texts"].items())
    EXPECT_EQ(gpt_oss.encode(golden_kinds()["texts"][name].get<std::string>()), expected["ids"].get<Ids>()) << name;
}

TEST(TokenizerKinds, SentencePieceGgufGivesTheSameIds) {
  expect_golden_ids(from_gguf(pieces_gguf("llama2", "llama")), "llama2");
  auto gemma = pieces_gguf("gemma", "llama");
  gemma.add_u32("tokenizer.ggml.bos_token_id", 2).add_u32("tokenizer.ggml.eos_token_id", 1);
  gemma.add_u32("tokenizer.ggml.unknown_token_id", 3).add_bool("tokenizer.ggml.add_space_prefix", false);
  const auto tokenizer = from_gguf(gemma);
  expect_golden_ids(tokenizer, "gemma");
  const Ids ends = {1, tokenizer.find("<end_of_turn>").value()};
  EXPECT_EQ(Ids(tokenizer.end_tokens().begin(), tokenizer.end_tokens().end()), ends);
}

TEST(TokenizerKinds, UnigramGgufGivesTheSameIds) {
  auto file = pieces_gguf("t5", "t5");
  const std::string charsmap = bytes_of_base64(golden_kinds()["t5_charsmap"].get<std::string>());
  file.add_raw("tokenizer.ggml.precompiled_charsmap", test::gguf::array,
               test::array_bytes(test::gguf::u8, charsmap.size(), charsmap));
  file.add_bool("tokenizer.ggml.remove_extra_whitespaces", true).add_bool("tokenizer.ggml.add_space_prefix", true);
  // SentencePiece puts its mark even before a text that begins with one.
  expect_golden_ids(from_gguf(file), "t5", "space_marks_in_text");
}

TEST(TokenizerKinds, Gemma3FromGgufGivesTheIdsOfTheOriginal) {
  REGARD_REQUIRE_GEMMA3();
  const auto tokenizer = Tokenizer::from(Checkpoint::open(golden::gemma3_path()));
  expect_golden_ids(tokenizer, "gemma3");
  EXPECT_EQ(Ids(tokenizer.end_tokens().begin(), tokenizer.end_tokens().end()), (Ids{1, 106}));
}

// One word of four million letters is one list of merges, or one lattice, and no quadratic work, which would outlast
// the tests' time limit.
TEST(TokenizerKinds, LongTextsTakeTimeInProportion) {
  for (const char* kind : {"gpt_oss", "many_steps", "gemma", "llama2", "t5", "unigram_bytes"}) {
    const auto tokenizer = kind_tokenizer(kind);
    for (const std::string_view piece : {"a", "A", "\u4e2d", " ", "\n", "the ", "e\u0301", "\u0323\u0307", "<s>"}) {
      std::string text;
      while (text.size() < 1'000'000) text += piece;
      text += "b";
      EXPECT_FALSE(tokenizer.encode(text, Tokenizer::Bos::never).empty()) << kind << ", " << piece;
    }
  }
}

}  // namespace
}  // namespace regard
