// Projections of one rank: what it keeps of the whole layer's weights, and that it reads nothing else.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel/gqa_sharding.h"
#include "regard/projection.h"
#include "support/expect_error.h"
#include "support/numbers.h"
#include "support/stored_weight.h"

namespace regard {
namespace {

constexpr int64_t kHidden = 256;
constexpr int64_t kTokens = 5;

// A layer of one type, whole, and how its heads are dealt out.
struct Case {
  int64_t heads, kv_heads, head_dim, v_head_dim, tp;
};
// Replicated and padded; converted and padded; split; replicated with heads that cut through groups of 32.
constexpr Case kCases[] = {{6, 2, 8, 128, 4}, {12, 6, 10, 64, 4}, {8, 4, 32, 32, 2}, {16, 2, 6, 16, 8}};

struct Layer {
  Layer(const Case& shape, WeightType type, uint64_t seed)
      : q(test::random_weight(type, shape.heads * shape.head_dim, kHidden, seed)),
        k(test::random_weight(type, shape.kv_heads * shape.head_dim, kHidden, seed + 1)),
        v(test::random_weight(type, shape.kv_heads * shape.v_head_dim, kHidden, seed + 2)),
        output(test::random_weight(type, kHidden, shape.heads * shape.v_head_dim, seed + 3)),
        sharding(shape.heads, shape.kv_heads, shape.tp) {
    config = {.hidden_size = kHidden,
              .num_attention_heads = shape.heads,
              .num_key_value_heads = shape.kv_heads,
              .head_dim = shape.head_dim};
    config.v_head_dim = shape.v_head_dim;
    config.qkv_bias = config.o_bias = true;
    config = config.validated();
    test::Numbers numbers(seed + 4);
    q_bias = numbers.floats(q.rows);
    k_bias = numbers.floats(k.rows);
    v_bias = numbers.floats(v.rows);
    output_bias = numbers.floats(kHidden);
    q_order = interleaved(shape.heads, shape.head_dim);
    k_order = interleaved(shape.kv_heads, shape.head_dim);
  }

  // As GGUF has the rows of rotated heads.
  static std::vector<int64_t> interleaved(int64_t heads, int64_t head_dim) {
    std::vector<int64_t> order;
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t i = 0; i < head_dim; ++i)
        order.push_back(head * head_dim + 2 * (i % (head_dim / 2)) + i / (head_dim / 2));
    return order;
  }

  [[nodiscard]] HeadShard shard(int64_t rank) const { return {sharding.q_heads_of(rank), sharding.kv_heads_of(rank)}; }
  [[nodiscard]] QkvProjection qkv(const HeadShard& shard = {}) const {
    QkvWeights weights{.q = q.view(), .k = k.view(), .v = v.view()};
    weights.q_bias = q_bias;
    weights.k_bias = k_bias;
    weights.v_bias = v_bias;
    weights.q_row_order = q_order;
    weights.k_row_order = k_order;
    return QkvProjection::load(weights, config, Threads(2), shard);
  }
  // The same from one matrix of all rows.
  [[nodiscard]] QkvProjection fused_qkv(const HeadShard& shard = {}) const {
    test::StoredWeight all{.type = q.type, .rows = q.rows + k.rows + v.rows, .columns = kHidden};
    QkvWeights weights;
    for (const auto* part : {&q, &k, &v}) all.bytes.insert(all.bytes.end(), part->bytes.begin(), part->bytes.end());
    for (const auto* part : {&q_bias, &k_bias, &v_bias})
      weights.qkv_bias.insert(weights.qkv_bias.end(), part->begin(), part->end());
    weights.qkv = all.view();
    weights.q_row_order = q_order;
    weights.k_row_order = k_order;
    AttentionConfig fused = config;
    fused.fused_qkv = true;
    return QkvProjection::load(weights, fused, Threads(2), shard);
  }
  [[nodiscard]] OutputProjection out(const HeadShard& shard = {}) const {
    return OutputProjection::load(output.view(), output_bias, config, Threads(2), shard);
  }

