// Attention over borrowed tensors with any strides, against the oracle and against attention over a cache.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "regard/attend.h"
#include "support/attend_case.h"
#include "support/attend_oracle.h"
#include "support/expect_error.h"
#include "support/numbers.h"
#include "support/property.h"
#include "support/random.h"

namespace regard::test {
namespace {

// A batch [batch, heads, tokens, width] somewhere in memory that is NaN everywhere else: axes in any order, with gaps.
class Scattered {
 public:
  Scattered(DType dtype, const Shape& shape, Random& random) {
    std::array<size_t, 4> order = {0, 1, 2, 3};
    for (size_t i = 4; i-- > 1;)
      std::swap(order[i], order[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i)))]);
    std::array<int64_t, 4> strides{};
    int64_t stride = random.integer(1, 3);
    for (const size_t axis : order) {
      strides[axis] = stride;
      stride = stride * std::max<int64_t>(shape[axis], 1) + random.integer(0, 5);
    }
    memory_ = Tensor(dtype, {stride});
    std::memset(memory_.view().data(), 0xFF, static_cast<size_t>(stride) * size_of(dtype));
    view_ = TensorView(memory_.view().data(), dtype, shape, strides);
  }

  [[nodiscard]] TensorView view() const { return view_; }
  // Row [heads, width] of each token of a sequence of the batch.
  void fill(int64_t row, const std::vector<float>& numbers) {
    for_each(row, [&](TensorView element, size_t at) {
      const Tensor number = convert(ConstTensorView(&numbers[at], {1}), element.dtype());
      std::memcpy(element.data(), number.view().data(), size_of(element.dtype()));
    });
  }
  // The same, as a dense tensor [tokens, heads, width].
  [[nodiscard]] Tensor dense(int64_t row) const {
    Tensor all(view_.dtype(), {view_.size(2), view_.size(1), view_.size(3)});
    const size_t size = size_of(view_.dtype());
    for_each(row,
             [&](TensorView element, size_t at) { std::memcpy(all.view().data() + at * size, element.data(), size); });
    return all;
  }

 private:
  template <class Visit>
  void for_each(int64_t row, Visit visit) const {
    size_t at = 0;
    for (int64_t token = 0; token < view_.size(2); ++token)
      for (int64_t head = 0; head < view_.size(1); ++head)
        for (int64_t i = 0; i < view_.size(3); ++i) visit(view_[row][head][token][i], at++);
  }

  Tensor memory_;
  TensorView view_;
};

struct BatchCase {
  AttendCase attend;  // all sequences have the same lengths
  DType dtype = DType::f32;
  bool lse = true;
};

rc::Gen<BatchCase> batch_cases() {
  return rc::gen::exec([] {
    BatchCase c{.attend = *attend_cases()};
    AttendCase& a = c.attend;
    a.cache_dtype = *rc::gen::element(DType::f32, DType::bf16, DType::f16);
    a.config.learned_sinks_size = std::min<int64_t>(a.config.learned_sinks_size, 1);
    const AttendCase::Sequence same{.prefix = a.sequences.front().prefix, .count = a.sequences.front().count};
    a.sequences.assign(a.sequences.size(), same);
    c.dtype = *rc::gen::element(DType::f32, DType::bf16, DType::f16);
    c.lse = *rc::gen::arbitrary<bool>();
    return c;
  });
}

std::ostream& operator<<(std::ostream& out, const BatchCase& c) {
  return out << c.attend << ", " << name_of(c.dtype) << (c.lse ? ", lse" : "");
}

// The tensors of a case.
struct Batch {
  Scattered queries, keys, values, output, lse;

