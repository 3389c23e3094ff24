// Attention against PyTorch in f64; see make_attention_golden.py.
#include "regard/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "golden/golden_files.h"
#include "kernels/attend.h"
#include "kernels/cache_rows.h"
#include "regard/checkpoint.h"

namespace regard {
namespace {

Tensor plain(const Checkpoint& file, const std::string& name) {
  const auto view = file.tensor(name).view();
  Tensor copy(view.dtype(), view.shape());
  std::memcpy(copy.view().data(), view.data(), static_cast<size_t>(view.shape().elements()) * size_of(view.dtype()));
  return copy;
}

double number(const Checkpoint& file, const std::string& key) { return std::stod(file.safetensors_metadata().at(key)); }

// Pages of keys and values as the cache lays them out.
struct Pages {
  Buffer keys, values;
  std::vector<int32_t> table;
  kernels::KvPages view;
};

Pages make_pages(const Tensor& k, const Tensor& v, DType dtype) {
  const int64_t tokens = k.shape()[0];
  const int64_t heads = k.shape()[1];
  const int64_t head_dim = k.shape()[2];
  const int64_t v_head_dim = v.shape()[2];
  const auto bytes = static_cast<int64_t>(size_of(dtype));
  const auto type = dtype == DType::f32 ? kernels::PanelType::f32 : kernels::PanelType::bf16;
  Pages pages;
  kernels::KvPages& view = pages.view;
  view.page_tokens = 64;
  view.page_shift = 6;
  const int64_t count = kernels::round_up(tokens, view.page_tokens) / view.page_tokens;
  const auto lay_out = [&](kernels::KvPanels& side, Buffer& buffer, int64_t width) {
    side.type = type;
    side.head_bytes = view.page_tokens * width * bytes;
    side.page_bytes = heads * side.head_bytes;
    buffer = Buffer(static_cast<size_t>(count * side.page_bytes));
    side.data = buffer.data();
  };
  lay_out(view.keys, pages.keys, head_dim);
  lay_out(view.values, pages.values, kernels::round_up(v_head_dim, kernels::kTile));
  // The pages of a sequence may lie in any order.
  for (int64_t page = 0; page < count; ++page) pages.table.push_back(static_cast<int32_t>(count - 1 - page));
  view.table = pages.table.data();
  view.page_count = count;
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t page = view.place_of(token);
      const auto store = [&](auto&& store_rows, const Tensor& rows, std::byte* panel) {
        const ConstTensorView row = rows.view()[token][head];
        store_rows({.data = row.as<float>(), .count = 1, .width = row.size(0)}, token % view.page_tokens,
                   {.data = panel, .dtype = dtype, .page_tokens = view.page_tokens});
      };
      store(kernels::store_keys, k, pages.keys.data() + page * view.keys.page_bytes + head * view.keys.head_bytes);
      store(kernels::store_values, v,
            pages.values.data() + page * view.values.page_bytes + head * view.values.head_bytes);
    }
  return pages;
}

void expect_attention_equals(const std::string& path) {
  SCOPED_TRACE(path);
  const auto file = Checkpoint::open(path);
  const Tensor q = plain(file, "q");
  const Tensor k = plain(file, "k");
  const Tensor v = plain(file, "v");
  const Tensor first = plain(file, "first");
  const Tensor last = plain(file, "last");
  const Tensor sinks = file.find("sinks") == nullptr ? Tensor() : plain(file, "sinks");
  const Tensor expected = plain(file, "out");
  const Tensor expected_lse = plain(file, "lse");
  // Twice the error that PyTorch makes in f32 on the same input.
  const double tolerance = 2 * number(file, "f32_error");
  const Pages pages = make_pages(k, v, DType::f32);
  const int64_t tokens = q.shape()[0];
  const int64_t heads = q.shape()[1];
  const int64_t width = v.shape()[2];
  std::vector<Interval> visible;
  for (size_t i = 0; i < static_cast<size_t>(tokens); ++i)
    visible.push_back({first.elements<int64_t>()[i], last.elements<int64_t>()[i]});
  std::vector<float> out(static_cast<size_t>(tokens * heads * width), NAN);
  std::vector<float> lse(static_cast<size_t>(tokens * heads), NAN);
  const kernels::AttendSpan span{.kv = pages.view, .first_token = 0, .count = tokens};
  kernels::AttendScratch scratch;
  const kernels::AttendCall call{.shape = {.heads = heads,
                                           .kv_heads = k.shape()[1],
                                           .head_dim = q.shape()[2],
                                           .v_head_dim = width,
                                           .scale = static_cast<float>(number(file, "softmax_scale")),
                                           .soft_cap = static_cast<float>(number(file, "soft_cap")),
                                           .sinks = sinks.empty() ? nullptr : sinks.view().as<float>()},
                                 .spans = std::span(&span, 1),
                                 .queries = q.view().data(),
                                 .visible = visible.data(),
                                 .out = reinterpret_cast<std::byte*>(out.data()),
                                 .lse = lse.data()};
  kernels::attend(call, scratch, Threads(2));
  for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected.elements<double>()[i], tolerance) << i;
  for (size_t i = 0; i < lse.size(); ++i) {
    // The golden leaves the sink out.
    double with_sink = expected_lse.elements<double>()[i];
    if (!sinks.empty()) {
      const double sink = static_cast<double>(sinks.elements<float>()[i % static_cast<size_t>(heads)]);
      const double top = std::max(with_sink, sink);
      with_sink = top + std::log(std::exp(with_sink - top) + std::exp(sink - top));
    }
    if (std::isinf(with_sink))
      ASSERT_EQ(lse[i], with_sink) << i;
    else
      ASSERT_NEAR(lse[i], with_sink, 4e-6 * std::max(1.0, std::fabs(with_sink))) << i;
  }
}

