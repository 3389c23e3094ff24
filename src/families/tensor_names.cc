#include "families/tensor_names.h"

#include <fmt/format.h>

#include "tensor/fail.h"

namespace regard {
namespace {

std::string filled(std::string pattern, int64_t layer, int64_t expert) {
  for (const auto& [mark, number] : {std::pair{std::string_view("{layer}"), layer}, {"{expert}", expert}})
    if (const size_t at = pattern.find(mark); at != std::string::npos)
      pattern.replace(at, mark.size(), std::to_string(number));
  return pattern;
}

}  // namespace

TensorName named(std::string_view name) {
  return {.weight = fmt::format("{}.weight", name), .bias = fmt::format("{}.bias", name)};
}

TensorNames& TensorNames::set(const std::string& part, TensorName name) {
  names_[part] = std::move(name);
  return *this;
}

TensorName TensorNames::of(std::string_view part, int64_t layer, int64_t expert) const {
  const auto found = names_.find(part);
  require(found != names_.end(), "checkpoint: a model of this family has no tensor for \"{}\"", part);
  TensorName name = found->second;
  name.weight = filled(std::move(name.weight), layer, expert);
  name.bias = filled(std::move(name.bias), layer, expert);
  return name;
}

std::string TensorNames::layer_prefix(int64_t layer) const { return filled(layer_pattern, layer, 0); }

TensorNames hugging_face_names() {
  TensorNames names;
  names.layer_pattern = "model.layers.{layer}.";
  // Older files carry the frequencies of the rotation, which follow from the config.
  names.ignored = {".rotary_emb.inv_freq"};
  names.set("embedding", named("model.embed_tokens")).set("norm", named("model.norm")).set("head", named("lm_head"));
  const auto layer = [&](const char* part, const char* name) { names.set(part, named(names.layer_pattern + name)); };
  layer("attention.norm", "input_layernorm");
  layer("attention.q", "self_attn.q_proj");
  layer("attention.k", "self_attn.k_proj");
  layer("attention.v", "self_attn.v_proj");
  layer("attention.output", "self_attn.o_proj");
  layer("attention.q_norm", "self_attn.q_norm");
  layer("attention.k_norm", "self_attn.k_norm");
  layer("mlp.norm", "post_attention_layernorm");
  layer("mlp.gate", "mlp.gate_proj");
  layer("mlp.up", "mlp.up_proj");
  layer("mlp.down", "mlp.down_proj");
  return names;
}

TensorNames gguf_names() {
  TensorNames names;
  names.layer_pattern = "blk.{layer}.";
  // In the rotation already: see gguf.h.
  names.ignored = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"};
  names.set("embedding", named("token_embd")).set("norm", named("output_norm")).set("head", named("output"));
  const auto layer = [&](const char* part, const char* name) { names.set(part, named(names.layer_pattern + name)); };
  layer("attention.norm", "attn_norm");
  layer("attention.q", "attn_q");
  layer("attention.k", "attn_k");
  layer("attention.v", "attn_v");
  layer("attention.output", "attn_output");
  layer("attention.q_norm", "attn_q_norm");
  layer("attention.k_norm", "attn_k_norm");
  layer("attention.sinks", "attn_sinks");
  layer("attention.post_norm", "post_attention_norm");
  layer("mlp.norm", "ffn_norm");
  layer("mlp.gate", "ffn_gate");
  layer("mlp.up", "ffn_up");
  layer("mlp.down", "ffn_down");
  layer("mlp.post_norm", "post_ffw_norm");
  layer("mlp.router", "ffn_gate_inp");
  for (const char* matrix : {"gate", "up", "down"}) {
    TensorName name = named(fmt::format("{}ffn_{}_exps", names.layer_pattern, matrix));
    name.stacked = true;
    names.set(fmt::format("expert.{}", matrix), name);
  }
  return names;
}

}  // namespace regard
