// MLPs of experts against transformers in f64; see make_mlp_golden.py.
#include "layers/mlp.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>

#include "golden/golden_files.h"
#include "kernels/rows.h"
#include "layers/mlp_oracle.h"
#include "parallel/even_parts.h"
#include "regard/checkpoint.h"
#include "support/numbers.h"
#include "support/thread_ranks.h"

namespace regard {
namespace {

using Bytes = std::vector<std::byte>;

struct Family {
  const char* name;
  ExpertsMlp spec;
};

constexpr int64_t kHidden = 24;
constexpr int64_t kWidth = 144;
constexpr int64_t kTokens = 24;

std::vector<Family> families() {
  const ExpertsMlp plain{.experts = 8, .experts_per_token = 3, .expert = {.width = kWidth}, .router = {}, .shared = {}};
  ExpertsMlp gpt_oss = plain;
  gpt_oss.expert = {.width = kWidth, .activation = Activation::clamped_silu, .has_bias = true};
  gpt_oss.router = {.scores = RouterScores::top_k_then_softmax, .has_bias = true};
  ExpertsMlp qwen2 = plain;
  qwen2.router.normalized = false;
  qwen2.shared = {.width = 2 * kWidth};
  qwen2.has_shared_gate = true;
  ExpertsMlp deepseek = plain;
  deepseek.router = {.scores = RouterScores::sigmoid,
                     .scale = 2.5,
                     .has_selection_bias = true,
                     .groups = 4,
                     .groups_per_token = 2,
                     .group_scored_by = 2};
  deepseek.shared = {.width = kWidth};
  return {{"mixtral", plain}, {"gpt_oss", gpt_oss}, {"qwen2_moe", qwen2}, {"deepseek_v3", deepseek}};
}

std::vector<float> floats(const Checkpoint& file, const std::string& name, int64_t first = 0, int64_t count = -1) {
  const StoredTensor* tensor = file.find(name);
  if (tensor == nullptr) return {};
  const auto all = tensor->view().elements<float>();
  const auto part = all.subspan(static_cast<size_t>(first), count < 0 ? all.size() : static_cast<size_t>(count));
  return {part.begin(), part.end()};
}

ExpertsWeights weights_of(const Checkpoint& file, const ExpertsMlp& spec) {
  ExpertsWeights weights;
  weights.router = file.tensor("router").matrix();
  weights.router_bias = floats(file, "router_bias");
  weights.selection_bias = floats(file, "selection_bias");
  weights.shared_gate = floats(file, "shared_gate");
  const WeightView gate_up = file.tensor("gate_up").matrix();
  const WeightView down = file.tensor("down").matrix();
  for (int64_t e = 0; e < spec.experts; ++e) {
    DenseWeights& expert = weights.experts.emplace_back();
    if (!spec.expert.has_bias) {
      expert.gate = gate_up.row_range(2 * e * kWidth, kWidth);
      expert.up = gate_up.row_range((2 * e + 1) * kWidth, kWidth);
      expert.down = down.row_range(e * kHidden, kHidden);
      continue;
    }
    // gpt_oss: transposed, with rows of gate and up in turn.
    expert.gate = gate_up.row_range(e * kHidden, kHidden);
    expert.down = down.row_range(e * kWidth, kWidth);
    expert.gate.transposed = expert.down.transposed = true;
    expert.up = expert.gate;
    expert.gate_bias = expert.up_bias = floats(file, "gate_up_bias", e * 2 * kWidth, 2 * kWidth);
    expert.down_bias = floats(file, "down_bias", e * kHidden, kHidden);
    for (int64_t row = 0; row < kWidth; ++row) {
      expert.gate_rows.push_back(2 * row);
      expert.up_rows.push_back(2 * row + 1);
    }
  }
  if (spec.shared)
    weights.shared = {.gate = file.tensor("shared.gate").matrix(),
                      .up = file.tensor("shared.up").matrix(),
                      .down = file.tensor("shared.down").matrix(),
                      .gate_bias = {},
                      .up_bias = {},
                      .down_bias = {},
                      .gate_rows = {},
                      .up_rows = {}};
  return weights;
}

Tensor run(const Mlp& mlp, ConstTensorView x, int threads) {
  Workspace workspace(threads);
  const Tensor out(DType::f32, x.shape());
  mlp.run(x, {.rows = out, .rank = 0, .tokens = {}, .ranges = {}}, out, workspace);
  return out;
}

// So many rows, over and over the same.
Tensor repeated(ConstTensorView x, int64_t rows) {
  Tensor many(DType::f32, {rows, kHidden});
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(x.as<float>() + row % kTokens * kHidden, kHidden, many.elements<float>().data() + row * kHidden);
  return many;
}

class MlpGolden : public ::testing::Test {
 protected:
  template <class Check>
  void for_each_family(Check check) {
    for (const Family& family : families()) {
      SCOPED_TRACE(family.name);
      const auto file = Checkpoint::open(golden::path(std::string("mlp_") + family.name + ".safetensors"));
      check(file, family.spec);
    }
  }

