#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "golden/golden_files.h"
#include "regard/checkpoint.h"

namespace regard::test {
namespace {

// Folders of tests/golden/make_family_golden.py, which have no tokenizer.
std::string family(const std::string& name) { return golden::path("families/" + name); }

std::string token_list(const Checkpoint& reference) {
  return fmt::format("{}", fmt::join(reference.tensor("tokens").view().elements<int32_t>(), ","));
}

// The largest difference from transformers in f64 may be twice that of transformers in f32, `error`[0], and half a unit
// in the last place of the largest number.
void expect_close(ConstTensorView ours, ConstTensorView exact, const double* error) {
  ASSERT_EQ(ours.shape(), exact.shape());
  const auto got = ours.elements<float>();
  const auto wanted = exact.elements<double>();
  double largest = 0;
  double magnitude = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(got[i]) - wanted[i]));
    magnitude = std::max(magnitude, std::fabs(wanted[i]));
  }
  EXPECT_GT(magnitude, 0.0);
  EXPECT_LE(largest, 2 * error[0] + 0x1p-24 * magnitude);
}

TEST(LogitsCommand, EveryLayerAndTheLogitsAreThoseOfTransformers) {
  const TempFolder folder;
  for (const char* name : {"llama", "gemma3", "mixtral", "olmo2"}) {
    SCOPED_TRACE(name);
    const auto reference = Checkpoint::open(family(name) + "/golden.safetensors");
    const std::string out = folder.file("out.safetensors");
    const Finished result = run_command(
        {"logits", "-m", family(name), "--tokens", token_list(reference), "--layers", "-o", out, "--threads", "2"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out + result.err, "");
    const auto written = Checkpoint::open(out);
    EXPECT_EQ(written.tensors().size(), 3U);
    EXPECT_TRUE(std::ranges::equal(written.tensor("tokens").view().elements<int32_t>(),
                                   reference.tensor("tokens").view().elements<int32_t>()));
    const auto errors = [&](const char* of) { return reference.tensor(of).view().elements<double>().data(); };
    expect_close(written.tensor("logits").view(), reference.tensor("logits").view(), errors("prefill_logits_error"));
    const ConstTensorView hidden = written.tensor("hidden_states").view();
    ASSERT_EQ(hidden.shape(), reference.tensor("hidden").view().shape());
    for (int64_t i = 0; i < hidden.size(0); ++i) {
      SCOPED_TRACE(i);
      expect_close(hidden[i], reference.tensor("hidden").view()[i], errors("prefill_hidden_error") + 2 * i);
    }
  }
}

// 1100 tokens are calls of 512, 512 and 76; a layer's output for the first tokens is the same as without the others.
TEST(LogitsCommand, LongTextsGiveTheBitsOfTheirBeginnings) {
  const ModelFolder folder(TinyLlama{.context = 2048});
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 1100; ++i) tokens.push_back(i * 31 % 267);
  const auto run = [&](int64_t count) {
    const std::string out = folder.file(fmt::format("{}.safetensors", count));
    const auto list = fmt::format("{}", fmt::join(std::span(tokens).first(static_cast<size_t>(count)), ","));
    const Finished result = run_command({"logits", "-m", folder.gguf, "--tokens", list, "-o", out, "--layers"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return Checkpoint::open(out);
  };
  const auto whole = run(1100);
  ASSERT_EQ(whole.tensor("hidden_states").view().shape(), (Shape{3, 1100, 32}));
  for (const int64_t count : {500, 1024, 1090}) {
    const auto part = run(count);
    const auto equal = [](ConstTensorView a, ConstTensorView b) {
      return std::ranges::equal(a.elements<float>(), b.elements<float>());
    };
    EXPECT_TRUE(equal(part.tensor("logits").view(), whole.tensor("logits").view().slice(0, 0, count)));
    for (int64_t i = 0; i < 3; ++i)
      EXPECT_TRUE(
          equal(part.tensor("hidden_states").view()[i], whole.tensor("hidden_states").view()[i].slice(0, 0, count)));
  }
}

TEST(LogitsCommand, WithoutLayersTheFileHoldsTokensAndLogitsOfThatCache) {
  const ModelFolder folder;
  std::map<std::string, std::vector<float>> logits;
  for (const char* dtype : {"f32", "int8"}) {
    const std::string out = folder.file("out.safetensors");
    const Finished result =
        run_command({"logits", "-m", folder.gguf, "--tokens", "5,17,9", "-o", out, "--kv-dtype", dtype});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const auto written = Checkpoint::open(out);
    EXPECT_EQ(written.tensors().size(), 2U);
    ASSERT_EQ(written.tensor("logits").view().shape(), (Shape{3, 267}));
    const auto numbers = written.tensor("logits").view().elements<float>();
    logits[dtype].assign(numbers.begin(), numbers.end());
  }
  EXPECT_NE(logits["int8"], logits["f32"]);
}

}  // namespace
}  // namespace regard::test
