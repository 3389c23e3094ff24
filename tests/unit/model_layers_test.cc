// What ModelSpec can say of a layer and a head though no family does: specs made by hand, on the weights of a llama.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/token_outputs.h"
#include "model/verify.h"
#include "support/numbers.h"
#include "support/temp_folder.h"
#include "support/thread_ranks.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

using Weights = std::map<std::string, test::TinyLlama::Weight>;
using Change = std::function<void(ModelSpec&)>;

const std::vector<int32_t> kTokens = {5, 17, 9, 200, 17, 44, 101, 7, 260};
constexpr int64_t kLayers = 2;
const test::TinyLlama kTiny{.layers = kLayers};

// Writes weights under a llama's config.json.
Checkpoint written(const Weights& weights, const test::TempFolder& folder) {
  folder.write("config.json", kTiny.config_json().dump());
  std::vector<Tensor> tensors;
  for (const auto& [name, weight] : weights)
    tensors.push_back(test::tensor_of(Shape(std::span(weight.shape)), weight.values));
  std::vector<NamedTensor> named;
  for (const auto& [name, weight] : weights) named.push_back({name, tensors[named.size()]});
  save_safetensors(folder.path() / "model.safetensors", named);
  return Checkpoint::open(folder.path());
}

// What the model computes when the spec is another; every part of it equals the fp64 oracle.
TokenOutputs run(const Weights& weights, const Change& change) {
  const test::TempFolder folder;
  const Checkpoint checkpoint = written(weights, folder);
  ModelSpec spec = ModelSpec::from(checkpoint);
  change(spec);
  Workspace workspace(2);
  const Model model = Model::load(checkpoint, spec, workspace.threads());
  TokenOutputs outputs = outputs_of(model, kTokens, {.hidden_states = true}, workspace);
  const auto parts =
      verify_parts(model, checkpoint, kTokens, {.hidden = outputs.hidden_states, .logits = outputs.logits},
                   workspace.threads(), [](int64_t) {});
  for (const PartError& part : parts)
    EXPECT_TRUE(part.holds()) << part.name << " is off by " << part.error.rms << ", allowed " << part.allowed.rms;
  return outputs;
}

// Rows behind a layer; those before layer 0 are state 0.
std::vector<float> state(const TokenOutputs& outputs, int64_t index) {
  return test::floats_of(outputs.hidden_states.view()[index]);
}

double largest_difference(const std::vector<float>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(static_cast<double>(a[i]) - b[i]));
  return most;
}

// Numbers are up to 40 and pass some ten roundings.
constexpr double kTolerance = 40 * 10 * 0x1p-24;

TEST(ModelLayers, TheHeadScalesAndThenCapsLogits) {
  const Weights weights = kTiny.weights();
  const auto plain = test::floats_of(run(weights, [](ModelSpec&) {}).logits);
  const auto capped = test::floats_of(run(weights, [](ModelSpec& spec) {
                                        spec.head.scale = 0.5;
                                        spec.head.soft_cap = 2.0;
                                      }).logits);
  std::vector<double> expected;
  for (const float logit : plain) expected.push_back(2.0 * std::tanh(0.5 * static_cast<double>(logit) / 2.0));
  EXPECT_LT(largest_difference(capped, expected), kTolerance);
  EXPECT_GT(std::ranges::max(plain), 4.0F);
}

Change layers_that_are(bool parallel, double residual_scale, bool has_mlp_norm = true) {
  return [=](ModelSpec& spec) {
    for (LayerSpec& layer : spec.layers) {
      layer.parallel = parallel;
      layer.residual_scale = residual_scale;
      if (!has_mlp_norm) layer.mlp_norm.reset();
    }
  };
}

Weights without(Weights weights, const std::string& part) {
  for (auto& [name, weight] : weights)
    if (name.find(part) != std::string::npos) std::ranges::fill(weight.values, 0.0F);
  return weights;
}

