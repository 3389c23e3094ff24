// Every instruction set with fused multiply-add gives the same bits. The fallback without it is exempt, but close.
#include "kernels/targets.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cache_rows.h"
#include "kernels/rows.h"
#include "regard/attend.h"
#include "regard/attention.h"
#include "support/numbers.h"
#include "support/stored_weight.h"
#include "support/test_layer.h"

namespace regard {
namespace {

using Bytes = std::vector<std::byte>;

// Dispatches to one target for as long as it lives.
class Forced {
 public:
  explicit Forced(const std::string& name) { kernels::force_target(name); }
  ~Forced() { kernels::force_target(""); }
  Forced(const Forced&) = delete;
  Forced& operator=(const Forced&) = delete;
};

std::vector<std::string> supported_with_fma() {
  std::vector<std::string> targets = kernels::supported_targets();
  std::erase_if(targets, [](const std::string& target) { return !kernels::target_has_fma(target); });
  return targets;
}

// With one such target there is nothing to compare: the test says so, but still computes.
void expect_equal_bits(const std::function<Bytes()>& compute) {
  const auto targets = supported_with_fma();
  Bytes expected;
  for (const std::string& target : targets) {
    const Forced forced(target);
    ASSERT_EQ(kernels::target_name(), target);
    const Bytes actual = compute();
    ASSERT_FALSE(actual.empty());
    if (expected.empty()) expected = actual;
    EXPECT_TRUE(actual == expected) << target << " differs from " << targets.front();
  }
  if (targets.size() < 2) GTEST_SKIP() << "the machine has one instruction set with fused multiply-add";
}

// As the reason to skip a test; "" where both kinds are there.
std::string missing_kind() {
  const size_t with_fma = supported_with_fma().size();
  if (with_fma == 0) return "the machine has no instruction set with fused multiply-add";
  if (with_fma == kernels::supported_targets().size()) return "the machine has none without fused multiply-add";
  return "";
}

Bytes bytes_of(const std::vector<float>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

Tensor product(const Linear& layer, const Tensor& x) {
  Workspace workspace(2);
  Tensor out(DType::f32, {x.shape()[0], layer.rows()});
  const Linear* const layers[] = {&layer};
  const TensorView outs[] = {out};
  apply(layers, x, outs, workspace);
  return out;
}

TEST(Targets, CanBeForcedAndReleased) {
  const auto targets = kernels::supported_targets();
  ASSERT_FALSE(targets.empty());
  EXPECT_EQ(kernels::target_name(), targets.front());
  {
    const Forced forced(targets.back());
    EXPECT_EQ(kernels::target_name(), targets.back());
  }
  EXPECT_EQ(kernels::target_name(), targets.front());
}

TEST(Targets, OnlyThoseWithFusedMultiplyAddPromiseEqualBits) {
  for (const char* name : {"AVX2", "AVX3", "NEON"}) EXPECT_TRUE(kernels::target_has_fma(name)) << name;
  for (const char* name : {"SSSE3", "SSE4", "EMU128", "SCALAR"}) EXPECT_FALSE(kernels::target_has_fma(name)) << name;
}

TEST(Targets, ProjectionsHaveEqualBits) {
  for (const WeightType type : test::kAllWeightTypes)
    for (const int64_t columns : {512, 768})  // of short and of long chains
      for (const int64_t tokens : {1, 3, 7, 40}) {
        SCOPED_TRACE(::testing::Message() << name_of(type) << ' ' << columns << ' ' << tokens);
        const Linear layer =
            Linear::load(test::random_weight(type, 75, columns, 141).view(), test::Numbers(142).floats(75), Threads(1));
        const Tensor x = test::Numbers(143).tensor({tokens, columns});
        expect_equal_bits([&] { return test::bytes_of(product(layer, x)); });
      }
}

TEST(Targets, NormsHaveEqualBits) {
  for (const NormKind kind : {NormKind::rms, NormKind::rms_plus_one, NormKind::layer_norm})
    for (const int64_t count : {1, 7, 16, 100, 1000}) {
      SCOPED_TRACE(::testing::Message() << static_cast<int>(kind) << ' ' << count);
      const auto weight = test::Numbers(144).floats(count);
      expect_equal_bits([&] {
        auto row = test::Numbers(145).floats(count);
        kernels::normalize(kind, 1e-5, weight.data(), weight.data(), count, row.data());
        return bytes_of(row);
      });
    }
}

TEST(Targets, ActivationAndConversionsHaveEqualBits) {
  const auto x = test::Numbers(146).floats(333);
  for (const Activation kind :
       {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::clamped_silu})
    expect_equal_bits([&] {
      auto gate = x;
      for (float& value : gate) value *= 20;
      kernels::activate({.kind = kind}, x.data(), 333, gate.data());
      kernels::add_scaled(x.data(), 0.3F, 333, gate.data());
      return bytes_of(gate);
    });
  for (const DType dtype : {DType::bf16, DType::f16})
    expect_equal_bits([&] {
      Bytes stored(666);
      kernels::store_floats(x.data(), 333, dtype, stored.data());
      std::vector<float> loaded(333);
      kernels::load_floats(stored.data(), dtype, 333, loaded.data());
      const Bytes wide = bytes_of(loaded);
      stored.insert(stored.end(), wide.begin(), wide.end());
      return stored;
    });
}

// A prefill of 300 tokens and a decode step, with everything that a layer may do on the way.
Bytes prefill_and_decode(const test::TestLayer& layer, DType cache_dtype) {
  const Attention attention = layer.load(2);
  KvCache cache = KvCache::contiguous({.slots = 1, .capacity = 400, .dtype = cache_dtype}, attention.config());
  test::Numbers numbers(147);
  Bytes all;
  for (const Span& span : {Span{.slot = 0, .count = 300}, Span{.slot = 0, .first_position = 300, .count = 1}}) {
    const Tensor hidden = numbers.tensor({span.count, layer.config.hidden_size});
    const Tensor gain = numbers.tensor({layer.config.hidden_size});
    AttentionInput input;
    input.hidden_states = hidden;
    input.rmsnorm = gain;
    input.spans = std::span(&span, 1);
    input.cache = &cache;
    input.present_key_value = true;
    input.lse = true;
    const auto output = attention.forward(input);
    for (const Tensor& tensor : {output.hidden_states, output.lse, output.present_key_value.key}) {
      const Bytes bytes = test::bytes_of(tensor);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
  }
  return all;
}

AttentionConfig plain_layer(int64_t head_dim) {
  AttentionConfig config{.hidden_size = 40, .num_attention_heads = 6, .num_key_value_heads = 2, .head_dim = head_dim};
  config.rotary_emb = RotaryConfig{};
  config.rms_norm_eps = 1e-6;
  return config;
}

TEST(Targets, AttentionHasEqualBitsForEveryCacheType) {
  for (const int64_t head_dim : {20, 64, 128})
    for (const DType dtype :
         {DType::f32, DType::bf16, DType::f16, DType::i8, DType::i4, DType::f8_e4m3, DType::f8_e5m2}) {
      SCOPED_TRACE(::testing::Message() << head_dim << ' ' << name_of(dtype));
      const auto layer = test::random_layer(plain_layer(head_dim), 148);
      expect_equal_bits([&] { return prefill_and_decode(layer, dtype); });
    }
}

TEST(Targets, AttentionVariantsHaveEqualBits) {
  const std::vector<std::function<void(AttentionConfig&)>> variants = {
      [](auto& c) { c.learned_sinks_size = 2; },
      [](auto& c) { c.logit_soft_cap = 5; },
      [](auto& c) { c.sliding_window = 70; },
      [](auto& c) { c.attention_chunk_size = 33; },
      [](auto& c) { c.is_causal = false; },
      [](auto& c) { c.rotary_emb->style = RotaryStyle::interleaved; },
      [](auto& c) { c.qk_layernorm = true; },
      [](auto& c) { c.q_layernorm = c.k_layernorm = QKNorm{.kind = NormKind::rms_plus_one, .width = NormWidth::all}; },
      [](auto& c) { c.v_norm = QKNorm{}; },
      [](auto& c) { c.qkv_bias = c.o_bias = true; },
      [](auto& c) { c.query_position_scale = QueryPositionScale{.floor_scale = 50}; },
  };
  for (size_t i = 0; i < variants.size(); ++i) {
    SCOPED_TRACE(i);
    AttentionConfig config = plain_layer(24);
    config.v_head_dim = 40;
    variants[i](config);
    const auto layer = test::random_layer(config, 149);
    expect_equal_bits([&] { return prefill_and_decode(layer, DType::bf16); });
  }
}

// Stored and read by any target, whatever its vectors: by one row and by many, which decode the panels first.
TEST(Targets, FourBitCachesHoldAndGiveTheSameNumbers) {
  if (kernels::supported_targets().size() < 2) GTEST_SKIP() << "the machine has one instruction set";
  constexpr int64_t kTokens = 50;
  const AttentionConfig config = plain_layer(40);
  test::Numbers numbers(154);
  const Tensor keys = numbers.tensor({kTokens, 2, 40});
  const Tensor values = numbers.tensor({kTokens, 2, 40});
  for (const int64_t count : {int64_t{1}, kTokens}) {
    const Span span{.first_position = kTokens - count, .count = count};
    const Tensor queries = numbers.tensor({count, 6, 40});
    std::vector<float> expected;
    Bytes stored;
    for (const std::string& target : kernels::supported_targets()) {
      SCOPED_TRACE(target);
      const Forced forced(target);
      KvCache cache = KvCache::contiguous({.slots = 1, .capacity = kTokens, .dtype = DType::i4}, config);
      cache.append({.count = kTokens}, keys, values);
      const auto held = cache.read(0, 0, kTokens);
      Bytes bytes = test::bytes_of(held.first);
      const Bytes more = test::bytes_of(held.second);
      bytes.insert(bytes.end(), more.begin(), more.end());
      const Tensor output(DType::f32, {count, 6, 40});
      attend({.queries = queries, .spans = std::span(&span, 1), .cache = &cache, .output = output});
      const auto actual = test::floats_of(output);
      if (expected.empty()) expected = actual;
      if (stored.empty()) stored = bytes;
      EXPECT_TRUE(bytes == stored);
      for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(actual[i], expected[i], 1e-5) << i;
    }
  }
}

// NaN has no number among 4 bits; what stands for it is not left to the instruction set.
TEST(Targets, FourBitsOfATokenWithSpecialNumbersAreZeros) {
  std::vector<float> row(16, 1.0F);
  row[2] = std::numeric_limits<float>::quiet_NaN();
  row[11] = -std::numeric_limits<float>::infinity();
  for (const std::string& target : kernels::supported_targets()) {
    const Forced forced(target);
    Bytes bytes(16 * 8);
    std::vector<float> scales(16);
    kernels::store_values({.data = row.data(), .stride = 16, .count = 1, .width = 16}, 3,
                          {.data = bytes.data(), .scales = scales.data(), .dtype = DType::i4, .page_tokens = 16});
    for (size_t i = 0; i < 8; ++i) EXPECT_EQ(bytes[3 * 8 + i], std::byte{0x88}) << target << ' ' << i;
  }
}

// Unfused sums round twice a product: a few more units in the last place of sums below 60, but the same attention.
TEST(Targets, WithoutFusedMultiplyAddResultsAreClose) {
  if (const std::string why = missing_kind(); !why.empty()) GTEST_SKIP() << why;
  AttentionConfig config = plain_layer(24);
  config.learned_sinks_size = 1;
  config.sliding_window = 70;
  const auto layer = test::random_layer(config, 150);
  const Tensor hidden = test::Numbers(151).tensor({90, 40});
  const auto run = [&](const std::string& target) {
    const Forced forced(target);
    AttentionInput input;
    input.hidden_states = hidden;
    return test::floats_of(layer.load().forward(input).hidden_states);
  };
  const auto expected = run("");
  for (const std::string& target : kernels::supported_targets()) {
    SCOPED_TRACE(target);
    const auto actual = run(target);
    for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(actual[i], expected[i], 1e-4) << i;
  }
}

TEST(Targets, WithoutFusedMultiplyAddProjectionsAreCloseForEveryWeightType) {
  if (const std::string why = missing_kind(); !why.empty()) GTEST_SKIP() << why;
  const Tensor x = test::Numbers(152).tensor({40, 256});
  for (const WeightType type : test::kAllWeightTypes) {
    SCOPED_TRACE(name_of(type));
    const Linear layer = Linear::load(test::random_weight(type, 35, 256, 153).view(), {}, Threads(1));
    const auto run = [&](const std::string& target) {
      const Forced forced(target);
      return product(layer, x);
    };
    const auto expected = test::floats_of(run(""));
    const float largest = std::abs(*std::ranges::max_element(expected, {}, [](float y) { return std::abs(y); }));
    for (const std::string& target : kernels::supported_targets()) {
      const auto actual = test::floats_of(run(target));
      for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(actual[i], expected[i], 1e-4F * largest) << target;
    }
  }
}

}  // namespace
}  // namespace regard
