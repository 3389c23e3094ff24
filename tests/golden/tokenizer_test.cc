#include "regard/tokenizer.h"

#include <gtest/gtest.h>

#include "decoder/utf8.h"
#include "golden/golden_files.h"
#include "regard/error.h"

namespace regard {
namespace {

// Compares with what PyPI `tokenizers` made of the same texts; see make_tokenizer_golden.py.
void expect_equal_ids(const Tokenizer& tokenizer, const std::string& name) {
  const auto golden = golden::read_json("tokenizer_text.json");
  int compared = 0;
  for (const auto& test : golden["cases"]) {
    if (test["tokenizer"] != name) continue;
    const auto file = test.contains("file") ? test["file"].get<std::string>() : "";
    const std::string text = file.empty() ? test["text"].get<std::string>()
                                          : golden::read_file(file.front() == '/' ? file : golden::path(file));
    const bool special = test.value("add_special_tokens", false);
    const auto tokens = tokenizer.encode(text, special ? Tokenizer::Bos::as_the_model_says : Tokenizer::Bos::never);
    EXPECT_EQ(tokens, test["ids"].get<std::vector<int32_t>>()) << test["name"];
    // Bytes that the vocabulary lacks are dropped, by the original too; what is no UTF-8 then, it decodes to U+FFFD.
    const std::string decoded = tokenizer.decode(tokens);
    if (find_invalid_utf8(decoded) == std::string::npos) {
      EXPECT_EQ(decoded, test.contains("decoded") ? test["decoded"].get<std::string>() : text) << test["name"];
    }
    ++compared;
  }
  EXPECT_GT(compared, 10);
}

TEST(TokenizerGolden, SmolLM2FromGgufEqualsTheOriginal) {
  REGARD_REQUIRE_MODEL();
  const auto checkpoint = Checkpoint::open(golden::model_path());
  expect_equal_ids(Tokenizer::from(checkpoint), "smollm2");
}

TEST(TokenizerGolden, ByteLevelTokenizerJsonEqualsTheOriginal) {
  expect_equal_ids(Tokenizer::from_json(golden::read_file(golden::path("tiny_tokenizer.json"))), "tiny_tokenizer.json");
}

TEST(TokenizerGolden, SplitPatternTokenizerJsonEqualsTheOriginal) {
  expect_equal_ids(Tokenizer::from_json(golden::read_file(golden::path("tiny_tokenizer_llama3.json"))),
                   "tiny_tokenizer_llama3.json");
}

}  // namespace
}  // namespace regard
