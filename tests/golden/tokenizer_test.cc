#include "regard/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>

#include "golden/golden_files.h"
#include "regard/error.h"
#include "text/utf8.h"

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

// Characters of every length, white space, special tokens and parts of them.
std::string random_text(std::mt19937_64& random) {
  constexpr std::array<std::string_view, 10> kPieces = {"<|im_start|>", "<|im_end|>", "<think>", "<|",   "|>",
                                                        "  ",           "\r\n",       "'s",      " the", "123"};
  constexpr std::array<uint32_t, 5> kBounds = {0x80, 0x800, 0x3000, 0xD800, 0x110000};
  std::string text;
  for (size_t left = random() % 40; left > 0; --left) {
    const auto code_point = static_cast<uint32_t>(random() % kBounds[random() % kBounds.size()]);
    if (random() % 4 == 0)
      text += kPieces[random() % kPieces.size()];
    else if (code_point < 0xD800 || code_point > 0xDFFF)
      append_utf8(code_point, text);
  }
  return text;
}

// The tiny vocabularies hold all 256 bytes, so that nothing is dropped.
TEST(TokenizerGolden, DecodeOfEncodeIsTheTextForRandomUnicode) {
  for (const char* file : {"tiny_tokenizer.json", "tiny_tokenizer_llama3.json"}) {
    const auto tokenizer = Tokenizer::from_json(golden::read_file(golden::path(file)));
    constexpr uint64_t kSeed = 20240609;
    std::mt19937_64 random(kSeed);
    for (int round = 0; round < 5000; ++round) {
      const std::string text = random_text(random);
      ASSERT_EQ(tokenizer.decode(tokenizer.encode(text, Tokenizer::Bos::never)), text)
          << file << ", seed " << kSeed << ", round " << round;
    }
  }
}

TEST(TokenizerGolden, SmolLM2LosesNothingButTheBytesItLacks) {
  REGARD_REQUIRE_MODEL();
  const auto tokenizer = Tokenizer::from(Checkpoint::open(golden::model_path()));
  std::array<bool, 256> known{};
  for (int32_t token = 0; token < tokenizer.vocabulary_size(); ++token)
    if (const std::string bytes = tokenizer.decode({&token, 1}); bytes.size() == 1)
      known[static_cast<uint8_t>(bytes[0])] = true;
  ASSERT_EQ(std::ranges::count(known, false), 21);
  constexpr uint64_t kSeed = 20240610;
  std::mt19937_64 random(kSeed);
  for (int round = 0; round < 5000; ++round) {
    const std::string text = random_text(random);
    std::string expected;
    std::ranges::copy_if(text, std::back_inserter(expected), [&](char c) { return known[static_cast<uint8_t>(c)]; });
    ASSERT_EQ(tokenizer.decode(tokenizer.encode(text)), expected) << "seed " << kSeed << ", round " << round;
  }
}

// A word of four million letters is one list of merges, and no quadratic work, which would outlast the tests' time
// limit.
TEST(TokenizerGolden, LongTextsTakeTimeInProportion) {
  const auto tokenizer = Tokenizer::from_json(golden::read_file(golden::path("tiny_tokenizer_llama3.json")));
  for (const std::string_view piece : {"a", " ", "<", "\n", "!", "é", "the ", "1", "<|eot_id|>"}) {
    std::string text;
    while (text.size() < 4'000'000) text += piece;
    EXPECT_FALSE(tokenizer.encode(text, Tokenizer::Bos::never).empty());
  }
}

}  // namespace
}  // namespace regard
