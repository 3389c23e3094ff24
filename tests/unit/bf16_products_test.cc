// Products of bf16 pairs, which a workspace may allow: how close they are, that the schedule still changes no bit, and
// that they are used nowhere else.
#include "kernels/bf16_products.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <span>
#include <vector>

#include "regard/attend.h"
#include "regard/attention.h"
#include "support/numbers.h"
#include "support/rounding.h"
#include "support/stored_weight.h"

namespace regard {
namespace {

using test::rounded;
using Bytes = std::vector<std::byte>;

class Bf16Products : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!kernels::has_bf16_products()) GTEST_SKIP() << "this machine has no instructions for products of bf16 pairs";
  }
};

Workspace pairs(int threads = 1) { return Workspace(WorkspaceOptions{.threads = threads, .bf16_products = true}); }

// ---- projections ----

struct Layer {
  test::StoredWeight stored;
  Linear linear;

  Layer(WeightType type, int64_t rows, int64_t columns)
      : stored(test::random_weight(type, rows, columns, 191)),
        linear(Linear::load(stored.view(), test::Numbers(192).floats(rows), Threads(1))) {}
};

Tensor product(const Layer& layer, ConstTensorView x, Workspace workspace) {
  const Tensor out(DType::f32, {x.size(0), layer.linear.rows()});
  const Linear* const layers[] = {&layer.linear};
  const TensorView outs[] = {out};
  apply(layers, x, outs, workspace);
  return out;
}

// The factors have eight bits, so that products are exact: what remains is one rounding a term, and a few for the
// blocks and the bias. The instruction takes numbers below 2^-126 as 0, which is nothing beside these.
TEST_F(Bf16Products, AProjectionIsTheSumOfProductsOfRoundedFactors) {
  constexpr int64_t kMostRows = 300;
  for (const int64_t columns : {16, 37, 75})
    for (const int64_t depth : {2, 30, 256, 258, 1000}) {
      const Layer layer(WeightType::bf16, columns, depth);
      const Tensor x = test::Numbers(193).tensor({kMostRows, depth});
      std::vector<double> sums, bounds;
      std::vector<float> weight(static_cast<size_t>(depth));
      for (int64_t m = 0; m < kMostRows; ++m)
        for (int64_t n = 0; n < columns; ++n) {
          decode_row(layer.stored.view(), n, weight);
          double sum = static_cast<double>(layer.linear.bias()[static_cast<size_t>(n)]);
          double sizes = std::fabs(sum);
          for (int64_t k = 0; k < depth; ++k) {
            const double term = static_cast<double>(rounded(x.view()[m].as<float>()[k], DType::bf16)) *
                                static_cast<double>(weight[static_cast<size_t>(k)]);
            sum += term;
            sizes += std::fabs(term);
          }
          sums.push_back(sum);
          bounds.push_back(static_cast<double>(depth + 8) * 0x1p-24 * sizes);
        }
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 40, 300}) {
        const auto out = test::floats_of(product(layer, x.view().slice(0, 0, rows), pairs(2)));
        for (size_t i = 0; i < out.size(); ++i)
          ASSERT_NEAR(out[i], sums[i], bounds[i])
              << columns << " columns, depth " << depth << ", " << rows << " rows: element " << i;
      }
    }
}

// bf16 and f16 activations: the former are as exact as their sums.
TEST_F(Bf16Products, ActivationsOfAnyTypeAreRoundedOnce) {
  const Layer layer(WeightType::bf16, 20, 300);
  const Tensor x = test::Numbers(194).tensor({5, 300});
  const Tensor narrow = convert(x, DType::bf16);
  EXPECT_EQ(test::bytes_of(product(layer, x, pairs())), test::bytes_of(product(layer, narrow, pairs())));
  const Tensor half = convert(x, DType::f16);
  EXPECT_EQ(test::bytes_of(product(layer, half, pairs())),
            test::bytes_of(product(layer, convert(half, DType::bf16), pairs())));
}