  static void expect_close(const Checkpoint& file, ConstTensorView out) {
    const double error = std::stod(file.safetensors_metadata().at("f32_error"));
    const auto exact = file.tensor("out").view().elements<double>();
    for (size_t i = 0; i < exact.size(); ++i)
      ASSERT_NEAR(static_cast<double>(out.elements<float>()[i]), exact[i], 2 * error) << i;
  }
};

TEST_F(MlpGolden, ExpertsAreWithinTwiceTheErrorOfTransformers) {
  for_each_family([](const Checkpoint& file, const ExpertsMlp& spec) {
    const Mlp mlp = Mlp::load(spec, weights_of(file, spec), kHidden, Threads(2), Ranks());
    expect_close(file, run(mlp, file.tensor("x").view(), 2));
  });
}

// Within 1e-6 where transformers rounds logits and weights of routers to f32, whatever the type.
TEST_F(MlpGolden, TheOracleIsTransformersInDouble) {
  for_each_family([](const Checkpoint& file, const ExpertsMlp& spec) {
    const double tolerance = spec.router.scores == RouterScores::top_k_then_softmax ? 1e-12 : 1e-6;
    const ConstTensorView x = file.tensor("x").view();
    OracleMatrix rows(x.size(0), x.size(1));
    std::ranges::copy(x.elements<float>(), rows.numbers.begin());
    const OracleMatrix out = oracle_mlp(spec, weights_of(file, spec), rows);
    const auto exact = file.tensor("out").view().elements<double>();
    for (size_t i = 0; i < exact.size(); ++i)
      ASSERT_NEAR(out.numbers[i], exact[i], tolerance * (1 + std::fabs(exact[i])));
  });
}

// 600 rows are two pieces, and each expert has more rows than the kernels take at once.
TEST_F(MlpGolden, ARowAloneHasTheSameBitsAsAmongOthersWithAnyThreads) {
  for_each_family([](const Checkpoint& file, const ExpertsMlp& spec) {
    const Mlp mlp = Mlp::load(spec, weights_of(file, spec), kHidden, Threads(2), Ranks());
    const ConstTensorView x = file.tensor("x").view();
    const Tensor many = repeated(x, 600);
    std::vector<Bytes> alone;
    for (int64_t row = 0; row < kTokens; ++row) alone.push_back(test::bytes_of(run(mlp, x.slice(0, row, 1), 1)));
    for (const int threads : {1, 2, 3, 5})
      for (const int64_t rows : {2, 7, 24, 600}) {
        const Tensor out = run(mlp, many.view().slice(0, 0, rows), threads);
        for (int64_t row = 0; row < rows; ++row)
          ASSERT_EQ(test::bytes_of(out.view()[row]), alone[static_cast<size_t>(row % kTokens)]) << rows << ' ' << row;
      }
  });
}

// All ranks' rows; with `scattered` each has its own of them.
Tensor run_over_ranks(const Checkpoint& file, const ExpertsMlp& spec, int count, bool deterministic, bool scattered,
                      int64_t rows = kTokens) {
  const Tensor all = repeated(file.tensor("x").view(), rows);
  const ConstTensorView x = all;
  const Tensor out(DType::f32, x.shape());
  std::mutex writing;
  test::run_ranks(count, [&](const std::shared_ptr<Communicator>& world) {
    const Ranks ranks(world, {.tp_degree = count, .deterministic = deterministic});
    const Mlp mlp = Mlp::load(spec, weights_of(file, spec), kHidden, Threads(1), ranks);
    Workspace workspace(1);
    RowSplit split{.rows = {}, .rank = world->rank(), .tokens = {}, .ranges = {}};
    ElementRange own{.first = 0, .count = rows};
    if (scattered) {
      for (const ElementRange& part : even_parts(rows, count)) {
        split.ranges.push_back(part);
        std::vector<int64_t>& tokens = split.tokens.emplace_back(static_cast<size_t>(part.count));
        std::iota(tokens.begin(), tokens.end(), part.first);
      }
      own = split.own();
    }
    const Tensor result(DType::f32, {own.count, kHidden});
    split.rows = result;
    mlp.run(x.slice(0, own.first, own.count), split, result, workspace);
    const std::lock_guard lock(writing);
    if (scattered || world->rank() == count - 1)
      std::ranges::copy(result.elements<float>(), out.elements<float>().begin() + own.first * kHidden);
  });
  return out;
}

// 144 columns are two leaves: of three and four ranks some have none.
TEST_F(MlpGolden, RanksTogetherAreWithinTwiceTheErrorOfTransformers) {
  for_each_family([](const Checkpoint& file, const ExpertsMlp& spec) {
    for (const int count : {2, 3, 4})
      for (const bool scattered : {false, true}) {
        SCOPED_TRACE(::testing::Message() << count << " ranks, scattered " << scattered);
        expect_close(file, run_over_ranks(file, spec, count, false, scattered));
      }
  });
}

TEST_F(MlpGolden, DeterministicRanksHaveTheBitsOfOne) {
  for_each_family([](const Checkpoint& file, const ExpertsMlp& spec) {
    const Bytes one = test::bytes_of(run_over_ranks(file, spec, 1, true, false));
    for (const int count : {2, 3, 4})
      for (const bool scattered : {false, true})
        EXPECT_EQ(test::bytes_of(run_over_ranks(file, spec, count, true, scattered)), one)
            << count << " ranks, scattered " << scattered;
    // Two pieces, the second of which begins inside a rank's rows.
    for (const bool scattered : {false, true}) {
      const Tensor many = run_over_ranks(file, spec, 3, true, scattered, 600);
      for (int64_t row = 0; row < 600; ++row)
        ASSERT_TRUE(
            std::ranges::equal(test::bytes_of(many.view()[row]),
                               std::span(one).subspan(static_cast<size_t>(row % kTokens) * kHidden * 4, kHidden * 4)))
            << row << ", scattered " << scattered;
    }
  });
}

// The largest error over a stretch of arguments may be twice PyTorch's in f32.
TEST(ActivationGolden, IsWithinTwiceTheErrorOfPyTorch) {
  const auto file = Checkpoint::open(golden::path("mlp_activations.safetensors"));
  const auto x = file.tensor("x").view().elements<float>();
  for (const auto& [name, kind] : {std::pair{"silu", Activation::silu},
                                   {"gelu", Activation::gelu},
                                   {"gelu_tanh", Activation::gelu_tanh},
                                   {"relu", Activation::relu},
                                   {"clamped_silu", Activation::clamped_silu}}) {
    SCOPED_TRACE(name);
    const auto exact = file.tensor(name).view().elements<double>();
    const auto plain = file.tensor(std::string(name) + "_f32").view().elements<float>();
    std::vector<float> ours(x.begin(), x.end());
    std::vector<float> up(x.rbegin(), x.rend());
    kernels::activate({.kind = kind}, kind == Activation::clamped_silu ? up.data() : nullptr,
                      static_cast<int64_t>(ours.size()), ours.data());
    for (const auto& [low, high] : {std::pair{-1e39, -1.0}, {-1.0, 1.0}, {1.0, 10.0}, {10.0, 40.0}}) {
      double our_error = 0, plain_error = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const auto at = static_cast<double>(x[i]);
        if (!(at >= low && at < high) || !std::isfinite(static_cast<double>(plain[i]))) continue;
        // Beyond the last f32 the nearest one is as right as there is.
        our_error = std::max(our_error, std::fabs(static_cast<double>(ours[i]) - exact[i]));
        plain_error = std::max({plain_error, std::fabs(static_cast<double>(plain[i]) - exact[i]),
                                std::fabs(exact[i]) * 0x1p-24, 0x1p-126});
      }
      EXPECT_LE(our_error, 2 * plain_error) << low << " to " << high;
    }
  }
}

}  // namespace
}  // namespace regard
