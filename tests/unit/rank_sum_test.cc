// The fixed tree of sums over ranks against a sum in double that knows no tree.
#include "parallel/rank_sum.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "linear/row_parallel.h"
#include "parallel/even_parts.h"
#include "support/random.h"
#include "support/thread_ranks.h"

namespace regard::test {
namespace {

constexpr double kRounding = 0x1p-24;  // relative, of an f32 sum to nearest

// A sum of columns over a tree: x [tokens, columns] times a weight [rows, columns] of powers of two, so that every
// product is exact and each rounding is one of an addition.
struct Case {
  int64_t leaves;
  int64_t group;  // leaves that are cut last
  int64_t width;  // columns of a leaf
  std::vector<float> x;
  std::vector<float> weight;

  [[nodiscard]] int64_t columns() const { return leaves * width; }
};

constexpr int64_t kTokens = 7;
constexpr int64_t kRows = 5;

using Numbers = std::function<float(int64_t token, int64_t column)>;

Case make_case(int64_t leaves, int64_t group, int64_t width, const Numbers& x, Random& random) {
  Case c{.leaves = leaves, .group = group, .width = width, .x = {}, .weight = {}};
  for (int64_t token = 0; token < kTokens; ++token)
    for (int64_t column = 0; column < c.columns(); ++column) c.x.push_back(x(token, column));
  for (int64_t i = 0; i < kRows * c.columns(); ++i) {
    const auto power = static_cast<int>(random.integer(-1, 1));
    c.weight.push_back(std::ldexp(random.integer(0, 1) == 0 ? 1.0F : -1.0F, power));
  }
  return c;
}

// The columns of some leaves of a matrix [rows, columns].
std::vector<float> columns_of(const std::vector<float>& matrix, const Case& c, ElementRange leaves) {
  std::vector<float> part;
  for (auto row = matrix.begin(); row != matrix.end(); row += c.columns())
    part.insert(part.end(), row + leaves.first * c.width, row + leaves.end() * c.width);
  return part;
}

// What every rank gets, [tokens, rows], where rank r has the leaves leaves[r]: in calls of 3, 3 and 1 tokens, whose
// sums travel while the next ones are computed.
std::vector<float> sum_over_ranks(const Case& c, const std::vector<ElementRange>& leaves, DType wire) {
  std::vector<float> sum;
  std::mutex mutex;
  run_ranks(static_cast<int>(leaves.size()), [&](const std::shared_ptr<Communicator>& world) {
    const RowParallel parallel(world, SumTree(c.leaves, c.group), leaves, c.width, wire);
    const ElementRange own = leaves[static_cast<size_t>(world->rank())];
    const int64_t width = own.count * c.width;
    const std::vector<float> weight = columns_of(c.weight, c, own);
    const std::vector<float> x = columns_of(c.x, c, own);
    const auto bytes = std::as_bytes(std::span(weight));
    const Linear linear = Linear::load(WeightView::make(WeightType::f32, kRows, width, bytes), {}, Threads(1));
    Workspace workspace(1);
    std::vector<float> out(static_cast<size_t>(kTokens * kRows), NAN);
    SummedRows rows(parallel, linear, workspace);
    for (int64_t first = 0; first < kTokens; first += 3) {
      const int64_t count = std::min<int64_t>(3, kTokens - first);
      rows.add(ConstTensorView(x.data() + first * width, {count, width}),
               TensorView(out.data() + first * kRows, {count, kRows}));
    }
    rows.finish();
    const std::scoped_lock lock(mutex);
    if (sum.empty()) sum = out;
    EXPECT_EQ(std::memcmp(sum.data(), out.data(), out.size() * sizeof(float)), 0) << "rank " << world->rank();
  });
  return sum;
}

struct Exact {
  double sum = 0;
  double magnitude = 0;  // the sum of what is added up, without signs
};

// The products of a token with a row of the weight in double, one after the other: 2^29 times as exact as f32.
Exact exact(const Case& c, int64_t token, int64_t row) {
  Exact result;
  for (int64_t column = 0; column < c.columns(); ++column) {
    const double product = static_cast<double>(c.x[static_cast<size_t>(token * c.columns() + column)]) *
                           static_cast<double>(c.weight[static_cast<size_t>(row * c.columns() + column)]);
    result.sum += product;
    result.magnitude += std::fabs(product);
  }
  return result;
}

// The most additions that a term passes. In a leaf's product, at most one for each further column. From a leaf to the
// root of a tree that is cut in the middle, first between groups, log2 of the groups and log2 of a group's leaves,
// rounded up: not their number, as in a chain.
int64_t additions(const Case& c) {
  const auto levels = [](int64_t count) {
    return static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(count - 1)));
  };
  return c.width - 1 + levels((c.leaves + c.group - 1) / c.group) + levels(std::min(c.group, c.leaves));
}

// Each of n additions changes a term by a factor within 1 +- u at most, so the sum is wrong by at most
// n u / (1 - n u) times the terms' magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 4.2). bf16 on
// the way rounds each partial sum once more, by 2^-8 at most.
double allowed(const Case& c, DType wire, double magnitude) {
  const double n = static_cast<double>(additions(c)) * kRounding;
  const double of_additions = n / (1 - n);
  const double of_wire = wire == DType::bf16 ? 0x1p-8 : 0;
  return ((1 + of_additions) * (1 + of_wire) - 1) * magnitude;
}