TEST_F(Bf16Products, AnOddDepthTakesTheExactPath) {
  for (const int64_t depth : {1, 31, 255, 257, 999}) {
    const Layer layer(WeightType::bf16, 37, depth);
    for (const int64_t rows : {1, 13, 300}) {
      const Tensor x = test::Numbers(195).tensor({rows, depth});
      EXPECT_EQ(test::bytes_of(product(layer, x, pairs())), test::bytes_of(product(layer, x, Workspace(1))))
          << depth << ' ' << rows;
    }
  }
}

TEST_F(Bf16Products, WeightsOfOtherTypesTakeTheExactPath) {
  for (const WeightType type : test::kAllWeightTypes) {
    const Layer layer(type, 37, 512);
    for (const int64_t rows : {1, 13, 300}) {
      const Tensor x = test::Numbers(196).tensor({rows, 512});
      const bool equal = test::bytes_of(product(layer, x, pairs())) == test::bytes_of(product(layer, x, Workspace(1)));
      EXPECT_EQ(equal, type != WeightType::bf16) << name_of(type) << ' ' << rows;
    }
  }
}

TEST_F(Bf16Products, ARowAloneHasTheSameBitsAsAmongOthers) {
  const Layer layer(WeightType::bf16, 75, 600);
  const Tensor x = test::Numbers(197).tensor({300, 600});
  std::vector<Bytes> alone;
  for (int64_t m = 0; m < 300; ++m) alone.push_back(test::bytes_of(product(layer, x.view().slice(0, m, 1), pairs())));
  for (const int threads : {1, 2, 3})
    for (int64_t rows = 2; rows <= 300; rows += rows < 40 ? 1 : 65) {
      const Tensor out = product(layer, x.view().slice(0, 300 - rows, rows), pairs(threads));
      for (int64_t m = 0; m < rows; ++m)
        ASSERT_EQ(test::bytes_of(out.view()[m]), alone[static_cast<size_t>(300 - rows + m)]) << rows << ' ' << m;
    }
}

// ---- attention ----

struct Scene {
  int64_t group = 1;
  int64_t head_dim = 64;
  int64_t v_head_dim = 64;
  Mask mask;
  bool sinks = false;
  DType cache_dtype = DType::bf16;

  static constexpr int64_t kKvHeads = 2;
  [[nodiscard]] int64_t heads() const { return kKvHeads * group; }

  friend std::ostream& operator<<(std::ostream& out, const Scene& s) {
    return out << "groups of " << s.group << ", head_dim " << s.head_dim << " and " << s.v_head_dim << ", window "
               << s.mask.sliding_window << ", chunk " << s.mask.attention_chunk_size << (s.sinks ? ", sinks" : "");
  }
};

// Windows and chunks of odd sizes cut pairs of keys.
std::vector<Scene> scenes() {
  std::vector<Scene> all;
  for (const int64_t group : {1, 3, 4, 8})
    for (const int64_t head_dim : {64, 128, 20})
      for (const Mask& mask : {Mask{}, Mask{.sliding_window = 37}, Mask{.sliding_window = 2},
                               Mask{.attention_chunk_size = 51}, Mask{.sliding_window = 9, .attention_chunk_size = 33}})
        all.push_back({.group = group,
                       .head_dim = head_dim,
                       .v_head_dim = head_dim == 20 ? 23 : head_dim,
                       .mask = mask,
                       .sinks = all.size() % 2 == 0});
  return all;
}

// A text of which every token attends. Its keys and values are in slot 0 of a cache; slot 1 holds the same.
class Text {
 public:
  Text(const Scene& scene, int64_t tokens)
      : scene_(scene),
        tokens_(tokens),
        cache_(KvCache::contiguous({.slots = 2, .capacity = tokens + 40, .dtype = scene.cache_dtype}, config(scene))),
        queries_(test::Numbers(201).tensor({tokens, scene.heads(), scene.head_dim})),
        keys_(test::Numbers(202).tensor({tokens, Scene::kKvHeads, scene.head_dim})),
        values_(test::Numbers(203).tensor({tokens, Scene::kKvHeads, scene.v_head_dim})),
        sinks_(scene.sinks ? test::Numbers(204).floats(scene.heads()) : std::vector<float>()) {
    // Scores so wide that some keys matter more than others; keys and values that a cache of bf16 keeps.
    for (float& query : queries_.elements<float>()) query *= 4;
    for (const Tensor& tensor : {keys_, values_})
      for (float& number : tensor.elements<float>()) number = rounded(number, DType::bf16);
    store();
  }