  Batch(const BatchCase& c, const AttendNumbers& numbers, Random& random)
      : queries(c.dtype, shape(c, c.attend.config.num_attention_heads, count(c), c.attend.config.head_dim), random),
        keys(c.attend.cache_dtype, shape(c, c.attend.config.num_key_value_heads, length(c), c.attend.config.head_dim),
             random),
        values(c.attend.cache_dtype,
               shape(c, c.attend.config.num_key_value_heads, length(c), c.attend.config.v_head_dim), random),
        output(c.dtype, shape(c, c.attend.config.num_attention_heads, count(c), c.attend.config.v_head_dim), random),
        lse(DType::f32, shape(c, c.attend.config.num_attention_heads, count(c), 1), random) {
    for (size_t i = 0; i < numbers.sequences.size(); ++i) {
      queries.fill(static_cast<int64_t>(i), numbers.sequences[i].queries);
      keys.fill(static_cast<int64_t>(i), numbers.sequences[i].keys);
      values.fill(static_cast<int64_t>(i), numbers.sequences[i].values);
    }
  }
  static int64_t count(const BatchCase& c) { return c.attend.sequences.front().count; }
  static int64_t length(const BatchCase& c) { return c.attend.sequences.front().length(); }
  static Shape shape(const BatchCase& c, int64_t heads, int64_t tokens, int64_t width) {
    return {std::ssize(c.attend.sequences), heads, tokens, width};
  }
  // lse without its axis of one.
  [[nodiscard]] TensorView lse_view() const {
    const TensorView all = lse.view();
    const std::array<int64_t, 3> strides = {all.stride(0), all.stride(1), all.stride(2)};
    return {all.data(), DType::f32, {all.size(0), all.size(1), all.size(2)}, strides};
  }
  void run(const BatchCase& c, const AttendNumbers& numbers, Workspace& workspace) const {
    attend({.queries = queries.view(),
            .keys = keys.view(),
            .values = values.view(),
            .mask = Mask::of(c.attend.config),
            .softmax_scale = c.attend.config.softmax_scale,
            .logit_soft_cap = c.attend.config.logit_soft_cap,
            .sinks = numbers.sinks,
            .output = output.view(),
            .lse = c.lse ? lse_view() : TensorView(),
            .workspace = &workspace});
  }
};

// What attention over a cache makes of one sequence.
std::pair<Tensor, Tensor> over_a_cache(const BatchCase& c, const AttendNumbers& numbers, const Batch& batch,
                                       int64_t row, Workspace& workspace) {
  const AttentionConfig& config = c.attend.config;
  KvCache cache =
      KvCache::contiguous({.slots = 1, .capacity = Batch::length(c), .dtype = c.attend.cache_dtype}, config);
  cache.append({.slot = 0, .first_position = 0, .count = Batch::length(c)}, convert(batch.keys.dense(row), DType::f32),
               convert(batch.values.dense(row), DType::f32));
  const Span span{.slot = 0, .first_position = c.attend.sequences.front().prefix, .count = Batch::count(c)};
  const Tensor queries = batch.queries.dense(row);
  Tensor output(c.dtype, {span.count, config.num_attention_heads, config.v_head_dim});
  Tensor lse(DType::f32, {span.count, config.num_attention_heads});
  attend({.queries = queries,
          .spans = {&span, 1},
          .cache = &cache,
          .mask = Mask::of(config),
          .softmax_scale = config.softmax_scale,
          .logit_soft_cap = config.logit_soft_cap,
          .sinks = numbers.sinks,
          .output = output,
          .lse = lse,
          .workspace = &workspace});
  return {output, lse};
}

TEST(AttendBatch, HasTheBitsOfAttentionOverACache) {
  check_property(400, [] {
    const auto c = *batch_cases();
    const AttendNumbers numbers = make_numbers(c.attend);
    Random random(c.attend.seed + 1);
    const Batch batch(c, numbers, random);
    Workspace workspace(c.attend.threads);
    batch.run(c, numbers, workspace);
    for (int64_t row = 0; row < std::ssize(c.attend.sequences); ++row) {
      const auto [output, lse] = over_a_cache(c, numbers, batch, row, workspace);
      RC_ASSERT(bytes_of(batch.output.dense(row)) == bytes_of(output));
      if (c.lse) RC_ASSERT(bytes_of(batch.lse.dense(row)) == bytes_of(lse));
    }
  });
}

