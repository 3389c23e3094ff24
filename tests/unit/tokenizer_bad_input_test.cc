#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "golden/golden_files.h"
#include "regard/tokenizer.h"
#include "support/broken_files.h"
#include "support/expect_error.h"
#include "support/gguf_builder.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"
#include "text/charsmap.h"
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

// The kinds without ByteLevel, from the golden files.
TEST(TokenizerBadInput, BrokenFilesOfOtherKindsAreRefusedWithTheReason) {
  using nlohmann::json;
  using Change = std::function<void(json&)>;
  const auto expect_refused = [](const char* kind, const Change& change, const char* complaint) {
    json file = golden::read_json(std::string("tokenizer_kinds/") + kind + ".json");
    EXPECT_NO_THROW((void)Tokenizer::from_json(file.dump()));
    change(file);
    EXPECT_ERROR(Tokenizer::from_json(file.dump()), complaint) << kind;
  };
  const auto set = [](const char* pointer, const json& value) {
    return [=](json& file) { file[json::json_pointer(pointer)] = value; };
  };
  for (const char* kind : {"llama2", "gemma"}) {
    expect_refused(kind, set("/decoder", nullptr), "there is no decoder");
    expect_refused(kind, set("/decoder", {{"type", "WordPiece"}}), "the decoder \"WordPiece\" is not known");
    expect_refused(kind, set("/decoder/decoders/0/type", "Fuse"), "Fuse has the key");
    expect_refused(kind, set("/decoder/decoders/0", {{"type", "Fuse"}}), "\"ByteFallback\" comes behind Fuse");
    expect_refused(kind, set("/decoder/decoders/0/pattern", {{"Regex", "(a"}}), "not understood");
    expect_refused(kind, set("/model/unk_token", "<nothing>"), "unk_token is ");
    expect_refused(kind, set("/normalizer", {{"type", "Prepend"}}), "lacks a part");
    expect_refused(kind, set("/normalizer", {{"type", "NFC"}, {"odd", 1}}), "NFC has the key \"odd\"");
  }
  expect_refused("llama2", set("/decoder/decoders/3/stop", 1), "cuts the end of the text");
  expect_refused("llama2", set("/decoder/decoders/3/start", -1), "Strip's start is -1");
  expect_refused("mixtral", set("/pre_tokenizer/prepend_scheme", "often"), "\"often\" is not known");
  for (const char* kind : {"t5", "unigram_bytes"}) {
    for (const json& unknown : {json(-1), json(100'000), json("<unk>"), json(nullptr)})
      expect_refused(kind, set("/model/unk_id", unknown), "unk_id is");
    expect_refused(kind, set("/model/vocab", json::object()), "expected a list");
    for (const json& token : {json("a"), json::array({"a"}), json::array({"a", "b"}), json::array({"a", nullptr})})
      expect_refused(kind, set("/model/vocab/7", token), "token 7 of the vocab");
    expect_refused(kind, set("/pre_tokenizer", {{"type", "ByteLevel"}}), "behind ByteLevel");
  }
  const char* charsmap = "/normalizer/normalizers/0/precompiled_charsmap";
  expect_refused("t5", set(charsmap, "????"), "no base64");
  expect_refused("t5", set(charsmap, "AAAA"), "has 3 bytes");
  expect_refused("t5", set(charsmap, "/////w=="), "a trie of 4294967295 bytes");
}

// A trie whose units point anywhere is left, not followed.
TEST(TokenizerBadInput, WildCharsmapsReadNothingOutsideOfThemselves) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::string table = {64, 0, 0, 0};
    for (int i = 0; i < 64; ++i) table += static_cast<char>(random() % (round % 2 == 0 ? 256 : 4));
    table += std::string("ab\0cd", 5);
    const auto step = normalizers::charsmap(table);
    for (std::string text : {"abc", "\x01\x02\x03", "\xC3\xA9", "a\xCC\x81"})
      EXPECT_EQ(find_invalid_utf8(step(text)), std::string::npos) << round;
  }
}

TEST(TokenizerBadInput, EndTokensOfBothConfigsCountAndMustExist) {
  const test::TempFolder folder;
  TinyLlama{.layers = 1}.write_hugging_face(folder.path());
  const auto ends = [&](const nlohmann::json& ids) {
    folder.write("generation_config.json", nlohmann::json{{"eos_token_id", ids}}.dump());
    const auto tokenizer = Tokenizer::from(Checkpoint::open(folder.path()));
    return Ids(tokenizer.end_tokens().begin(), tokenizer.end_tokens().end());
  };
  EXPECT_EQ(ends(nullptr), Ids{0});
  EXPECT_EQ(ends(7), (Ids{0, 7}));
  EXPECT_EQ(ends({0, 9, 5}), (Ids{0, 9, 5}));
  EXPECT_ERROR(ends({0, 267}), "\"eos_token_id\" of generation_config.json is 267");
  EXPECT_ERROR(ends("x"), "of generation_config.json is ");
}

// What llama.cpp's files do not say, the texts of control tokens do.
TEST(TokenizerBadInput, ControlTokensThatEndATurnEndTheText) {
  const test::TempFolder folder;
  const auto ends = [&](std::vector<std::string> tokens, const std::vector<int32_t>& types, bool has_end = true) {
    test::GgufBuilder file;
    file.add_text("tokenizer.ggml.model", "gpt2").add_texts("tokenizer.ggml.tokens", tokens);
    file.add_i32s("tokenizer.ggml.token_type", types).add_texts("tokenizer.ggml.merges", {});
    if (has_end) file.add_u32("tokenizer.ggml.eos_token_id", 0);
    const auto tokenizer = Tokenizer::from(Checkpoint::open(folder.write("model.gguf", file.build())));
    return Ids(tokenizer.end_tokens().begin(), tokenizer.end_tokens().end());
  };
  EXPECT_EQ(ends({"a", "<|im_end|>", "<|eot_id|>", "</s>"}, {1, 3, 3, 4}), (Ids{0, 2, 1}));
  EXPECT_EQ(ends({"<|return|>", "<|end|>", "<|call|>"}, {3, 3, 3}), (Ids{0, 2}));
  EXPECT_EQ(ends({"<eos>", "<|end|>"}, {3, 3}), (Ids{0, 1}));
  EXPECT_TRUE(ends({"a", "<|im_end|>"}, {1, 3}, false).empty());
}

TEST(TokenizerBadInput, ACheckpointWithoutTokenizerIsRefused) {
  const test::TempFolder folder;
  const auto checkpoint = Checkpoint::open(folder.write("model.gguf", test::small_gguf().build()));
  EXPECT_ERROR(Tokenizer::from(checkpoint), "holds no tokenizer");
}

}  // namespace
}  // namespace regard