  struct Result {
    Tensor out, lse;

    [[nodiscard]] Bytes bytes(int64_t first, int64_t count) const {
      Bytes all = test::bytes_of(out.view().slice(0, first, count));
      const Bytes more = test::bytes_of(lse.view().slice(0, first, count));
      all.insert(all.end(), more.begin(), more.end());
      return all;
    }
    [[nodiscard]] Bytes bytes() const { return bytes(0, out.shape()[0]); }
  };

  [[nodiscard]] Result attended(Workspace workspace) const { return attended_in_chunks(tokens_, std::move(workspace)); }

  // Every chunk in a call of its own.
  [[nodiscard]] Result attended_in_chunks(int64_t size, Workspace workspace) const {
    const Result result = empty_result(tokens_);
    for (int64_t first = 0; first < tokens_; first += size) {
      const Span span{.slot = 0, .first_position = first, .count = std::min(size, tokens_ - first)};
      const auto part = [&](const Tensor& tensor) { return tensor.view().slice(0, first, span.count); };
      call(std::span(&span, 1), part(queries_), {part(result.out), part(result.lse)}, workspace);
    }
    return result;
  }

  // In one call: tokens of no sequence, the text up to `half`, tokens of another sequence, the rest of the text.
  [[nodiscard]] Result attended_among_others(int64_t half, Workspace workspace) const {
    const Span spans[] = {{.slot = -1, .count = 3},
                          {.slot = 0, .first_position = 0, .count = half},
                          {.slot = 1, .first_position = tokens_ - 7, .count = 7},
                          {.slot = 0, .first_position = half, .count = tokens_ - half}};
    const Tensor queries(DType::f32, {tokens_ + 10, scene_.heads(), scene_.head_dim});
    const Result all = empty_result(tokens_ + 10);
    Result text = empty_result(tokens_);
    int64_t first = 0;
    for (const Span& span : spans) {
      if (span.slot != -1) copy(queries_, span.first_position, queries, first, span.count);
      first += span.count;
    }
    call(spans, queries, {all.out, all.lse}, workspace);
    first = 0;
    for (const Span& span : spans) {
      if (span.slot == 0) {
        copy(all.out, first, text.out, span.first_position, span.count);
        copy(all.lse, first, text.lse, span.first_position, span.count);
      }
      first += span.count;
    }
    return text;
  }

  // The places after the text hold what is no number: tokens that were appended and forgotten.
  void forget_after_the_end(float number) {
    const Tensor keys(DType::f32, {40, Scene::kKvHeads, scene_.head_dim});
    const Tensor values(DType::f32, {40, Scene::kKvHeads, scene_.v_head_dim});
    std::ranges::fill(keys.elements<float>(), number);
    std::ranges::fill(values.elements<float>(), number);
    cache_.append({.slot = 0, .first_position = tokens_, .count = 40}, keys, values);
    cache_.truncate(0, tokens_);
  }
  // One token's key and value become `number`.
  void replace(int64_t token, float number) {
    std::ranges::fill(keys_.view()[token].elements<float>(), number);
    std::ranges::fill(values_.view()[token].elements<float>(), number);
    store();
  }
  [[nodiscard]] bool sees(int64_t token, int64_t key) const {
    const Interval seen = scene_.mask.visible(token, tokens_);
    return key >= seen.first && key <= seen.last;
  }