// A layer without its MLP leaves x + a, one without its attention x + m, and both together x + a + m; where m is not
// made of x but of x + a, they do not.
TEST(ModelLayers, ParallelBranchesBothReadWhatComesIn) {
  for (const bool has_mlp_norm : {true, false}) {
    SCOPED_TRACE(has_mlp_norm);
    Weights weights = kTiny.weights();
    if (!has_mlp_norm)
      std::erase_if(weights, [](const auto& w) { return w.first.find("post_attention") != std::string::npos; });
    const auto difference = [&](bool parallel) {
      const Change change = layers_that_are(parallel, 1.0, has_mlp_norm);
      const TokenOutputs whole = run(weights, change);
      const auto x = state(whole, 0);
      const auto attention = state(run(without(weights, "mlp.down_proj"), change), 1);
      const auto mlp = state(run(without(weights, "self_attn.o_proj"), change), 1);
      std::vector<double> sum;
      for (size_t i = 0; i < x.size(); ++i)
        sum.push_back(static_cast<double>(attention[i]) + static_cast<double>(mlp[i]) - static_cast<double>(x[i]));
      return largest_difference(state(whole, 1), sum);
    };
    EXPECT_LT(difference(true), kTolerance);
    EXPECT_GT(difference(false), 0.1);
  }
}

TEST(ModelLayers, ResidualScaleMultipliesBothBranches) {
  const Weights weights = kTiny.weights();
  const TokenOutputs whole = run(weights, layers_that_are(true, 1.0));
  const auto quarter = state(run(weights, layers_that_are(true, 0.25)), 1);
  const auto x = state(whole, 0);
  const auto out = state(whole, 1);
  std::vector<double> expected;
  for (size_t i = 0; i < x.size(); ++i)
    expected.push_back(0.75 * static_cast<double>(x[i]) + 0.25 * static_cast<double>(out[i]));
  EXPECT_LT(largest_difference(quarter, expected), kTolerance);
  // In turn, each branch by itself.
  for (const char* missing : {"mlp.down_proj", "self_attn.o_proj"}) {
    SCOPED_TRACE(missing);
    const Weights one = without(weights, missing);
    const auto full = state(run(one, layers_that_are(false, 1.0)), 1);
    for (size_t i = 0; i < x.size(); ++i)
      expected[i] = 0.75 * static_cast<double>(x[i]) + 0.25 * static_cast<double>(full[i]);
    EXPECT_LT(largest_difference(state(run(one, layers_that_are(false, 0.25)), 1), expected), kTolerance);
  }
}

TEST(ModelLayers, ParallelLayersGiveTheSameOverRanksThatSplitTheTokens) {
  const test::TempFolder folder;
  const Checkpoint checkpoint = written(kTiny.weights(), folder);
  ModelSpec spec = ModelSpec::from(checkpoint);
  layers_that_are(true, 0.25)(spec);
  Workspace alone(1);
  const auto expected =
      test::floats_of(outputs_of(Model::load(checkpoint, spec, alone.threads()), kTokens, {}, alone).logits);
  for (const bool sequence_parallel : {false, true})
    test::run_ranks(2, [&](const std::shared_ptr<Communicator>& world) {
      Workspace workspace(1);
      const Model model = Model::load(checkpoint, spec, workspace.threads(),
                                      Ranks(world, {.tp_degree = 2, .sequence_parallel_enabled = sequence_parallel}));
      const auto logits = test::floats_of(outputs_of(model, kTokens, {}, workspace).logits);
      EXPECT_LT(largest_difference(logits, {expected.begin(), expected.end()}), kTolerance);
    });
}

TEST(ModelLayers, NormsOfTheResidualStreamMayBeLayerNormsWithBiases) {
  Weights weights = kTiny.weights();
  test::Numbers numbers(71);
  Weights biases;
  for (const auto& [name, weight] : weights)
    if (name.find("norm") != std::string::npos)
      biases[name.substr(0, name.rfind('.')) + ".bias"] = {.shape = weight.shape,
                                                           .values = numbers.floats(kTiny.hidden)};
  weights.insert(biases.begin(), biases.end());
  EXPECT_EQ(biases.size(), 2 * kLayers + 1);
  const Change change = [](ModelSpec& spec) {
    spec.final_norm.kind = NormKind::layer_norm;
    spec.final_norm.has_bias = true;
    for (LayerSpec& layer : spec.layers) layer.attention_norm = layer.mlp_norm = spec.final_norm;
  };
  const auto logits = test::floats_of(run(weights, change).logits);
  for (const auto& [name, bias] : biases) {
    SCOPED_TRACE(name);
    const auto other = test::floats_of(run(without(weights, name), change).logits);
    EXPECT_GT(largest_difference(logits, {other.begin(), other.end()}), 0.1);
  }
}

}  // namespace
}  // namespace regard
