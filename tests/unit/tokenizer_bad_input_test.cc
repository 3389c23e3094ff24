#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "regard/tokenizer.h"
#include "support/broken_files.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"
#include "text/utf8.h"

namespace regard {
namespace {

using test::TinyLlama;
using Ids = std::vector<int32_t>;

Tokenizer tiny_tokenizer() { return Tokenizer::from_json(TinyLlama().tokenizer_json().dump()); }

TEST(TokenizerBadInput, TheTinyTokenizerItselfIsRight) {
  const auto tokenizer = tiny_tokenizer();
  const auto id = [&](std::string_view text) { return tokenizer.find(text).value(); };
  EXPECT_EQ(tokenizer.vocabulary_size(), 267);
  EXPECT_EQ(tokenizer.encode("he and the"), (Ids{id("he"), id(" and"), id(" the")}));
  EXPECT_EQ(tokenizer.encode("a<|endoftext|>"), (Ids{id("a"), 0}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("Zoë 😀\n\0x")), "Zoë 😀\n\0x");
}

TEST(TokenizerBadInput, BrokenFilesAreRefusedWithTheReason) {
  for (const auto& broken : test::broken_tokenizers())
    EXPECT_ERROR(Tokenizer::from_json(broken.bytes), broken.complaint) << broken.name;
}

TEST(TokenizerBadInput, TextThatIsNoUtf8IsRefusedWithThePlace) {
  const auto tokenizer = tiny_tokenizer();
  for (const std::string wrong :
       {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xC3", "\xC3(", "\xE0\x80\x80", "\xE2\x82", "\xED\xA0\x80",
        "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFE", "\xFF", "\xF0\x9F\x98"})
    for (const char* tail : {"", "x", "é"}) EXPECT_ERROR(tokenizer.encode("ab" + wrong + tail), "byte 2 ");
}

TEST(TokenizerBadInput, EveryTextOfThreeBytesIsEitherUtf8OrRefused) {
  const auto tokenizer = tiny_tokenizer();
  size_t refused = 0;
  for (const int lead : {0x00, 0x7F, 0x80, 0xC2, 0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xFF}) {
    for (int second = 0; second < 256; ++second) {
      for (const int third : {0x00, 0x61, 0x7F, 0x80, 0xBF, 0xC2, 0xFF}) {
        const std::string text = {static_cast<char>(lead), static_cast<char>(second), static_cast<char>(third)};
        try {
          EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
        } catch (const Error&) {
          ++refused;
          EXPECT_NE(find_invalid_utf8(text), std::string::npos);
        }
      }
    }
  }
  EXPECT_GT(refused, 10'000U);
}

TEST(TokenizerBadInput, TokensOutsideTheVocabularyAreRefused) {
  const auto tokenizer = tiny_tokenizer();
  for (const int32_t wrong : {-1, 267, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()})
    EXPECT_ERROR(tokenizer.decode(Ids{5, wrong}), "token id is " + std::to_string(wrong));
}

TEST(TokenizerBadInput, BytesThatTheVocabularyLacksAreDropped) {
  auto json = TinyLlama().tokenizer_json();
  json["model"]["vocab"].erase("Z");
  const auto tokenizer = Tokenizer::from_json(json.dump());
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("aZb")), "ab");
  EXPECT_TRUE(tokenizer.encode("ZZZ").empty());
}

TEST(TokenizerBadInput, AFewIdsMayBeMissing) {
  auto json = TinyLlama().tokenizer_json();
  json["added_tokens"].push_back({{"id", 400}, {"content", "<far>"}});
  const auto tokenizer = Tokenizer::from_json(json.dump());
  EXPECT_EQ(tokenizer.encode("<far>"), Ids{400});
  EXPECT_EQ(tokenizer.decode(Ids{399, 400}), "<far>");
}

// A pattern with a lookbehind at a piece's start, empty matches and matches of everything.
TEST(TokenizerBadInput, OddSplitPatternsLoseNoByte) {
  const std::string text = "Zoë  ran, 3 \xF0\x9F\x98\x80 \xE2\x82\xAC\n\n x";
  for (const char* pattern :
       {"", "x*", "(?<=a)", "\\b", ".", "[^a]", "\\s", "(?s).*", "a\\K", "^", "$", "\\X", "(?!)"}) {
    for (const char* behavior : {"Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"}) {
      for (const bool invert : {false, true}) {
        auto json = TinyLlama().tokenizer_json();
        const nlohmann::json split = {
            {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}, {"invert", invert}};
        json["pre_tokenizer"] = {{"type", "Sequence"},
                                 {"pretokenizers", nlohmann::json::array({split, json["pre_tokenizer"]})}};
        const auto tokenizer = Tokenizer::from_json(json.dump());
        EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << pattern << " " << behavior << " " << invert;
      }
    }
  }
}

TEST(TokenizerBadInput, APatternThatNeverEndsIsRefusedAtLast) {
  auto json = TinyLlama().tokenizer_json();
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       nlohmann::json::array({{{"type", "Split"}, {"pattern", {{"Regex", "(?:a+)+[bc]"}}}, {"behavior", "Isolated"}},
                              json["pre_tokenizer"]})}};
  const auto tokenizer = Tokenizer::from_json(json.dump());
  EXPECT_ERROR(tokenizer.encode(std::string(60, 'a')), "splitting the text failed");
}

TEST(TokenizerBadInput, ACheckpointWithoutTokenizerIsRefused) {
  const test::TempFolder folder;
  const auto checkpoint = Checkpoint::open(folder.write("model.gguf", test::small_gguf().build()));
  EXPECT_ERROR(Tokenizer::from(checkpoint), "holds no tokenizer");
}

}  // namespace
}  // namespace regard