TEST(AttendBatch, EqualsTheOracle) {
  check_property(300, [] {
    auto c = *batch_cases();
    c.dtype = DType::f32;
    c.lse = true;
    const AttendNumbers numbers = make_numbers(c.attend);
    Random random(c.attend.seed + 2);
    const Batch batch(c, numbers, random);
    Workspace workspace(c.attend.threads);
    batch.run(c, numbers, workspace);
    for (size_t i = 0; i < c.attend.sequences.size(); ++i) {
      const OracleAttendInput input = oracle_input(c.attend, numbers, i);
      const auto out = floats_of(batch.output.dense(static_cast<int64_t>(i)));
      const auto lse = floats_of(batch.lse.dense(static_cast<int64_t>(i)));
      const std::string found = difference_from_oracle(input, out, lse);
      if (!found.empty()) RC_FAIL("row " + std::to_string(i) + ", " + found);
    }
  });
}

// One head, one key of weight: the value itself, so that first_position decides what is seen.
TEST(AttendBatch, FirstPositionSaysWhereTheQueriesStand) {
  const Tensor queries(DType::f32, {1, 1, 2, 4});
  const Tensor keys(DType::f32, {1, 1, 5, 4});
  const Tensor values = tensor_of<float>({1, 1, 5, 1}, {1, 2, 3, 4, 5});
  Tensor output(DType::f32, {1, 1, 2, 1});
  AttendBatchInput input{.queries = queries, .keys = keys, .values = values, .mask = {.sliding_window = 1}};
  input.output = output;
  attend(input);
  EXPECT_EQ(floats_of(output), (std::vector<float>{4, 5}));
  input.first_position = 1;
  attend(input);
  EXPECT_EQ(floats_of(output), (std::vector<float>{2, 3}));
}

TEST(AttendBatch, EmptyTensorsAreNoWork) {
  const Tensor none(DType::f32, {0, 2, 3, 4});
  attend({.queries = none, .keys = none, .values = none, .mask = {}, .output = none});
  const Tensor queries(DType::f32, {1, 2, 1, 4});
  const Tensor no_keys(DType::f32, {1, 2, 0, 4});
  Tensor output = convert(Numbers(1).tensor({1, 2, 1, 4}), DType::f32);
  attend({.queries = queries,
          .keys = no_keys,
          .values = no_keys,
          .mask = {.is_causal = false},
          .first_position = 0,
          .output = output});
  EXPECT_EQ(floats_of(output), std::vector<float>(8)) << "a query that sees nothing gives zeros";
}

TEST(AttendBatch, WhatDoesNotFitIsRefused) {
  const auto refused = [](auto&& change, const std::string& message) {
    const Tensor queries(DType::f32, {2, 4, 3, 8});
    const Tensor keys(DType::bf16, {2, 2, 5, 8});
    const Tensor values(DType::f16, {2, 2, 5, 6});
    const Tensor output(DType::f32, {2, 4, 3, 6});
    AttendBatchInput input{.queries = queries, .keys = keys, .values = values, .mask = {}, .output = output};
    Tensor other;
    change(input, other);
    EXPECT_ERROR(attend(input), message);
  };
  refused([](auto& in, auto& other) { in.queries = other = Tensor(DType::i8, {2, 4, 3, 8}); }, "queries has dtype i8");
  refused(
      [](auto& in, auto& other) {
        in.queries = other = Tensor(DType::f32, {4, 3, 8});
      },
      "queries has shape [4, 3, 8]");
  refused(
      [](auto& in, auto& other) {
        in.queries = other = Tensor(DType::f32, {1, 4, 3, 8});
      },
      "expected [2, 4, 3, 8]");
  refused(
      [](auto& in, auto& other) {
        in.keys = other = Tensor(DType::f32, {2, 3, 5, 8});
      },
      "values has shape [2, 2, 5, 6]");
  refused([](auto& in, auto& other) { in.queries = other = Tensor(DType::f32, {2, 3, 3, 8}); }, "output has shape");
  refused(
      [](auto& in, auto& other) {
        in.output = other = Tensor(DType::bf16, {2, 4, 3, 6});
      },
      "output has dtype bf16");
  refused([](auto& in, auto& other) { in.lse = other = Tensor(DType::f32, {2, 3, 4}); }, "lse has shape [2, 3, 4]");
  refused([](auto& in, auto&) { in.first_position = 3; }, "first_position is 3, expected 0 to 2");
  refused([](auto& in, auto&) { in.first_position = -1; }, "first_position is -1");
  refused([](auto& in, auto&) { in.softmax_scale = -1; }, "softmax_scale is -1");
}

}  // namespace
}  // namespace regard::test
