// The projections of an attention layer: fused and separate weights, biases, clipping, row order, what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "regard/projection.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/stored_weight.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

struct Heads {
  Tensor q, k, v;
};

Heads project(const QkvProjection& projection, const AttentionConfig& c, const Tensor& x) {
  const int64_t tokens = x.shape()[0];
  Heads heads{.q = Tensor(DType::f32, {tokens, c.num_attention_heads * c.head_dim}),
              .k = Tensor(DType::f32, {tokens, c.num_key_value_heads * c.head_dim}),
              .v = Tensor(DType::f32, {tokens, c.num_key_value_heads * c.v_head_dim})};
  Workspace workspace(2);
  projection.forward(x, heads.q, heads.k, heads.v, workspace);
  return heads;
}

AttentionConfig wide_keys() {
  AttentionConfig config{.hidden_size = 256, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 20};
  config.v_head_dim = 12;
  return config.validated();
}

// [PROJ-15], [PROJ-16], [PROJ-25]: rows q, k, v of 80, 40 and 24, none but q a multiple of 16.
TEST(QkvProjection, FusedEqualsSeparateBitwise) {
  for (const WeightType type :
       {WeightType::f32, WeightType::bf16, WeightType::q4_0, WeightType::q8_0, WeightType::q5_k}) {
    SCOPED_TRACE(name_of(type));
    AttentionConfig config = wide_keys();
    config.qkv_bias = true;
    const auto stored = test::random_weight(type, 144, 256, 41);
    const auto bias = test::Numbers(1).floats(144);
    QkvWeights separate;
    separate.q = stored.view().row_range(0, 80);
    separate.k = stored.view().row_range(80, 40);
    separate.v = stored.view().row_range(120, 24);
    separate.q_bias.assign(bias.begin(), bias.begin() + 80);
    separate.k_bias.assign(bias.begin() + 80, bias.begin() + 120);
    separate.v_bias.assign(bias.begin() + 120, bias.end());
    const Threads threads(2);
    const Tensor x = test::Numbers(2).tensor({19, 256});
    const Heads expected = project(QkvProjection::load(separate, config, threads), config, x);
    config.fused_qkv = true;
    const QkvWeights fused{.qkv = stored.view(), .qkv_bias = bias};
    const Heads actual = project(QkvProjection::load(fused, config, threads), config, x);
    EXPECT_EQ(test::bytes_of(actual.q), test::bytes_of(expected.q));
    EXPECT_EQ(test::bytes_of(actual.k), test::bytes_of(expected.k));
    EXPECT_EQ(test::bytes_of(actual.v), test::bytes_of(expected.v));
  }
}

// One number in, one number out per projection: weights 1, biases 3, -3 and 0.5.
Heads clipped(float clip, float x) {
  AttentionConfig config{.hidden_size = 1, .num_attention_heads = 1, .num_key_value_heads = 1, .clip_qkv = clip};
  config.qkv_bias = true;
  config = config.validated();
  const float one = 1.0F;
  const auto weight = WeightView::make(WeightType::f32, 1, 1, std::as_bytes(std::span(&one, 1)));
  const QkvWeights weights{.q = weight, .k = weight, .v = weight, .q_bias = {3}, .k_bias = {-3}, .v_bias = {0.5F}};
  return project(QkvProjection::load(weights, config, Threads(1)), config, test::tensor_of<float>({1, 1}, {x}));
}

// [CFG-12], [POS-20], [PROJ-17]: clipping before the bias would give 1, -5 and -1.5.
TEST(QkvProjection, ClipsAfterTheBias) {
  const Heads heads = clipped(2, -2.5F);
  EXPECT_EQ(heads.q.elements<float>()[0], 0.5F);
  EXPECT_EQ(heads.k.elements<float>()[0], -2.0F);
  EXPECT_EQ(heads.v.elements<float>()[0], -2.0F);
  EXPECT_EQ(clipped(2, 0).q.elements<float>()[0], 2.0F);
}

// [POS-20]
TEST(QkvProjection, AClipOfZeroZeroesAndANaNPasses) {
  EXPECT_EQ(clipped(0, 1).q.elements<float>()[0], 0.0F);
  EXPECT_EQ(clipped(0, 1).v.elements<float>()[0], 0.0F);
  EXPECT_TRUE(std::isnan(clipped(2, NAN).k.elements<float>()[0]));
}

TEST(QkvProjection, RowOrderMovesRowsAndTheirBiases) {
  AttentionConfig config{.hidden_size = 8, .num_attention_heads = 2, .num_key_value_heads = 1, .head_dim = 2};
  config.qkv_bias = true;
  config = config.validated();
  const auto q = test::random_weight(WeightType::f32, 4, 8, 42);
  const auto k = test::random_weight(WeightType::f32, 2, 8, 43);
  QkvWeights weights{
      .q = q.view(), .k = k.view(), .v = k.view(), .q_bias = {1, 2, 3, 4}, .k_bias = {5, 6}, .v_bias = {7, 8}};
  const Tensor x = test::Numbers(3).tensor({3, 8});
  const Heads plain = project(QkvProjection::load(weights, config, Threads(1)), config, x);
  weights.q_row_order = {2, 0, 3, 1};
  weights.k_row_order = {1, 0};
  const Heads ordered = project(QkvProjection::load(weights, config, Threads(1)), config, x);
  for (int64_t token = 0; token < 3; ++token) {
    for (int64_t i = 0; i < 4; ++i)
      EXPECT_EQ(ordered.q.view()[token].as<float>()[i],
                plain.q.view()[token].as<float>()[weights.q_row_order[static_cast<size_t>(i)]]);
    for (int64_t i = 0; i < 2; ++i)
      EXPECT_EQ(ordered.k.view()[token].as<float>()[i], plain.k.view()[token].as<float>()[1 - i]);
  }
  EXPECT_EQ(test::bytes_of(ordered.v), test::bytes_of(plain.v));
}

