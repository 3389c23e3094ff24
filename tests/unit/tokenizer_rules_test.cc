// What tokenizer.json asks for beside byte-pair encoding itself; checked against `tokenizers` 0.23.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "regard/error.h"
#include "regard/tokenizer.h"

namespace regard {
namespace {

using nlohmann::json;
using testing::ElementsAre;

// Every letter of "<>[]abcm", the space and the bytes of U+00A0, U+3002 and U+00E9, each a token without merges.
json plain_tokenizer() {
  json vocabulary = json::object();
  for (const char* spelling : {"<", ">", "[", "]", "a", "b", "c", "m", "Ġ", "Ċ", "Â", "ł", "ã", "Ģ", "Ĥ", "Ã", "©"})
    vocabulary[spelling] = vocabulary.size();
  return {{"added_tokens", json::array()},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array()}}}};
}

constexpr int32_t kAdded = 100;

json with_token(const std::string& text, const json& options) {
  json tokenizer = plain_tokenizer();
  tokenizer["added_tokens"].push_back({{"id", kAdded}, {"content", text}, {"special", true}});
  tokenizer["added_tokens"][0].update(options);
  return tokenizer;
}

// The tokens' texts, the added one as "#".
std::vector<std::string> pieces(const json& rules, std::string_view text) {
  const auto tokenizer = Tokenizer::from_json(rules.dump());
  std::vector<std::string> result;
  for (const int32_t token : tokenizer.encode(text))
    result.push_back(token == kAdded ? "#" : tokenizer.decode({&token, 1}));
  return result;
}

TEST(TokenizerRules, AddedTokensTakeTheWhiteSpaceOfAnyKindThatTheyAskFor) {
  const char* text = "a \u00A0<m>\n b";
  EXPECT_THAT(pieces(with_token("<m>", {{"lstrip", true}}), text), ElementsAre("a", "#", "\n", " ", "b"));
  EXPECT_THAT(pieces(with_token("<m>", {{"rstrip", true}}), text), ElementsAre("a", " ", "\xC2", "\xA0", "#", "b"));
  EXPECT_THAT(pieces(with_token("<m>", json::object()), text),
              ElementsAre("a", " ", "\xC2", "\xA0", "#", "\n", " ", "b"));
}

TEST(TokenizerRules, SingleWordsAreFoundOnlyWhereNoWordTouchesThem) {
  const json rules = with_token("ab", {{"single_word", true}});
  EXPECT_THAT(pieces(rules, "ab ab"), ElementsAre("#", " ", "#"));
  EXPECT_THAT(pieces(rules, "abc"), ElementsAre("a", "b", "c"));
  EXPECT_THAT(pieces(rules, "cab"), ElementsAre("c", "a", "b"));
  EXPECT_THAT(pieces(rules, "[ab]"), ElementsAre("[", "#", "]"));
  // U+00E9 is a letter, U+3002 and U+00A0 are none.
  EXPECT_THAT(pieces(rules, "abé"), ElementsAre("a", "b", "\xC3", "\xA9"));
  EXPECT_THAT(pieces(rules, "ab\u3002"), ElementsAre("#", "\xE3", "\x80", "\x82"));
  EXPECT_THAT(pieces(rules, "\u00A0ab"), ElementsAre("\xC2", "\xA0", "#"));
}

TEST(TokenizerRules, TheLongestAddedTokenWinsAmongThoseThatBeginTogether) {
  json rules = with_token("<m>a", json::object());
  rules["added_tokens"].push_back({{"id", 101}, {"content", "<m>"}, {"special", false}});
  EXPECT_THAT(pieces(rules, "<m>a<m>b<m"), ElementsAre("#", "<m>", "b", "<", "m"));
  const auto tokenizer = Tokenizer::from_json(rules.dump());
  EXPECT_TRUE(tokenizer.is_special(kAdded));
  EXPECT_FALSE(tokenizer.is_special(101));
  EXPECT_FALSE(tokenizer.is_special(0));
}

TEST(TokenizerRules, OnlyASpaceStandsInForThePrefixSpace) {
  json rules = with_token("<m>", json::object());
  rules["pre_tokenizer"]["add_prefix_space"] = true;
  EXPECT_THAT(pieces(rules, "a"), ElementsAre(" ", "a"));
  EXPECT_THAT(pieces(rules, " a"), ElementsAre(" ", "a"));
  EXPECT_THAT(pieces(rules, "\na"), ElementsAre(" ", "\n", "a"));
  EXPECT_THAT(pieces(rules, "a<m>b"), ElementsAre(" ", "a", "#", " ", "b"));
}