  // Results as they should be, in double, and how far the roundings may take them. To the first order: a query's
  // change each product of a score by 2^-9, and a score's change e reaches the output as p e (v - out); a weight's
  // change its own term by 2^-9. The sums of weights are of weights that are not rounded.
  void expect_close(const Result& result, int64_t token) const {
    constexpr double kRounding = 0x1p-9;
    constexpr double kHigherOrders = 1.1;
    constexpr double kSums = 1e-5;  // of f32
    const Interval seen = scene_.mask.visible(token, tokens_);
    for (int64_t head = 0; head < scene_.heads(); ++head) {
      const float* query = row(queries_, token, head);
      const double sink = scene_.sinks ? static_cast<double>(sinks_[static_cast<size_t>(head)]) : -INFINITY;
      std::vector<double> weights, changes;
      double sum = std::exp(sink);
      for (int64_t key = seen.first; key <= seen.last; ++key) {
        double score = 0;
        double sizes = 0;
        for (int64_t i = 0; i < scene_.head_dim; ++i) {
          const double term =
              static_cast<double>(query[i]) * static_cast<double>(row(keys_, key, head / scene_.group)[i]);
          score += term;
          sizes += std::fabs(term);
        }
        const double scale = 1.0 / std::sqrt(static_cast<double>(scene_.head_dim));
        weights.push_back(std::exp(score * scale));
        changes.push_back(sizes * scale * kRounding);
        sum += weights.back();
      }
      double lse_change = 0;
      for (size_t i = 0; i < weights.size(); ++i) lse_change += weights[i] / sum * changes[i];
      ASSERT_NEAR(row(result.lse, token, head)[0], std::log(sum), kHigherOrders * lse_change + kSums)
          << "token " << token << " head " << head;
      for (int64_t element = 0; element < scene_.v_head_dim; ++element) {
        const auto value = [&](size_t i) {
          return static_cast<double>(row(values_, seen.first + static_cast<int64_t>(i), head / scene_.group)[element]);
        };
        double exact = 0;
        for (size_t i = 0; i < weights.size(); ++i) exact += weights[i] / sum * value(i);
        double change = 0;
        for (size_t i = 0; i < weights.size(); ++i)
          change += weights[i] / sum * (std::fabs(value(i)) * kRounding + std::fabs(value(i) - exact) * changes[i]);
        ASSERT_NEAR(row(result.out, token, head)[element], exact, kHigherOrders * change + kSums)
            << "token " << token << " head " << head << " element " << element;
      }
    }
  }

 private:
  static AttentionConfig config(const Scene& scene) {
    AttentionConfig config{.hidden_size = 8,
                           .num_attention_heads = scene.heads(),
                           .num_key_value_heads = Scene::kKvHeads,
                           .head_dim = scene.head_dim};
    config.v_head_dim = scene.v_head_dim;
    return config;
  }
  static const float* row(const Tensor& tensor, int64_t token, int64_t head) {
    const int64_t heads = tensor.shape()[1];
    const int64_t width = tensor.shape().rank() == 3 ? tensor.shape()[2] : 1;
    return tensor.elements<float>().data() + (token * heads + head) * width;
  }
  static void copy(const Tensor& from, int64_t first, const Tensor& to, int64_t to_first, int64_t count) {
    const auto source = from.view().slice(0, first, count).elements<float>();
    std::ranges::copy(source, to.view().slice(0, to_first, count).elements<float>().begin());
  }

  void store() {
    for (const int64_t slot : {0, 1}) cache_.append({.slot = slot, .count = tokens_}, keys_, values_);
  }
  [[nodiscard]] Result empty_result(int64_t tokens) const {
    return {.out = Tensor(DType::f32, {tokens, scene_.heads(), scene_.v_head_dim}),
            .lse = Tensor(DType::f32, {tokens, scene_.heads()})};
  }
  struct Output {
    TensorView out, lse;
  };
  void call(std::span<const Span> spans, ConstTensorView queries, const Output& to, Workspace& workspace) const {
    attend({.queries = queries,
            .spans = spans,
            .cache = &cache_,
            .mask = scene_.mask,
            .sinks = sinks_,
            .output = to.out,
            .lse = to.lse,
            .workspace = &workspace});
  }

