// SmolLM2 and Gemma 3 270M against transformers on the same weights; see make_text_golden.py, make_gemma3_golden.py.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "engine/score.h"
#include "golden/golden_files.h"
#include "regard/generation.h"
#include "regard/model.h"
#include "regard/tokenizer.h"
#include "support/sanitized.h"

namespace regard {
namespace {

struct TestModel {
  explicit TestModel(const char* path) : checkpoint(Checkpoint::open(path)) {}

  double mean_nll(std::span<const int32_t> tokens, DType cache_dtype = DType::f32) {
    const auto ignore = [](int64_t) {};
    return score(decoder, tokens, workspace, ignore, cache_dtype).mean_nll;
  }

  const Checkpoint checkpoint;
  const Tokenizer tokenizer = Tokenizer::from(checkpoint);
  Workspace workspace;
  const Model decoder = Model::load(checkpoint, workspace.threads());
};

void expect_greedy_tokens_of(const nlohmann::json& cases, const char* path) {
  TestModel model(path);
  const size_t count = test::kSanitized ? 2 : cases.size();
  for (size_t index = 0; index < count; ++index) {
    const auto& test = cases[index];
    SCOPED_TRACE(test["name"].get<std::string>());
    const auto prompt = model.tokenizer.encode(test["prompt"].get<std::string>());
    EXPECT_EQ(prompt, test["prompt_tokens"].get<std::vector<int32_t>>());
    const auto expected = test["tokens"].get<std::vector<int32_t>>();
    const auto result = generate(model.decoder, {.prompt = prompt, .max_tokens = std::ssize(expected)},
                                 {.end_tokens = model.tokenizer.end_tokens()}, model.workspace);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_LT(i, result.tokens.size());
      if (result.tokens[i] == expected[i]) continue;
      // A different token is only right where the golden's two best logits are as good as equal.
      EXPECT_LT(test["margin"][i].get<double>(), 1e-3) << "token " << i;
      break;
    }
  }
}

void expect_mean_nll_of(const nlohmann::json& cases, const char* path) {
  TestModel model(path);
  for (const auto& test : cases) {
    SCOPED_TRACE(test["file"].get<std::string>());
    auto tokens = model.tokenizer.encode(golden::read_file(test["file"].get<std::string>()));
    tokens.resize(std::min<size_t>(tokens.size(), 8192));
    ASSERT_EQ(tokens.size(), test["tokens"].get<size_t>());
    EXPECT_NEAR(model.mean_nll(tokens), test["mean_nll"].get<double>(), 1e-3);
  }
}

TEST(TextGolden, GreedyTokensEqualTransformers) {
  REGARD_REQUIRE_MODEL();
  const auto golden = golden::read_json("smollm2_greedy.json");
  ASSERT_GE(golden["cases"].size(), 20U);
  expect_greedy_tokens_of(golden["cases"], golden::model_path());
}

TEST(TextGolden, MeanNegativeLogLikelihoodEqualsTransformers) {
  REGARD_REQUIRE_MODEL();
  if (test::kSanitized) GTEST_SKIP() << "24,000 tokens take an hour under a sanitizer";
  const auto golden = golden::read_json("smollm2_nll.json");
  ASSERT_EQ(golden["cases"].size(), 3U);
  expect_mean_nll_of(golden["cases"], golden::model_path());
}

TEST(TextGolden, GreedyTokensOfGemma3EqualTransformers) {
  REGARD_REQUIRE_GEMMA3();
  const auto golden = golden::read_json("gemma3_greedy.json");
  ASSERT_GE(golden["cases"].size(), 10U);
  expect_greedy_tokens_of(golden["cases"], golden::gemma3_path());
}

TEST(TextGolden, MeanNegativeLogLikelihoodOfGemma3EqualsTransformers) {
  REGARD_REQUIRE_GEMMA3();
  if (test::kSanitized) GTEST_SKIP() << "5,000 tokens take half an hour under a sanitizer";
  const auto golden = golden::read_json("gemma3_nll.json");
  ASSERT_EQ(golden["cases"].size(), 2U);
  expect_mean_nll_of(golden["cases"], golden::gemma3_path());
}

// How much worse a text is predicted with a cache of narrow numbers (docs/numerics.md).
TEST(TextGolden, CachesOfNarrowTypesCostLittle) {
  REGARD_REQUIRE_MODEL();
  if (test::kSanitized) GTEST_SKIP() << "the numbers are the same under a sanitizer";
  TestModel model(golden::model_path());
  auto tokens = model.tokenizer.encode(golden::read_file("/usr/share/common-licenses/GPL-3"));
  tokens.resize(2048);
  const double exact = model.mean_nll(tokens);
  EXPECT_NEAR(model.mean_nll(tokens, DType::i8), exact, 0.005);
  EXPECT_NEAR(model.mean_nll(tokens, DType::f8_e4m3), exact, 0.02);
}

}  // namespace
}  // namespace regard