TEST(TokenizerRules, RefusesPreTokenizersThatWouldSeeOtherText) {
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  const json prefixing = {{"type", "ByteLevel"}, {"add_prefix_space", true}};
  const json digits = {{"type", "Digits"}, {"individual_digits", true}};
  const auto read = [](const json& steps) {
    json rules = plain_tokenizer();
    rules["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
    (void)Tokenizer::from_json(rules.dump());
  };
  EXPECT_NO_THROW(read({digits, byte_level}));
  EXPECT_NO_THROW(read(json::array({prefixing})));
  EXPECT_THROW(read({byte_level, digits}), Error);
  EXPECT_THROW(read({digits, prefixing}), Error);
}

// ---- What is put around a text ----

json special_token(const char* text) { return {{"SpecialToken", {{"id", text}, {"type_id", 0}}}}; }

std::vector<int32_t> around(const json& post_processor) {
  json rules = plain_tokenizer();
  rules["post_processor"] = post_processor;
  return Tokenizer::from_json(rules.dump()).encode("a");  // whose id is 4
}

json template_of(const json& single) {
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"special_tokens",
           {{"<", {{"id", "<"}, {"ids", {0}}}}, {">", {{"id", ">"}, {"ids", {1}}}}, {"both", {{"ids", {2, 3}}}}}}};
}

const json kText = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};

TEST(TokenizerRules, TemplatesPutAllTheirTokensInFrontAndBehind) {
  EXPECT_THAT(around(template_of({special_token("<"), special_token(">"), kText})), ElementsAre(0, 1, 4));
  EXPECT_THAT(around(template_of({kText, special_token(">")})), ElementsAre(4, 1));
  EXPECT_THAT(around(template_of({special_token("both"), kText, special_token("<")})), ElementsAre(2, 3, 4, 0));
  const json byte_level = {{"type", "ByteLevel"}, {"trim_offsets", true}};
  const json sequence = {{"type", "Sequence"}, {"processors", {byte_level, template_of({special_token("<"), kText})}}};
  EXPECT_THAT(around(sequence), ElementsAre(0, 4));
  for (const char* type : {"RobertaProcessing", "BertProcessing"})
    EXPECT_THAT(around({{"type", type}, {"sep", {"x", 3}}, {"cls", {"y", 2}}}), ElementsAre(2, 4, 3)) << type;
}

TEST(TokenizerRules, RefusesTwoPostProcessorsThatAddTokens) {
  const json one = template_of({special_token("<"), kText});
  EXPECT_THROW((void)around({{"type", "Sequence"}, {"processors", {one, one}}}), Error);
}

TEST(TokenizerRules, BosIsTheFirstTokenInFront) {
  json rules = plain_tokenizer();
  EXPECT_EQ(Tokenizer::from_json(rules.dump()).bos_token(), std::nullopt);
  rules["post_processor"] = template_of({special_token(">"), special_token("<"), kText});
  const auto tokenizer = Tokenizer::from_json(rules.dump());
  EXPECT_EQ(tokenizer.bos_token(), 1);
  EXPECT_THAT(tokenizer.encode("a", Tokenizer::Bos::never), ElementsAre(4));
}

TEST(TokenizerRules, RefusesDropout) {
  json rules = plain_tokenizer();
  for (const json& none : {json(nullptr), json(0), json(0.0)}) {
    rules["model"]["dropout"] = none;
    EXPECT_NO_THROW((void)Tokenizer::from_json(rules.dump()));
  }
  rules["model"]["dropout"] = 0.1;
  EXPECT_THROW((void)Tokenizer::from_json(rules.dump()), Error);
}

TEST(TokenizerRules, NormalizedTokensAreFoundInTheNormalizedText) {
  json rules = with_token("AB", {{"special", false}, {"normalized", true}});
  rules["normalizer"] = {{"type", "Lowercase"}};
  EXPECT_THAT(pieces(rules, "cAbc"), ElementsAre("c", "#", "c"));
  rules["added_tokens"][0]["normalized"] = false;
  EXPECT_THAT(pieces(rules, "cAbcABc"), ElementsAre("c", "a", "b", "c", "#", "c"));
}

TEST(TokenizerRules, AnUnknownCharacterCostsTenMoreThanTheLowestToken) {
  const auto ids = [](double score, std::string_view text) {
    const json rules = {{"decoder", {{"type", "Fuse"}}},
                        {"model",
                         {{"type", "Unigram"},
                          {"unk_id", 0},
                          {"vocab", json::array({{"<unk>", 0}, {"a", score}, {"b", score}, {"aXb", -14}})}}}};
    return Tokenizer::from_json(rules.dump()).encode(text);
  };
  EXPECT_THAT(ids(3, "aXb"), ElementsAre(3));
  EXPECT_THAT(ids(6, "aXb"), ElementsAre(1, 0, 2));
  EXPECT_THAT(ids(3, "aXXb"), ElementsAre(1, 0, 2));
}

TEST(TokenizerRules, RefusesMarksInsideAndBehindWords) {
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    json rules = plain_tokenizer();
    rules["model"][affix] = "";
    EXPECT_NO_THROW((void)Tokenizer::from_json(rules.dump()));
    rules["model"][affix] = "</w>";
    EXPECT_THROW((void)Tokenizer::from_json(rules.dump()), Error);
  }
}

}  // namespace
}  // namespace regard