  AttentionConfig config;
  test::StoredWeight q, k, v, output;
  std::vector<float> q_bias, k_bias, v_bias, output_bias;
  std::vector<int64_t> q_order, k_order;
  GqaSharding sharding;
};

struct Projected {
  Tensor q, k, v;
};

Projected project(const QkvProjection& projection, const Tensor& x) {
  Workspace workspace(2);
  const auto empty = [](const Linear& linear) { return Tensor(DType::f32, {kTokens, linear.rows()}); };
  const Projected out{.q = empty(projection.q()), .k = empty(projection.k()), .v = empty(projection.v())};
  projection.forward(x, out.q, out.k, out.v, workspace);
  return out;
}

// `local` holds heads of `whole`, and zeros for those that are none.
void expect_heads(const Tensor& local, const Tensor& whole, std::span<const int64_t> heads, int64_t width) {
  ASSERT_EQ(local.shape(), (Shape{kTokens, static_cast<int64_t>(heads.size()) * width}));
  for (size_t i = 0; i < heads.size(); ++i) {
    const auto own = local.view().slice(1, static_cast<int64_t>(i) * width, width);
    const Tensor zeros(DType::f32, {kTokens, width});
    const ConstTensorView expected =
        heads[i] < 0 ? ConstTensorView(zeros) : ConstTensorView(whole.view().slice(1, heads[i] * width, width));
    EXPECT_EQ(test::bytes_of(convert(own, DType::f32)), test::bytes_of(convert(expected, DType::f32)))
        << "local head " << i;
  }
}

template <class Check>
void for_each_layer(Check check) {
  uint64_t seed = 300;
  for (const Case& shape : kCases)
    for (const WeightType type : test::kAllWeightTypes) {
      SCOPED_TRACE(::testing::Message() << name_of(type) << ", " << shape.heads << "/" << shape.kv_heads << " heads of "
                                        << shape.v_head_dim << " on " << shape.tp << " ranks");
      check(Layer(shape, type, seed += 10));
    }
}

TEST(HeadShard, QueriesKeysAndValuesAreThoseOfTheWholeLayerBitwise) {  // [PROJ-12], [PROJ-14]
  for_each_layer([](const Layer& layer) {
    const Tensor x = test::Numbers(301).tensor({kTokens, kHidden});
    const Projected whole = project(layer.qkv(), x);
    for (int64_t rank = 0; rank < layer.sharding.tp(); ++rank) {
      const HeadShard shard = layer.shard(rank);
      for (const QkvProjection& projection : {layer.qkv(shard), layer.fused_qkv(shard)}) {
        const Projected local = project(projection, x);
        expect_heads(local.q, whole.q, shard.q_heads, layer.config.head_dim);
        expect_heads(local.k, whole.k, shard.kv_heads, layer.config.head_dim);
        expect_heads(local.v, whole.v, shard.kv_heads, layer.config.v_head_dim);
      }
    }
  });
}

// x times the whole weight in double, and the sums of the products' sizes.
struct Exact {
  std::vector<double> sums, sizes;
};
Exact exact_product(const test::StoredWeight& weight, const Tensor& x) {
  Exact exact;
  std::vector<float> row(static_cast<size_t>(weight.columns));
  for (int64_t n = 0; n < weight.rows; ++n) {
    decode_row(weight.view(), n, row);
    for (int64_t token = 0; token < kTokens; ++token) {
      double sum = 0;
      double size = 0;
      for (size_t i = 0; i < row.size(); ++i) {
        const double term = static_cast<double>(row[i]) * static_cast<double>(x.view()[token].as<float>()[i]);
        sum += term;
        size += std::abs(term);
      }
      exact.sums.push_back(sum);
      exact.sizes.push_back(size);
    }
  }
  return exact;
}

// What heads of zeros attend to is no matter: here it is large [PROJ-13].
Tensor heads_of(const Tensor& all, std::span<const int64_t> heads, int64_t width) {
  Tensor local(DType::f32, {kTokens, static_cast<int64_t>(heads.size()) * width});
  for (int64_t token = 0; token < kTokens; ++token)
    for (size_t i = 0; i < heads.size(); ++i) {
      float* to = local.view()[token].as<float>() + static_cast<int64_t>(i) * width;
      if (heads[i] < 0)
        std::fill_n(to, width, 1e6F);
      else
        std::copy_n(all.view()[token].as<float>() + heads[i] * width, width, to);
    }
  return local;
}

TEST(HeadShard, OutputsOfAllRanksSumToTheWhole) {  // [PROJ-12], [PROJ-17]
  for_each_layer([](const Layer& layer) {
    const AttentionConfig& c = layer.config;
    Workspace workspace(2);
    const Tensor x = test::Numbers(302).tensor({kTokens, c.num_attention_heads * c.v_head_dim});
    std::vector<double> sums(static_cast<size_t>(kTokens * kHidden));
    for (int64_t rank = 0; rank < layer.sharding.tp(); ++rank) {
      const HeadShard shard = layer.shard(rank);
      const OutputProjection projection = layer.out(shard);
      EXPECT_EQ(projection.linear().bias(), layer.output_bias);
      const Tensor out(DType::f32, {kTokens, kHidden});
      projection.forward(heads_of(x, shard.q_heads, c.v_head_dim), out, workspace);
      for (int64_t n = 0; n < kHidden; ++n)
        for (int64_t token = 0; token < kTokens; ++token)
          sums[static_cast<size_t>(n * kTokens + token)] +=
              static_cast<double>(out.view()[token].as<float>()[n]) -
              static_cast<double>(layer.output_bias[static_cast<size_t>(n)]);
    }
    const Exact exact = exact_product(layer.output, x);
    // One rounding a product, a block and a bias on the way of each number.
    for (size_t i = 0; i < sums.size(); ++i)
      ASSERT_NEAR(sums[i], exact.sums[i],
                  300 * 0x1p-24 * (exact.sizes[i] + static_cast<double>(c.num_attention_heads)));
  });
}

// All that others hold of a weight becomes 0xFF, which is NaN wherever a type has one: whole rows, or, of columns, all
// blocks that hold none of one's own.
void poison(test::StoredWeight& weight, std::span<const int64_t> own_heads, int64_t width, bool in_columns) {
  const WeightBlock block = block_of(weight.type);
  const auto is_own = [&](int64_t index) { return std::ranges::count(own_heads, index / width) > 0; };
  const int64_t blocks = weight.columns / block.values;
  for (int64_t i = 0; i < weight.rows * blocks; ++i) {
    bool own = !in_columns && is_own(i / blocks);
    for (int64_t k = 0; in_columns && k < block.values; ++k) own |= is_own(i % blocks * block.values + k);
    if (!own) std::fill_n(weight.bytes.begin() + i * block.bytes, block.bytes, std::byte{0xFF});
  }
}

void poison(std::vector<float>& bias, std::span<const int64_t> own_heads, int64_t width) {
  for (size_t i = 0; i < bias.size(); ++i)
    if (std::ranges::count(own_heads, static_cast<int64_t>(i) / width) == 0) bias[i] = NAN;
}

void expect_same(const Linear& actual, const Linear& expected) {
  EXPECT_EQ(actual.bias(), expected.bias());
  ASSERT_EQ(actual.weight().rows(), expected.weight().rows());
  ASSERT_EQ(actual.weight().columns(), expected.weight().columns());
  std::vector<float> actual_row(static_cast<size_t>(actual.weight().columns()));
  std::vector<float> expected_row(actual_row.size());
  for (int64_t row = 0; row < actual.weight().rows(); ++row) {
    actual.weight().decode_row(row, actual_row);
    expected.weight().decode_row(row, expected_row);
    ASSERT_EQ(actual_row, expected_row) << "row " << row;
  }
}

TEST(HeadShard, LoadingReadsNothingOfOtherRanks) {
  for_each_layer([](const Layer& layer) {
    const AttentionConfig& c = layer.config;
    for (int64_t rank = 0; rank < layer.sharding.tp(); ++rank) {
      SCOPED_TRACE(::testing::Message() << "rank " << rank);
      const HeadShard shard = layer.shard(rank);
      Layer poisoned = layer;
      poison(poisoned.q, shard.q_heads, c.head_dim, false);
      poison(poisoned.k, shard.kv_heads, c.head_dim, false);
      poison(poisoned.v, shard.kv_heads, c.v_head_dim, false);
      poison(poisoned.output, shard.q_heads, c.v_head_dim, true);
      poison(poisoned.q_bias, shard.q_heads, c.head_dim);
      poison(poisoned.k_bias, shard.kv_heads, c.head_dim);
      poison(poisoned.v_bias, shard.kv_heads, c.v_head_dim);
      const QkvProjection expected = layer.qkv(shard);
      for (const QkvProjection& actual : {poisoned.qkv(shard), poisoned.fused_qkv(shard)}) {
        expect_same(actual.q(), expected.q());
        expect_same(actual.k(), expected.k());
        expect_same(actual.v(), expected.v());
      }
      expect_same(poisoned.out(shard).linear(), layer.out(shard).linear());
    }
  });
}

TEST(HeadShard, ARankKeepsItsPartOfTheBytesOnly) {
  const Layer layer({32, 8, 16, 32, 4}, WeightType::q8_0, 303);
  EXPECT_EQ(layer.qkv(layer.shard(1)).bytes(), layer.qkv().bytes() / 4);
  EXPECT_EQ(layer.out(layer.shard(1)).bytes(), layer.out().bytes() / 4);
}

TEST(HeadShard, RefusesHeadsThatAreNotThere) {
  const Layer layer(kCases[0], WeightType::f32, 304);
  const std::vector<int64_t> good = {0, -1, 1};
  const std::vector<int64_t> late = {0, 6};
  const std::vector<int64_t> early = {-2};
  EXPECT_ERROR(layer.qkv({late, good}), "projection: the shard of q_proj names head 6, expected -1 to 5");
  EXPECT_ERROR(layer.qkv({good, late}), "projection: the shard of k_proj names head 6, expected -1 to 1");
  EXPECT_ERROR(layer.qkv({early, good}), "names head -2");
  EXPECT_ERROR(layer.out({late, good}), "projection: the shard of o_proj names head 6, expected -1 to 5");
}

}  // namespace
}  // namespace regard
