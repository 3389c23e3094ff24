// SmolLM2 against transformers on the same weights; see make_text_golden.py.
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
  const Checkpoint checkpoint = Checkpoint::open(golden::model_path());
  const Tokenizer tokenizer = Tokenizer::from(checkpoint);
  Workspace workspace;
  const Model decoder = Model::load(checkpoint, workspace.threads());

  double mean_nll(std::span<const int32_t> tokens, DType cache_dtype = DType::f32) {
    const auto ignore = [](int64_t) {};
    return score(decoder, tokens, workspace, ignore, cache_dtype).mean_nll;
  }
};

TEST(TextGolden, GreedyTokensEqualTransformers) {
  REGARD_REQUIRE_MODEL();
  TestModel model;
  const auto golden = golden::read_json("smollm2_greedy.json");
  ASSERT_GE(golden["cases"].size(), 20U);
  const size_t count = test::kSanitized ? 2 : golden["cases"].size();
  for (size_t index = 0; index < count; ++index) {
    const auto& test = golden["cases"][index];
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

TEST(TextGolden, MeanNegativeLogLikelihoodEqualsTransformers) {
  REGARD_REQUIRE_MODEL();
  if (test::kSanitized) GTEST_SKIP() << "24,000 tokens take an hour under a sanitizer";
  TestModel model;
  const auto golden = golden::read_json("smollm2_nll.json");
  ASSERT_EQ(golden["cases"].size(), 3U);
  for (const auto& test : golden["cases"]) {
    SCOPED_TRACE(test["file"].get<std::string>());
    auto tokens = model.tokenizer.encode(golden::read_file(test["file"].get<std::string>()));
    tokens.resize(std::min<size_t>(tokens.size(), 8192));
    ASSERT_EQ(tokens.size(), test["tokens"].get<size_t>());
    EXPECT_NEAR(model.mean_nll(tokens), test["mean_nll"].get<double>(), 1e-3);
  }
}

// How much worse a text is predicted with a cache of narrow numbers (docs/numerics.md).
TEST(TextGolden, CachesOfNarrowTypesCostLittle) {
  REGARD_REQUIRE_MODEL();
  if (test::kSanitized) GTEST_SKIP() << "the numbers are the same under a sanitizer";
  TestModel model;
  auto tokens = model.tokenizer.encode(golden::read_file("/usr/share/common-licenses/GPL-3"));
  tokens.resize(2048);
  const double exact = model.mean_nll(tokens);
  EXPECT_NEAR(model.mean_nll(tokens, DType::i8), exact, 0.005);
  EXPECT_NEAR(model.mean_nll(tokens, DType::f8_e4m3), exact, 0.02);
}

}  // namespace
}  // namespace regard