TEST(AttentionGolden, EveryMaskWithAndWithoutSinksEqualsPyTorch) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden::path(""))) {
    const auto name = entry.path().filename().string();
    if (!name.starts_with("attention_") || entry.path().extension() != ".safetensors") continue;
    expect_attention_equals(entry.path());
    ++files;
  }
  EXPECT_GT(files, 40);
}

// A layer of transformers' LlamaAttention, batch of two.
void expect_layer_equals(const std::string& name) {
  SCOPED_TRACE(name);
  const auto file = Checkpoint::open(golden::path(name));
  const auto text = [&](const char* key) { return file.safetensors_metadata().at(key); };
  const bool bias = text("attention_bias") == "true";
  AttentionConfig config;
  config.hidden_size = file.tensor("hidden_states").shape[2];
  config.num_attention_heads = std::stoll(text("num_attention_heads"));
  config.num_key_value_heads = std::stoll(text("num_key_value_heads"));
  config.head_dim = std::stoll(text("head_dim"));
  config.qkv_bias = config.o_bias = bias;
  config.rotary_emb = RotaryConfig{.rope_theta = number(file, "rope_theta")};
  if (text("rope_type") == "llama3") {
    config.rotary_emb->scaling = RopeScaling::llama3;
    config.rotary_emb->factor = number(file, "rope_factor");
    config.rotary_emb->low_freq_factor = number(file, "rope_low_freq_factor");
    config.rotary_emb->high_freq_factor = number(file, "rope_high_freq_factor");
    config.rotary_emb->original_max_position_embeddings = std::stoll(text("rope_original_max_position_embeddings"));
  }
  AttentionWeights weights;
  const auto matrix = [&](const char* part) { return file.tensor(std::string(part) + ".weight").matrix(); };
  const auto vector = [&](const char* part) {
    if (!bias) return std::vector<float>();
    const auto values = plain(file, std::string(part) + ".bias");
    return std::vector<float>(values.elements<float>().begin(), values.elements<float>().end());
  };
  weights.qkv.q = matrix("q_proj");
  weights.qkv.k = matrix("k_proj");
  weights.qkv.v = matrix("v_proj");
  weights.output = matrix("o_proj");
  weights.qkv.q_bias = vector("q_proj");
  weights.qkv.k_bias = vector("k_proj");
  weights.qkv.v_bias = vector("v_proj");
  weights.output_bias = vector("o_proj");
  const Threads threads(2);
  const auto attention = Attention::load(weights, config, threads);
  const Tensor hidden = plain(file, "hidden_states");
  PaddedAttentionInput input;
  input.hidden_states = hidden;
  const Tensor positions = plain(file, "position_ids");
  input.position_ids = positions;
  input.present_key_value = input.angles = true;
  const auto [out, kv, cos, sin] = attention.forward(input);
  const Tensor expected = plain(file, "output");
  const double tolerance = 2 * number(file, "f32_error");
  ASSERT_EQ(out.shape(), expected.shape());
  for (size_t i = 0; i < out.elements<float>().size(); ++i)
    ASSERT_NEAR(out.elements<float>()[i], expected.elements<float>()[i], tolerance) << i;
  // The golden has [batch, seq, heads, head_dim], the call returns heads first.
  const Tensor key = plain(file, "key");
  const Tensor value = plain(file, "value");
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t t = 0; t < key.shape()[1]; ++t)
      for (int64_t h = 0; h < key.shape()[2]; ++h)
        for (int64_t d = 0; d < key.shape()[3]; ++d) {
          ASSERT_NEAR(kv.key.view()[b][h][t].as<float>()[d], key.view()[b][t][h].as<float>()[d], tolerance);
          ASSERT_NEAR(kv.value.view()[b][h][t].as<float>()[d], value.view()[b][t][h].as<float>()[d], tolerance);
        }
}

TEST(AttentionGolden, WholeLayersEqualTransformers) {
  expect_layer_equals("layer_plain.safetensors");
  expect_layer_equals("layer_llama3_bias.safetensors");
  expect_layer_equals("layer_narrow_projection.safetensors");
}

}  // namespace
}  // namespace regard