void expect_close(const Case& c, const std::vector<float>& sum, DType wire) {
  for (int64_t token = 0; token < kTokens; ++token)
    for (int64_t row = 0; row < kRows; ++row) {
      const Exact expected = exact(c, token, row);
      const auto actual = static_cast<double>(sum[static_cast<size_t>(token * kRows + row)]);
      ASSERT_LE(std::fabs(actual - expected.sum), allowed(c, wire, expected.magnitude))
          << "token " << token << ", row " << row << ": " << actual << " instead of " << expected.sum;
    }
}

// Every way of dealing out the leaves gives the exact sum within the tree's own roundings, and the same bits.
void check(const Case& c) {
  const std::vector<float> alone = sum_over_ranks(c, even_parts(c.leaves, 1), DType::f32);
  for (const int64_t ranks : {1, 2, 3, 5, 8, 13}) {
    SCOPED_TRACE(std::to_string(c.leaves) + " leaves of " + std::to_string(c.width) + " columns in groups of " +
                 std::to_string(c.group) + " over " + std::to_string(ranks) + " ranks");
    std::vector<ElementRange> leaves = even_parts(c.leaves, ranks);
    const std::vector<float> sum = sum_over_ranks(c, leaves, DType::f32);
    expect_close(c, sum, DType::f32);
    EXPECT_EQ(std::memcmp(sum.data(), alone.data(), sum.size() * sizeof(float)), 0);
    std::rotate(leaves.begin(), leaves.begin() + ranks / 2, leaves.end());
    EXPECT_EQ(sum_over_ranks(c, leaves, DType::f32), sum) << "in another order of ranks";
  }
}

struct Size {
  int64_t leaves, group, width;
};
constexpr Size kSizes[] = {{1, 1, 1},  {2, 1, 1},  {9, 3, 8},  {12, 4, 64}, {15, 5, 1},
                           {16, 8, 3}, {31, 1, 2}, {64, 8, 1}, {64, 1, 16}, {200, 1, 1}};

TEST(RankSum, OfRandomTermsIsTheSumInDouble) {
  Random random(1);
  for (const Size& size : kSizes)
    check(make_case(
        size.leaves, size.group, size.width, [&](int64_t, int64_t) { return random.normal(); }, random));
}

TEST(RankSum, OfTermsOfAllMagnitudesIsTheSumInDouble) {
  Random random(2);
  const auto any = [&](int64_t, int64_t) {
    return std::ldexp(random.normal(), static_cast<int>(random.integer(-40, 40)));
  };
  for (const Size& size : kSizes) check(make_case(size.leaves, size.group, size.width, any, random));
}

// The large terms of one half are those of the other with the other sign: what is left are the small ones.
TEST(RankSum, OfTermsThatCancelIsTheSumInDouble) {
  Random random(3);
  for (const Size& size : kSizes) {
    const int64_t half = size.leaves * size.width / 2;
    std::map<std::pair<int64_t, int64_t>, float> large;
    const auto cancelling = [&](int64_t token, int64_t column) {
      const auto [place, first] = large.try_emplace({token, column % std::max<int64_t>(half, 1)}, 0.0F);
      if (first) place->second = 4096 * random.normal();
      return column < half ? place->second : -place->second + random.normal(0x1p-8);
    };
    Case c = make_case(size.leaves, size.group, size.width, cancelling, random);
    c.weight.assign(c.weight.size(), 1.0F);
    check(c);
  }
}

// Integers whose partial sums all fit into 24 bits have no rounding at all, however large the terms that cancel.
TEST(RankSum, OfSmallIntegersIsExact) {
  Random random(4);
  for (const Size& size : kSizes) {
    const auto integer = [&](int64_t, int64_t) { return static_cast<float>(2 * random.integer(-4000, 4000)); };
    const Case c = make_case(size.leaves, size.group, size.width, integer, random);
    for (const int64_t ranks : {1, 2, 3, 5, 8, 13}) {
      const std::vector<float> sum = sum_over_ranks(c, even_parts(c.leaves, ranks), DType::f32);
      for (int64_t token = 0; token < kTokens; ++token)
        for (int64_t row = 0; row < kRows; ++row)
          ASSERT_EQ(static_cast<double>(sum[static_cast<size_t>(token * kRows + row)]), exact(c, token, row).sum)
              << size.leaves << " leaves over " << ranks << " ranks";
    }
  }
}

// A chain over 256 leaves would lose every term but the first. In the tree only those that meet it early are lost.
TEST(RankSum, KeepsManySmallTermsBesideALargeOne) {
  Random random(5);
  Case c = make_case(
      256, 1, 1, [](int64_t, int64_t column) { return column == 0 ? 1.0F : 0x1p-24F; }, random);
  c.weight.assign(c.weight.size(), 1.0F);
  check(c);
}

// Without `deterministic` a rank's columns are one leaf, and partial sums may travel as bf16.
TEST(RankSum, OfPartialSumsInBf16IsTheSumInDouble) {
  Random random(6);
  for (const int64_t ranks : {1, 2, 3, 5, 8, 13}) {
    SCOPED_TRACE(ranks);
    const Case c = make_case(
        ranks, 1, 24, [&](int64_t, int64_t) { return random.normal(); }, random);
    expect_close(c, sum_over_ranks(c, even_parts(ranks, ranks), DType::bf16), DType::bf16);
    expect_close(c, sum_over_ranks(c, even_parts(ranks, ranks), DType::f32), DType::f32);
  }
}

}  // namespace
}  // namespace regard::test