  Scene scene_;
  int64_t tokens_;
  KvCache cache_;
  Tensor queries_, keys_, values_;
  std::vector<float> sinks_;
};

TEST_F(Bf16Products, AttentionIsAsCloseAsItsRoundings) {
  for (const Scene& scene : scenes()) {
    SCOPED_TRACE(::testing::Message() << scene);
    const Text text(scene, 290);
    const auto result = text.attended(pairs());
    EXPECT_NE(result.bytes(), text.attended(Workspace(1)).bytes());
    for (const int64_t token : {0, 1, 2, 36, 37, 50, 51, 52, 101, 102, 254, 255, 256, 257, 288, 289})
      text.expect_close(result, token);
  }
}

TEST_F(Bf16Products, AnOddHeadDimOrAnotherCacheTakesTheExactPath) {
  for (const Scene& scene :
       {Scene{.group = 4, .head_dim = 33, .v_head_dim = 33}, Scene{.group = 4, .cache_dtype = DType::f32},
        Scene{.group = 4, .cache_dtype = DType::f16}, Scene{.group = 4, .cache_dtype = DType::i8},
        Scene{.group = 4, .cache_dtype = DType::i4}, Scene{.group = 4, .cache_dtype = DType::f8_e4m3}}) {
    SCOPED_TRACE(::testing::Message() << scene << ", " << name_of(scene.cache_dtype));
    const Text text(scene, 290);
    EXPECT_EQ(text.attended(pairs()).bytes(), text.attended(Workspace(1)).bytes());
  }
}

TEST_F(Bf16Products, AttentionHasTheSameBitsInEverySchedule) {
  for (const Scene& scene : scenes()) {
    SCOPED_TRACE(::testing::Message() << scene);
    const Text text(scene, 301);
    const Bytes at_once = text.attended(pairs()).bytes();
    for (const int64_t size : {1, 7, 64}) EXPECT_EQ(text.attended_in_chunks(size, pairs()).bytes(), at_once) << size;
    for (const int64_t half : {1, 120, 255})
      EXPECT_EQ(text.attended_among_others(half, pairs()).bytes(), at_once) << half;
    for (const int threads : {2, 3}) {
      EXPECT_EQ(text.attended(pairs(threads)).bytes(), at_once) << threads;
      EXPECT_EQ(text.attended_in_chunks(7, pairs(threads)).bytes(), at_once) << threads;
    }
    Workspace tiny(
        WorkspaceOptions{.threads = 1, .bf16_products = true, .caches = {.l1 = 1, .l2 = 1, .last_level = 1}});
    EXPECT_EQ(text.attended(std::move(tiny)).bytes(), at_once);
  }
}

// A text of an odd length ends inside a pair of keys.
TEST_F(Bf16Products, WhatTheCacheHeldBeforeChangesNoBit) {
  for (const Scene& scene : scenes())
    for (const int64_t tokens : {1, 50, 259}) {
      SCOPED_TRACE(::testing::Message() << scene << ", " << tokens << " tokens");
      Text text(scene, tokens);
      const Bytes clean = text.attended(pairs()).bytes();
      for (const float number : {NAN, INFINITY}) {
        text.forget_after_the_end(number);
        EXPECT_EQ(text.attended(pairs()).bytes(), clean) << number;
        EXPECT_EQ(text.attended_in_chunks(1, pairs()).bytes(), clean) << number;
      }
    }
}

