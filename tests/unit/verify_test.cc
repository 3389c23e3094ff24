#include "model/verify.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "engine/token_outputs.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

const std::vector<int32_t> kTokens = {5, 17, 9, 200, 17, 44, 101, 7, 260};

// The names of the parts that do not hold where the model ran with the weights of `ran`.
std::vector<std::string> failures(const std::string& ran, const std::string& right) {
  Workspace workspace(2);
  const Model model = Model::load(Checkpoint::open(ran), workspace.threads());
  const TokenOutputs outputs = outputs_of(model, kTokens, {.hidden_states = true}, workspace);
  std::vector<int64_t> progress;
  const auto parts =
      verify_parts(model, Checkpoint::open(right), kTokens, {.hidden = outputs.hidden_states, .logits = outputs.logits},
                   workspace.threads(), [&](int64_t done) { progress.push_back(done); });
  EXPECT_EQ(progress, (std::vector<int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(parts.size(), 5U);
  std::vector<std::string> names;
  for (const PartError& part : parts)
    if (!part.holds()) names.push_back(part.name);
  return names;
}

TEST(Verify, NamesThePartWhoseWeightIsAnotherByAHundredth) {
  const test::TempFolder folder;
  const test::TinyLlama tiny{.layers = 3};
  const std::string ran = folder.write("ran.gguf", tiny.gguf().build());
  EXPECT_EQ(failures(ran, ran), std::vector<std::string>());
  const std::pair<const char*, const char*> cases[] = {{"token_embd.weight", "embedding"},
                                                       {"blk.0.attn_v.weight", "layer 0"},
                                                       {"blk.1.attn_norm.weight", "layer 1"},
                                                       {"blk.1.ffn_norm.weight", "layer 1"},
                                                       {"blk.1.ffn_gate.weight", "layer 1"},
                                                       {"blk.2.ffn_down.weight", "layer 2"},
                                                       {"blk.2.attn_output.weight", "layer 2"},
                                                       {"output_norm.weight", "logits"},
                                                       {"output.weight", "logits"}};
  for (const auto& [tensor, part] : cases) {
    SCOPED_TRACE(tensor);
    test::GgufBuilder gguf = tiny.gguf();
    // A number of row 5 of a matrix, which is the embedding of the first token, or of a norm.
    std::string& data = gguf.tensor(tensor).data;
    const size_t at = data.size() > 32 * sizeof(float) ? (5 * 32 + 3) * sizeof(float) : 3 * sizeof(float);
    float number = 0;
    std::memcpy(&number, data.data() + at, sizeof(number));
    number *= 1.01F;
    std::memcpy(data.data() + at, &number, sizeof(number));
    EXPECT_EQ(failures(ran, folder.write("right.gguf", gguf.build())), std::vector<std::string>{part});
  }
}

TEST(Verify, NaNAndRowsThatShouldBeZeroAreInfinitelyWrong) {
  const std::vector<double> right = {1, 2, 3, 4, 0, 0};
  const auto error = [&](std::vector<float> ours) {
    const ConstTensorView logits(ours.data(), {3, 2});
    return compare_states({.hidden = {}, .logits = logits}, {.hidden = {}, .logits = {right.data(), {3, 2}}}).at(0);
  };
  const double infinity = std::numeric_limits<double>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(error({1, 2, 3, 4, 0, 0}).error.largest, 0.0);
  EXPECT_TRUE(error({1, 2, 3, 4, 0, 0}).holds());
  for (const auto& wrong : std::vector<std::vector<float>>{{1, nan, 3, 4, 0, 0}, {1, 2, 3, 4, 0, 1e-9F}}) {
    EXPECT_EQ(error(wrong).error.largest, infinity);
    EXPECT_EQ(error(wrong).error.rms, infinity);
    EXPECT_FALSE(error(wrong).holds());
  }
  // Of the rows (1, 2) and (3, 4), the first is off by more of its own size.
  const PartError part = error({1.5F, 2, 3.5F, 4, 0, 0});
  EXPECT_DOUBLE_EQ(part.error.largest, 0.5 / std::sqrt(2.5));
  EXPECT_DOUBLE_EQ(part.error.rms, std::sqrt(0.125) / std::sqrt(2.5));
}

}  // namespace
}  // namespace regard
