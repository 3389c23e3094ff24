#include "families/hugging_face.h"

#include <cmath>

namespace regard::hugging_face {
namespace {

void ignore_what_does_not_matter(const ConfigReader& config) {
  config.ignore({"model_type", "architectures", "transformers_version", "_name_or_path", "_attn_implementation",
                 "_attn_implementation_autoset", "use_cache", "initializer_range", "attention_dropout",
                 "hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop", "bos_token_id",
                 "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id",
                 "pretraining_tp", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict",
                 "return_dict_in_generate", "router_aux_loss_coef", "router_jitter_noise", "chunk_size_feed_forward",
                 "torchscript", "use_bfloat16", "problem_type", "id2label", "label2id", "num_labels", "finetuning_task",
                 "task_specific_params", "tokenizer_class", "prefix", "unsloth_fixed", "unsloth_version",
                 // Of generation, in files written by older versions.
                 "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "max_length",
                 "min_length", "num_beams", "num_beam_groups", "num_return_sequences", "diversity_penalty",
                 "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "do_sample", "early_stopping",
                 "exponential_decay_length_penalty", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
                 "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "output_scores",
                 "tf_legacy_loss", "pruned_heads", "tie_encoder_decoder"});
}

std::string dtype_of(const ConfigReader& config) {
  const auto older = config.get<std::string>("torch_dtype", "");
  return config.get<std::string>("dtype", older);
}

// What YaRN multiplies cos and sin by, for a factor and one of its weights.
double yarn_scale(double factor, double weight) { return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0; }

void read_yarn(const ConfigReader& parameters, RotaryConfig& rotary) {
  rotary.scaling = RopeScaling::yarn;
  const auto or_default = [&](const char* key, double otherwise) {
    const double value = parameters.get<double>(key, 0.0);
    return value == 0 ? otherwise : value;
  };
  rotary.beta_fast = or_default("beta_fast", 32.0);
  rotary.beta_slow = or_default("beta_slow", 1.0);
  rotary.truncate = parameters.get<bool>("truncate", true);
  rotary.attention_factor = parameters.get<double>("attention_factor");
  const double mscale = parameters.get<double>("mscale", 0.0);
  const double mscale_all_dim = parameters.get<double>("mscale_all_dim", 0.0);
  if (!rotary.attention_factor && mscale != 0 && mscale_all_dim != 0)
    rotary.attention_factor = yarn_scale(rotary.factor, mscale) / yarn_scale(rotary.factor, mscale_all_dim);
}

// The list of factors is chosen by the context that the model declares.
void read_longrope(const ConfigReader& parameters, int64_t context_length, RotaryConfig& rotary) {
  rotary.scaling = RopeScaling::longrope;
  rotary.longrope_factors = rotary.longrope_factors_for(context_length);
  rotary.short_factor = parameters.required<std::vector<double>>("short_factor");
  rotary.long_factor = parameters.required<std::vector<double>>("long_factor");
  rotary.attention_factor = parameters.get<double>("attention_factor");
}

// The length of the training, and by how much the context exceeds it.
void read_lengths(const ConfigReader& config, const ConfigReader& parameters, const Defaults& defaults,
                  RotaryConfig& rotary) {
  const int64_t context = config.size_or("max_position_embeddings", defaults.context_length);
  const auto inside = parameters.optional_size("original_max_position_embeddings");
  const auto outside = config.optional_size("original_max_position_embeddings");
  rotary.original_max_position_embeddings = outside.value_or(inside.value_or(context));
  rotary.factor = parameters.get<double>(
      "factor", static_cast<double>(context) / static_cast<double>(rotary.original_max_position_embeddings));
}

}  // namespace

ModelSpec model_of(const ConfigReader& config, const Defaults& defaults) {
  ignore_what_does_not_matter(config);
  const std::string dtype = dtype_of(config);
  const double bytes = dtype == "float32" ? 4 : 2;
  return {.family = std::string(defaults.family),
          .vocab_size = config.size("vocab_size"),
          .hidden_size = config.size("hidden_size"),
          .context_length = config.size_or("max_position_embeddings", defaults.context_length),
          .embedding = {},
          .layers = {},
          .final_norm = {.eps = config.eps("rms_norm_eps", defaults.rms_norm_eps)},
          .head = {.tied = config.get<bool>("tie_word_embeddings", defaults.tied)},
          .bytes_per_weight = {.attention = bytes, .mlp = bytes, .embedding = bytes}};
}

AttentionConfig attention_of(const ConfigReader& config, const Defaults& defaults) {
  AttentionConfig attention;
  attention.hidden_size = config.size("hidden_size");
  attention.num_attention_heads = config.size("num_attention_heads");
  attention.num_key_value_heads = config.size_or("num_key_value_heads", attention.num_attention_heads);
  attention.head_dim = config.optional_size("head_dim").value_or(0);
  attention.rms_norm_eps = config.eps("rms_norm_eps", defaults.rms_norm_eps);
  attention.is_causal = config.get<bool>("is_causal", true);
  attention.inference.seq_len = config.size_or("max_position_embeddings", defaults.context_length);
  const std::string dtype = dtype_of(config);
  attention.inference.torch_dtype = dtype == "bfloat16" ? DType::bf16 : dtype == "float16" ? DType::f16 : DType::f32;
  return attention;
}

RotaryConfig rotary_of(const ConfigReader& config, const Defaults& defaults, const std::string& layer_type) {
  const double theta = config.get<double>("rope_theta", defaults.rope_theta);
  const ConfigReader newer = config.object("rope_parameters");
  const ConfigReader older = config.object("rope_scaling");
  if (older.empty()) {
    if (newer.is_object(layer_type)) return rotary_from(config, newer.object(layer_type), theta, defaults);
    return rotary_from(config, newer, theta, defaults);
  }
  // transformers takes the older object alone where both are there.
  for (const char* key : {"rope_type", "type", "rope_theta", "factor"}) newer.ignore({key});
  return rotary_from(config, older, theta, defaults);
}

RotaryConfig rotary_from(const ConfigReader& config, const ConfigReader& parameters, double rope_theta,
                         const Defaults& defaults) {
  RotaryConfig rotary{.rope_theta = parameters.get<double>("rope_theta", rope_theta)};
  const auto older_type = parameters.get<std::string>("type", "default");
  const auto type = parameters.get<std::string>("rope_type", older_type);
  if (type == "default") return rotary;
  read_lengths(config, parameters, defaults, rotary);
  if (type == "linear") {
    rotary.scaling = RopeScaling::linear;
    rotary.factor = parameters.required<double>("factor");
  } else if (type == "llama3") {
    rotary.scaling = RopeScaling::llama3;
    rotary.factor = parameters.required<double>("factor");
    rotary.low_freq_factor = parameters.required<double>("low_freq_factor");
    rotary.high_freq_factor = parameters.required<double>("high_freq_factor");
  } else if (type == "yarn") {
    read_yarn(parameters, rotary);
  } else if (type == "longrope") {
    read_longrope(parameters, config.size_or("max_position_embeddings", defaults.context_length), rotary);
  } else {
    fail("{}: rope type is \"{}\", expected default, linear, llama3, yarn or longrope", parameters.name(),
         printable(type));
  }
  return rotary;
}

Activation activation_of(const ConfigReader& config, const std::string& key, const char* otherwise) {
  const auto name = config.get<std::string>(key, otherwise);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  fail("{}: \"{}\" is \"{}\", expected silu, gelu, gelu_pytorch_tanh, gelu_new or relu", config.name(), key,
       printable(name));
}

std::vector<std::string> layer_types_of(const ConfigReader& config, size_t layers) {
  const auto types = config.get<std::vector<std::string>>("layer_types", {});
  require(types.empty() || types.size() == layers, "{}: \"layer_types\" has {} entries, expected {}, one a layer",
          config.name(), types.size(), layers);
  return types;
}

int64_t window_of(const ConfigReader& config, const std::string& layer_type, int64_t sliding_window, size_t layer) {
  if (layer_type == "full_attention") return 0;
  require(layer_type == "sliding_attention",
          "{}: layer {} is of type \"{}\", expected full_attention or sliding_attention", config.name(), layer,
          printable(layer_type));
  require(sliding_window >= 1, "{}: layer {} is of type \"sliding_attention\", but there is no \"sliding_window\"",
          config.name(), layer);
  return sliding_window;
}

std::vector<LayerSpec> layers_of(const ConfigReader& config, const AttentionConfig& attention,
                                 const std::variant<DenseMlp, ExpertsMlp>& mlp, const NormSpec& norm) {
  LayerSpec layer{.attention = attention, .mlp = mlp};
  layer.attention_norm = layer.mlp_norm = norm;
  return std::vector<LayerSpec>(static_cast<size_t>(config.size("num_hidden_layers", kMostLayers)), layer);
}

}  // namespace regard::hugging_face
