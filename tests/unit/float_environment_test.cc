// What the calling thread does to its floating-point environment changes no bit, and is there after the call.
#include "tensor/float_environment.h"

#include <gtest/gtest.h>

#include <cfenv>
#include <functional>
#include <string>
#include <vector>
#if defined(__x86_64__)
#include <pmmintrin.h>
#include <xmmintrin.h>
#endif

#include "regard/attention.h"
#include "regard/model.h"
#include "regard/sampler.h"
#include "support/numbers.h"
#include "support/temp_folder.h"
#include "support/test_layer.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

struct Environment {
  std::string name;
  std::function<void()> set;
  std::function<bool()> is_set;
};

std::vector<Environment> environments() {
  std::vector<Environment> all = {
      {"upward", [] { std::fesetround(FE_UPWARD); }, [] { return std::fegetround() == FE_UPWARD; }},
      {"toward zero", [] { std::fesetround(FE_TOWARDZERO); }, [] { return std::fegetround() == FE_TOWARDZERO; }}};
#if defined(__x86_64__)
  all.push_back({"denormals are zero",
                 [] {
                   _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
                   _MM_SET_DENORMALS_ZERO_MODE(_MM_DENORMALS_ZERO_ON);
                 },
                 [] {
                   return _MM_GET_FLUSH_ZERO_MODE() == _MM_FLUSH_ZERO_ON &&
                          _MM_GET_DENORMALS_ZERO_MODE() == _MM_DENORMALS_ZERO_ON;
                 }});
#endif
  return all;
}

// Gives the thread the usual environment back.
struct Usual {
  Usual() = default;
  ~Usual() { FloatEnvironment::set_default(), std::fesetround(FE_TONEAREST); }
  Usual(const Usual&) = delete;
  Usual& operator=(const Usual&) = delete;
};

using Bytes = std::vector<std::byte>;
using Compute = std::function<Bytes(Workspace& workspace)>;

// The bits in the usual environment, in one that the caller sets when the team's threads are there already, and in one
// that they are made in.
void expect_equal_bits(const Compute& compute) {
  Workspace usual(3);
  const Bytes expected = compute(usual);
  ASSERT_FALSE(expected.empty());
  for (const Environment& environment : environments()) {
    SCOPED_TRACE(environment.name);
    const Usual at_the_end;
    environment.set();
    for (const int threads : {1, 3}) {
      Workspace made_in_it(threads);
      EXPECT_TRUE(compute(made_in_it) == expected) << threads << " threads";
    }
    EXPECT_TRUE(compute(usual) == expected) << "threads made before";
    EXPECT_TRUE(environment.is_set());
  }
}

Bytes run_layer(const test::TestLayer& layer, ConstTensorView hidden, Workspace& workspace) {
  const Attention attention = Attention::load(layer.views(), layer.config, workspace.threads());
  AttentionInput input;
  input.hidden_states = hidden;
  input.workspace = &workspace;
  return test::bytes_of(attention.forward(input).hidden_states);
}

Tensor hidden_states(int64_t tokens) { return test::Numbers(7).tensor({tokens, 256}); }

test::TestLayer rotated_layer() {
  AttentionConfig config{.hidden_size = 256, .num_attention_heads = 8, .num_key_value_heads = 2};
  config.rotary_emb = RotaryConfig{};
  return test::random_layer(config, 71);
}

TEST(FloatEnvironment, OfTheCallerChangesNoBitOfALayer) {
  const test::TestLayer layer = rotated_layer();
  for (const int64_t tokens : {1, 150}) {
    const Tensor hidden = hidden_states(tokens);
    expect_equal_bits([&](Workspace& workspace) { return run_layer(layer, hidden, workspace); });
  }
}

// Queries, keys and values that are denormal: values that are flushed leave an output of zeros.
TEST(FloatEnvironment, OfTheCallerChangesNoBitOfALayerWithDenormalWeights) {
  test::TestLayer layer = rotated_layer();
  for (std::vector<float>* weights : {&layer.q, &layer.k, &layer.v})
    for (float& weight : *weights) weight *= 0x1p-130F;
  const Tensor hidden = hidden_states(150);
  expect_equal_bits([&](Workspace& workspace) { return run_layer(layer, hidden, workspace); });
}

TEST(FloatEnvironment, OfTheCallerChangesNoBitOfAModelNorOfWhatIsDrawn) {
  const test::TempFolder folder;
  const test::TinyLlama tiny{.hidden = 128, .heads = 4, .kv_heads = 2, .intermediate = 256, .context = 256};
  const auto checkpoint = Checkpoint::open(folder.write("model.gguf", tiny.gguf().build()));
  expect_equal_bits([&](Workspace& workspace) {
    const Model model = Model::load(checkpoint, workspace.threads());
    auto caches = model.make_caches({.slots = 1, .capacity = 200, .dtype = DType::i8});
    const std::vector<int32_t> tokens(180, 65);
    const Span span{.slot = 0, .first_position = 0, .count = 180};
    const ConstTensorView logits = model.forward(tokens, {&span, 1}, caches, {}, workspace);
    Bytes bytes = test::bytes_of(logits);
    Sampler sampler({.temperature = 0.7F, .top_p = 0.9F, .seed = 3});
    for (int i = 0; i < 50; ++i) bytes.push_back(static_cast<std::byte>(sampler.sample(logits[0].elements<float>())));
    return bytes;
  });
}

// Traps would end the process at the first inexact sum.
TEST(FloatEnvironment, TrapsOfTheCallerStayOutsideOfTasks) {
  const Usual at_the_end;
  feenableexcept(FE_INEXACT);
  double sum = 0;
  Threads(1).for_each(3, [&](int64_t task, int) { sum += 0.1 * static_cast<double>(task); });
  EXPECT_EQ(fegetexcept(), FE_INEXACT);
  fedisableexcept(FE_ALL_EXCEPT);
  EXPECT_GT(sum, 0.29);
}

}  // namespace
}  // namespace regard
