// What a call returns: the record, the new keys and values, the residual, log-sum-exps, types.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <variant>
#include <vector>

#include "regard/attention.h"
#include "regard/error.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/test_layer.h"

namespace regard {
namespace {

using ::testing::HasSubstr;

AttentionConfig small() {
  AttentionConfig config{.hidden_size = 12, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 6};
  config.v_head_dim = 5;
  config.rotary_emb = RotaryConfig{};
  config.rms_norm_eps = 1e-5;
  return config;
}

class Output : public ::testing::Test {
 protected:
  template <class Change>
  AttentionOutput run(Change change) {
    AttentionInput input;
    input.hidden_states = hidden_;
    input.present_key_value = true;
    input.angles = true;
    change(input);
    return attention_.forward(input);
  }
  AttentionOutput run() {
    return run([](AttentionInput&) {});
  }

  Attention attention_ = test::random_layer(small(), 81).load();
  Tensor hidden_ = test::Numbers(82).tensor({7, 12});
  Tensor residual_ = test::Numbers(83).tensor({7, 12});
  Tensor gain_ = test::Numbers(84).tensor({12});
};

// [OUT-2], [OUT-4]
TEST_F(Output, StructuredBindingsGiveTheFirstFourMembers) {
  static_assert(std::tuple_size_v<AttentionOutput> == 4);
  const auto output = run();
  const auto& [hidden, kv, cos, sin] = output;
  EXPECT_EQ(hidden.view().data(), output.hidden_states.view().data());
  EXPECT_EQ(kv.key.view().data(), output.present_key_value.key.view().data());
  EXPECT_EQ(cos.values.view().data(), output.cos_cache.values.view().data());
  EXPECT_EQ(sin.values.view().data(), output.sin_cache.values.view().data());
}

// [OUT-5]
TEST_F(Output, HiddenStatesHaveTheShapeAndTypeOfTheInput) {
  const auto wide = run();
  EXPECT_EQ(wide.hidden_states.shape(), (Shape{7, 12}));
  EXPECT_EQ(wide.hidden_states.dtype(), DType::f32);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const Tensor narrow = convert(hidden_, dtype);
    const Tensor widened = convert(narrow, DType::f32);
    const auto expected = run([&](auto& input) { input.hidden_states = widened; });
    const auto actual = run([&](auto& input) { input.hidden_states = narrow; });
    // The same numbers, rounded once at the end.
    EXPECT_EQ(test::bytes_of(actual.hidden_states), test::bytes_of(convert(expected.hidden_states, dtype)));
  }
}

TEST_F(Output, MayBeWrittenWhereTheCallerWants) {
  const Tensor out(DType::f32, {7, 12});
  const auto output = run([&](auto& input) { input.output = out; });
  EXPECT_TRUE(output.hidden_states.empty());
  EXPECT_EQ(test::bytes_of(out), test::bytes_of(run().hidden_states));
  EXPECT_THAT(test::error_of([&] { run([&](auto& input) {
                                     input.output = Tensor(DType::bf16, {7, 12});
                                   }); }),
              HasSubstr("output has shape [7, 12] and dtype bf16"));
  EXPECT_THAT(test::error_of([&] { run([&](auto& input) {
                                     input.output = Tensor(DType::f32, {6, 12});
                                   }); }),
              HasSubstr("output has shape [6, 12]"));
}

// [OUT-10], [OUT-15]: KV heads, not the query heads that share them.
TEST_F(Output, PresentKeyValueHasTheNewTokensOfEveryKvHead) {
  const auto output = run();
  EXPECT_EQ(output.present_key_value.key.shape(), (Shape{7, 2, 6}));
  EXPECT_EQ(output.present_key_value.value.shape(), (Shape{7, 2, 5}));
}

// [OUT-8], [OUT-10]
TEST_F(Output, KeysValuesAndAnglesComeOnlyWhenAskedFor) {
  AttentionInput input;
  input.hidden_states = hidden_;
  const auto output = attention_.forward(input);
  EXPECT_TRUE(output.present_key_value.key.empty());
  EXPECT_TRUE(output.present_key_value.value.empty());
  EXPECT_TRUE(output.cos_cache.empty());
  EXPECT_TRUE(output.sin_cache.empty());
  EXPECT_EQ(test::bytes_of(output.hidden_states), test::bytes_of(run().hidden_states));
}

// [OUT-14]: what the cache got, before the cache's type rounds it.
TEST_F(Output, PresentKeyValueIsWhatTheCacheStores) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    KvCache cache = KvCache::contiguous({.slots = 1, .capacity = 10, .dtype = dtype}, small());
    const auto output = run([&](auto& input) { input.cache = &cache; });
    const auto [keys, values] = cache.read(0, 0, 7);
    const auto rounded = [&](const Tensor& tensor) { return convert(convert(tensor, dtype), DType::f32); };
    EXPECT_EQ(test::bytes_of(keys), test::bytes_of(rounded(output.present_key_value.key)));
    EXPECT_EQ(test::bytes_of(values), test::bytes_of(rounded(output.present_key_value.value)));
  }
}