// [CFG-1]
TEST(QkvProjection, AnEagle3DraftProjectsTwiceTheHiddenSize) {
  AttentionConfig config{.hidden_size = 4, .num_attention_heads = 1, .num_key_value_heads = 1, .is_eagle3_draft = true};
  config = config.validated();
  const auto stored = test::random_weight(WeightType::f32, 4, 8, 44);
  const QkvWeights weights{.q = stored.view(), .k = stored.view(), .v = stored.view()};
  const Heads heads =
      project(QkvProjection::load(weights, config, Threads(1)), config, test::Numbers(4).tensor({2, 8}));
  EXPECT_EQ(heads.q.shape(), (Shape{2, 4}));
}

struct Wrong {
  const char* message;
  std::function<void(QkvWeights&, AttentionConfig&)> change;
};

TEST(QkvProjection, RefusesWeightsThatDisagreeWithTheConfig) {
  const auto wide = test::random_weight(WeightType::f32, 144, 256, 45);
  const auto narrow = test::random_weight(WeightType::f32, 144, 255, 46);
  const std::vector<Wrong> cases = {
      {"q_proj has shape [79, 256], expected [80, 256]", [&](auto& w, auto&) { w.q = wide.view().row_range(0, 79); }},
      {"k_proj has shape [40, 255]", [&](auto& w, auto&) { w.k = narrow.view().row_range(80, 40); }},
      {"v_proj has shape [40, 256]", [&](auto& w, auto&) { w.v = wide.view().row_range(80, 40); }},
      {"bias of q_proj is missing", [&](auto&, auto& c) { c.qkv_bias = true; }},
      {"bias of k_proj is given", [&](auto& w, auto&) { w.k_bias.resize(40); }},
      {"bias of q_proj has 3 numbers, expected 80",
       [&](auto& w, auto& c) {
         c.qkv_bias = true;
         w.q_bias.resize(3);
       }},
      {"bias of q_proj holds NaN",
       [&](auto& w, auto& c) {
         c.qkv_bias = true;
         w.q_bias.assign(80, NAN);
       }},
      {"the order of 80 rows of q_proj has 2 entries",
       [&](auto& w, auto& c) {
         c.qkv_bias = true;
         w.q_bias.resize(80);
         w.q_row_order = {0, 1};
       }},
      {"the order of rows of k_proj names row -1, expected 0 to 39",
       [&](auto& w, auto&) { w.k_row_order.assign(40, -1); }},
      {"fused_qkv is false, but the checkpoint has a Wqkv", [&](auto& w, auto&) { w.qkv = wide.view(); }},
      {"fused_qkv is true, but the checkpoint has no Wqkv", [&](auto&, auto& c) { c.fused_qkv = true; }},
      {"Wqkv has 143 rows, expected 144",
       [&](auto& w, auto& c) {
         c.fused_qkv = true;
         w.qkv = wide.view().row_range(0, 143);
       }},
      {"bias of Wqkv has 5 numbers, expected 144",
       [&](auto& w, auto& c) {
         c.fused_qkv = c.qkv_bias = true;
         w.qkv = wide.view();
         w.qkv_bias.resize(5);
       }},
  };
  for (const Wrong& wrong : cases) {
    AttentionConfig config = wide_keys();
    QkvWeights weights{
        .q = wide.view().row_range(0, 80), .k = wide.view().row_range(80, 40), .v = wide.view().row_range(120, 24)};
    ASSERT_EQ(error_of([&] { (void)QkvProjection::load(weights, config, Threads(1)); }), "");
    wrong.change(weights, config);
    EXPECT_THAT(error_of([&] { (void)QkvProjection::load(weights, config, Threads(1)); }), HasSubstr(wrong.message));
  }
}

// [PROJ-20]: column h * v_head_dim + d holds head h, element d. [PROJ-17]: the bias once.
TEST(OutputProjection, MergesHeadsInOrderAndAddsItsBiasOnce) {
  AttentionConfig config{.hidden_size = 2, .num_attention_heads = 2, .num_key_value_heads = 1, .head_dim = 3};
  config.v_head_dim = 2;
  config.o_bias = true;
  config = config.validated();
  // Row 0 picks head 1, element 0; row 1 adds ten times head 0, element 1.
  const std::vector<float> weight = {0, 0, 1, 0, 0, 10, 0, 0};
  const auto view = WeightView::make(WeightType::f32, 2, 4, std::as_bytes(std::span(weight)));
  const auto projection = OutputProjection::load(view, std::vector<float>{100, 200}, config, Threads(1));
  Workspace workspace(1);
  const Tensor out(DType::f32, {1, 2});
  projection.forward(test::tensor_of<float>({1, 4}, {1, 2, 3, 4}), out, workspace);
  EXPECT_EQ(test::floats_of(out), (std::vector<float>{103, 220}));
}

// [CFG-22]
TEST(OutputProjection, ErrorsCallItByItsNameInTheCheckpoint) {
  AttentionConfig config{.hidden_size = 4, .num_attention_heads = 1, .num_key_value_heads = 1};
  config.o_proj_layer_name = "out_proj";
  const auto stored = test::random_weight(WeightType::f32, 3, 4, 1);
  EXPECT_THAT(error_of([&] { (void)OutputProjection::load(stored.view(), {}, config.validated(), Threads(1)); }),
              HasSubstr("out_proj has shape [3, 4], expected [4, 4]"));
}

}  // namespace
}  // namespace regard