TEST_F(Bf16Products, WhatTheMaskHidesChangesNoBitAndWhatItShowsReachesTheOutput) {
  constexpr int64_t kTokens = 80;
  for (const Mask& mask : {Mask{}, Mask{.sliding_window = 1}, Mask{.sliding_window = 2}, Mask{.sliding_window = 7},
                           Mask{.sliding_window = 8}, Mask{.sliding_window = 33}, Mask{.attention_chunk_size = 1},
                           Mask{.attention_chunk_size = 11}, Mask{.sliding_window = 6, .attention_chunk_size = 13}})
    for (const int64_t group : {1, 3, 8})
      for (const int64_t poisoned : {0, 1, 20, 21, 22, 33, 78, 79}) {
        const Scene scene{.group = group, .head_dim = 20, .v_head_dim = 23, .mask = mask, .sinks = group == 3};
        SCOPED_TRACE(::testing::Message() << scene << ", poisoned " << poisoned);
        Text text(scene, kTokens);
        const auto clean = text.attended(pairs());
        text.replace(poisoned, NAN);
        for (const auto& ours : {text.attended(pairs()), text.attended_in_chunks(1, pairs())})
          for (int64_t token = 0; token < kTokens; ++token) {
            const auto out = ours.out.view()[token].elements<float>();
            if (text.sees(token, poisoned))
              ASSERT_TRUE(std::ranges::all_of(out, [](float x) { return std::isnan(x); })) << token;
            else
              ASSERT_EQ(ours.bytes(token, 1), clean.bytes(token, 1)) << token;
          }
      }
}

// ---- a layer ----

// Weights and cache of bf16: all of a layer's products are of pairs. Rows take more than a block of 256 columns.
TEST_F(Bf16Products, ALayerHasTheSameBitsInEverySchedule) {
  AttentionConfig config{.hidden_size = 320, .num_attention_heads = 6, .num_key_value_heads = 2, .head_dim = 44};
  config.rotary_emb = RotaryConfig{};
  config.learned_sinks_size = 1;
  config.sliding_window = 71;
  const auto matrix = [](int64_t rows, int64_t columns, uint64_t seed) {
    return test::random_weight(WeightType::bf16, rows, columns, seed);
  };
  const auto q = matrix(264, 320, 211);
  const auto k = matrix(88, 320, 212);
  const auto v = matrix(88, 320, 213);
  const auto o = matrix(320, 264, 214);
  AttentionWeights weights;
  weights.qkv.q = q.view();
  weights.qkv.k = k.view();
  weights.qkv.v = v.view();
  weights.output = o.view();
  weights.sinks = test::Numbers(215).floats(6);
  const Attention attention = Attention::load(weights, config, Threads(1));
  constexpr int64_t kTokens = 300;
  const Tensor hidden = test::Numbers(216).tensor({kTokens, 320});
  // Chunks of the text; `skipped` tokens of no sequence come first in every call.
  const auto run = [&](int64_t size, int64_t skipped, Workspace workspace) {
    KvCache cache = KvCache::contiguous({.slots = 1, .capacity = kTokens, .dtype = DType::bf16}, config);
    Bytes all;
    for (int64_t first = 0; first < kTokens; first += size) {
      const int64_t count = std::min(size, kTokens - first);
      const Tensor rows(DType::f32, {skipped + count, 320});
      std::ranges::copy(hidden.view().slice(0, first, count).elements<float>(),
                        rows.view().slice(0, skipped, count).elements<float>().begin());
      std::vector<Span> spans = {{.slot = 0, .first_position = first, .count = count}};
      if (skipped > 0) spans.insert(spans.begin(), {.slot = -1, .count = skipped});
      AttentionInput input;
      input.hidden_states = rows;
      input.spans = spans;
      input.cache = &cache;
      input.workspace = &workspace;
      const auto output = attention.forward(input);
      const Bytes bytes = test::bytes_of(output.hidden_states.view().slice(0, skipped, count));
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  };
  const Bytes at_once = run(kTokens, 0, pairs());
  EXPECT_NE(at_once, run(kTokens, 0, Workspace(1)));
  for (const int threads : {1, 2, 3})
    for (const int64_t size : {int64_t{1}, int64_t{7}, int64_t{64}, kTokens})
      for (const int64_t skipped : {0, 1, 5})
        EXPECT_EQ(run(size, skipped, pairs(threads)), at_once)
            << threads << " threads, chunks of " << size << ", " << skipped << " skipped";
}

}  // namespace
}  // namespace regard