// [OUT-32], [OUT-30]: a decode step returns the key and the hidden state of prefill's last row.
TEST_F(Output, DecodeReturnsTheNewTokenOnly) {
  const auto whole = run();
  KvCache cache = KvCache::contiguous({.slots = 1, .capacity = 10, .dtype = DType::f32}, small());
  const Tensor head = convert(hidden_.view().slice(0, 0, 6), DType::f32);
  const Tensor tail = convert(hidden_.view().slice(0, 6, 1), DType::f32);
  (void)run([&](auto& input) {
    input.hidden_states = head;
    input.cache = &cache;
  });
  const Span span{.slot = 0, .first_position = 6, .count = 1};
  const auto last = run([&](auto& input) {
    input.hidden_states = tail;
    input.spans = std::span(&span, 1);
    input.cache = &cache;
  });
  EXPECT_EQ(last.present_key_value.key.shape(), (Shape{1, 2, 6}));
  EXPECT_EQ(test::bytes_of(last.present_key_value.key.view()[0]),
            test::bytes_of(whole.present_key_value.key.view()[6]));
  EXPECT_EQ(test::bytes_of(last.hidden_states.view()[0]), test::bytes_of(whole.hidden_states.view()[6]));
}

// [OUT-6]
TEST_F(Output, AResidualWithoutANormComesBackUnchanged) {
  const auto output = run([&](auto& input) { input.residual = residual_; });
  EXPECT_EQ(test::bytes_of(output.residual), test::bytes_of(residual_));
  EXPECT_EQ(test::bytes_of(output.hidden_states), test::bytes_of(run().hidden_states));
  EXPECT_TRUE(run().residual.empty());
}

// [OUT-6], [CFG-30]: with a norm, input + residual is both what is normed and the new residual.
TEST_F(Output, AResidualWithANormIsAddedFirst) {
  const auto output = run([&](auto& input) {
    input.residual = residual_;
    input.rmsnorm = gain_;
  });
  Tensor sum(DType::f32, {7, 12});
  Tensor normed(DType::f32, {7, 12});
  for (size_t token = 0; token < 7; ++token) {
    double square = 0;
    for (size_t i = token * 12; i < token * 12 + 12; ++i) {
      sum.elements<float>()[i] = hidden_.elements<float>()[i] + residual_.elements<float>()[i];
      square += std::pow(static_cast<double>(sum.elements<float>()[i]), 2) / 12;
    }
    for (size_t i = token * 12; i < token * 12 + 12; ++i)
      normed.elements<float>()[i] =
          static_cast<float>(static_cast<double>(sum.elements<float>()[i]) / std::sqrt(square + 1e-5) *
                             static_cast<double>(gain_.elements<float>()[i % 12]));
  }
  EXPECT_EQ(test::bytes_of(output.residual), test::bytes_of(sum));
  const auto expected = run([&](auto& input) { input.hidden_states = normed; });
  // Inputs that differ in their last bit, through two projections of sums below 50.
  for (size_t i = 0; i < 84; ++i)
    EXPECT_NEAR(output.hidden_states.elements<float>()[i], expected.hidden_states.elements<float>()[i], 5e-5);
}

// In bf16 the norm reads the sum as it is handed on.
TEST_F(Output, ANarrowResidualIsRoundedBeforeTheNorm) {
  const Tensor x = convert(hidden_, DType::bf16);
  const Tensor residual = convert(residual_, DType::bf16);
  const auto output = run([&](auto& input) {
    input.hidden_states = x;
    input.residual = residual;
    input.rmsnorm = gain_;
  });
  EXPECT_EQ(output.residual.dtype(), DType::bf16);
  const auto again = run([&](auto& input) {
    input.hidden_states = output.residual;
    input.rmsnorm = gain_;
  });
  EXPECT_EQ(test::bytes_of(output.hidden_states), test::bytes_of(again.hidden_states));
  EXPECT_EQ(static_cast<float>(output.residual.elements<BFloat16>()[3]),
            static_cast<float>(BFloat16(static_cast<float>(x.elements<BFloat16>()[3]) +
                                        static_cast<float>(residual.elements<BFloat16>()[3]))));
}

TEST_F(Output, TheCallersResidualIsNotTouched) {
  const auto before = test::bytes_of(residual_);
  (void)run([&](auto& input) {
    input.residual = residual_;
    input.rmsnorm = gain_;
  });
  EXPECT_EQ(test::bytes_of(residual_), before);
}

// [OUT-8]
TEST_F(Output, CosAndSinAreTheTablesThatWereUsed) {
  const auto output = run();
  EXPECT_EQ(output.cos_cache.values.shape(), (Shape{7, 3}));
  EXPECT_EQ(output.cos_cache.values.elements<float>()[0], 1.0F);
  EXPECT_FLOAT_EQ(output.sin_cache.values.elements<float>()[3], std::sin(1.0F));
}

TEST_F(Output, LogSumExpsComeOnlyWhenAskedFor) {
  EXPECT_TRUE(run().lse.empty());
  const auto output = run([](auto& input) { input.lse = true; });
  EXPECT_EQ(output.lse.shape(), (Shape{7, 4}));
  EXPECT_EQ(test::bytes_of(output.hidden_states), test::bytes_of(run().hidden_states));
}

}  // namespace
}  // namespace regard
