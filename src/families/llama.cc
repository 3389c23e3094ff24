#include <array>

#include "families/family.h"
#include "families/metadata.h"

namespace regard {
namespace {

using NamePair = std::pair<std::string_view, std::string_view>;

template <size_t N>
std::string_view spelled(const std::array<NamePair, N>& names, std::string_view part) {
  for (const auto& [ours, theirs] : names)
    if (ours == part) return theirs;
  fail("checkpoint: a llama model has no tensor for \"{}\"", part);
}

// GGUF of architecture "llama".
class LlamaGguf : public Family {
 public:
  explicit LlamaGguf(const Checkpoint& checkpoint) : checkpoint_(checkpoint), values_(checkpoint, "llama.") {}

  ModelConfig model() const override {
    const StoredTensor& embedding = checkpoint_.tensor("token_embd.weight");
    require(embedding.shape.rank() == 2, "checkpoint: tensor \"token_embd.weight\" has shape {}, expected two axes",
            embedding.shape);
    const ModelConfig model{.family = "llama",
                            .num_layers = values_.required_integer("block_count"),
                            .hidden_size = values_.required_integer("embedding_length"),
                            .intermediate_size = values_.required_integer("feed_forward_length"),
                            .vocab_size = embedding.shape[0],
                            .context_length = values_.required_integer("context_length"),
                            .rms_norm_eps = values_.number("attention.layer_norm_rms_epsilon").value_or(1e-5),
                            .tied_embeddings = checkpoint_.find("output.weight") == nullptr};
    return checked(model, checkpoint_);
  }

  AttentionConfig attention(int64_t layer) const override {
    AttentionConfig config;
    config.hidden_size = values_.required_integer("embedding_length");
    config.num_attention_heads = values_.required_integer("attention.head_count");
    config.num_key_value_heads = values_.integer("attention.head_count_kv").value_or(config.num_attention_heads);
    config.head_dim = values_.integer("attention.key_length").value_or(0);
    config.v_head_dim = values_.integer("attention.value_length").value_or(0);
    config.rms_norm_eps = values_.number("attention.layer_norm_rms_epsilon").value_or(1e-5);
    config.sliding_window = values_.integer("attention.sliding_window").value_or(0);
    config.rotary_emb = rotary();
    config.qkv_bias = checkpoint_.find(layer_tensor(layer, "attention.q") + ".bias") != nullptr;
    config.o_bias = checkpoint_.find(layer_tensor(layer, "attention.output") + ".bias") != nullptr;
    config.inference.seq_len = values_.required_integer("context_length");
    config.inference.torch_dtype = DType::f32;
    return config;
  }

  std::string layer_tensor(int64_t layer, std::string_view part) const override {
    static constexpr std::array<NamePair, 9> kNames = {{{"attention.q", "attn_q"},
                                                        {"attention.k", "attn_k"},
                                                        {"attention.v", "attn_v"},
                                                        {"attention.output", "attn_output"},
                                                        {"attention.norm", "attn_norm"},
                                                        {"mlp.norm", "ffn_norm"},
                                                        {"mlp.gate", "ffn_gate"},
                                                        {"mlp.up", "ffn_up"},
                                                        {"mlp.down", "ffn_down"}}};
    return fmt::format("blk.{}.{}", layer, spelled(kNames, part));
  }

  std::string model_tensor(std::string_view part) const override {
    static constexpr std::array<NamePair, 3> kNames = {
        {{"embedding", "token_embd"}, {"norm", "output_norm"}, {"output", "output"}}};
    return std::string(spelled(kNames, part));
  }

  // The conversion to GGUF put the two halves of each head side by side: stored row 2i + j of a head is row j *
  // head_dim/2 + i.
  std::vector<int64_t> rotary_row_order(int64_t heads, int64_t head_dim) const override {
    require(head_dim % 2 == 0, "checkpoint: head_dim is {}, expected an even number", head_dim);
    std::vector<int64_t> order;
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t half = 0; half < 2; ++half)
        for (int64_t i = 0; i < head_dim / 2; ++i) order.push_back(head * head_dim + 2 * i + half);
    return order;
  }

 private:
  RotaryConfig rotary() const {
    RotaryConfig rotary;
    rotary.rotary_dim = values_.integer("rope.dimension_count").value_or(0);
    rotary.rope_theta = values_.number("rope.freq_base").value_or(10000.0);
    const std::string scaling = values_.text("rope.scaling.type").value_or("none");
    rotary.factor = values_.number("rope.scaling.factor").value_or(1.0);
    rotary.original_max_position_embeddings =
        values_.integer("rope.scaling.original_context_length").value_or(values_.required_integer("context_length"));
    if (scaling == "linear") {
      rotary.scaling = RopeScaling::linear;
    } else if (scaling == "yarn") {
      rotary.scaling = RopeScaling::yarn;
      rotary.beta_fast = values_.number("rope.scaling.yarn_beta_fast").value_or(32.0);
      rotary.beta_slow = values_.number("rope.scaling.yarn_beta_slow").value_or(1.0);
    } else {
      require(scaling == "none", "checkpoint: {}: llama.rope.scaling.type is \"{}\", expected none, linear or yarn",
              checkpoint_.path().string(), printable(scaling));
    }
    // Llama 3's frequencies come as one divisor a pair.
    if (const auto divisors = read_vector(checkpoint_, "rope_freqs.weight"); !divisors.empty()) {
      rotary.scaling = RopeScaling::longrope;
      rotary.attention_factor = 1.0;
      rotary.short_factor.assign(divisors.begin(), divisors.end());
      rotary.long_factor = rotary.short_factor;
    }
    return rotary;
  }

  const Checkpoint& checkpoint_;
  GgufValues values_;
};

// A Hugging Face folder of model_type "llama".
class LlamaHuggingFace : public Family {
 public:
  explicit LlamaHuggingFace(const Checkpoint& checkpoint)
      : checkpoint_(checkpoint), json_(nlohmann::json::parse(checkpoint.config_json())), values_(json_, "config.json") {
    const auto activation = values_.get<std::string>("hidden_act").value_or("silu");
    require(activation == "silu", "config.json: \"hidden_act\" is \"{}\", expected \"silu\"", printable(activation));
  }

  ModelConfig model() const override {
    const ModelConfig model{.family = "llama",
                            .num_layers = values_.required<int64_t>("num_hidden_layers"),
                            .hidden_size = values_.required<int64_t>("hidden_size"),
                            .intermediate_size = values_.required<int64_t>("intermediate_size"),
                            .vocab_size = values_.required<int64_t>("vocab_size"),
                            .context_length = context_length(),
                            .rms_norm_eps = values_.get<double>("rms_norm_eps").value_or(1e-6),
                            .tied_embeddings = values_.get<bool>("tie_word_embeddings").value_or(false)};
    return checked(model, checkpoint_);
  }

  AttentionConfig attention(int64_t) const override {
    AttentionConfig config;
    config.hidden_size = values_.required<int64_t>("hidden_size");
    config.num_attention_heads = values_.required<int64_t>("num_attention_heads");
    config.num_key_value_heads = values_.get<int64_t>("num_key_value_heads").value_or(config.num_attention_heads);
    config.head_dim = values_.get<int64_t>("head_dim").value_or(0);
    config.rms_norm_eps = values_.get<double>("rms_norm_eps").value_or(1e-6);
    config.qkv_bias = config.o_bias = values_.get<bool>("attention_bias").value_or(false);
    config.rotary_emb = rotary();
    config.inference.seq_len = context_length();
    const auto dtype =
        values_.get<std::string>("dtype").value_or(values_.get<std::string>("torch_dtype").value_or("float32"));
    config.inference.torch_dtype = dtype == "bfloat16" ? DType::bf16 : dtype == "float16" ? DType::f16 : DType::f32;
    return config;
  }

  std::string layer_tensor(int64_t layer, std::string_view part) const override {
    static constexpr std::array<NamePair, 9> kNames = {{{"attention.q", "self_attn.q_proj"},
                                                        {"attention.k", "self_attn.k_proj"},
                                                        {"attention.v", "self_attn.v_proj"},
                                                        {"attention.output", "self_attn.o_proj"},
                                                        {"attention.norm", "input_layernorm"},
                                                        {"mlp.norm", "post_attention_layernorm"},
                                                        {"mlp.gate", "mlp.gate_proj"},
                                                        {"mlp.up", "mlp.up_proj"},
                                                        {"mlp.down", "mlp.down_proj"}}};
    return fmt::format("model.layers.{}.{}", layer, spelled(kNames, part));
  }

  std::string model_tensor(std::string_view part) const override {
    static constexpr std::array<NamePair, 3> kNames = {
        {{"embedding", "model.embed_tokens"}, {"norm", "model.norm"}, {"output", "lm_head"}}};
    return std::string(spelled(kNames, part));
  }

  std::vector<int64_t> rotary_row_order(int64_t, int64_t) const override { return {}; }

 private:
  int64_t context_length() const { return values_.get<int64_t>("max_position_embeddings").value_or(2048); }

  // Newer files have `rope_parameters`; older ones `rope_theta` and `rope_scaling`.
  RotaryConfig rotary() const {
    const JsonValues newer = values_.object("rope_parameters");
    const JsonValues scaling = newer.empty() ? values_.object("rope_scaling") : newer;
    RotaryConfig rotary;
    rotary.rope_theta = newer.get<double>("rope_theta").value_or(values_.get<double>("rope_theta").value_or(10000.0));
    const auto type =
        scaling.get<std::string>("rope_type").value_or(scaling.get<std::string>("type").value_or("default"));
    rotary.factor = scaling.get<double>("factor").value_or(1.0);
    rotary.original_max_position_embeddings =
        scaling.get<int64_t>("original_max_position_embeddings")
            .value_or(values_.get<int64_t>("max_position_embeddings").value_or(8192));
    rotary.attention_factor = scaling.get<double>("attention_factor");
    if (type == "linear") {
      rotary.scaling = RopeScaling::linear;
    } else if (type == "llama3") {
      rotary.scaling = RopeScaling::llama3;
      rotary.low_freq_factor = scaling.required<double>("low_freq_factor");
      rotary.high_freq_factor = scaling.required<double>("high_freq_factor");
    } else if (type == "yarn") {
      rotary.scaling = RopeScaling::yarn;
      rotary.beta_fast = scaling.get<double>("beta_fast").value_or(32.0);
      rotary.beta_slow = scaling.get<double>("beta_slow").value_or(1.0);
      rotary.truncate = scaling.get<bool>("truncate").value_or(true);
    } else if (type == "longrope") {
      rotary.scaling = RopeScaling::longrope;
      rotary.short_factor = scaling.required<std::vector<double>>("short_factor");
      rotary.long_factor = scaling.required<std::vector<double>>("long_factor");
      rotary.longrope_factors = rotary.longrope_factors_for(context_length());
    } else {
      require(type == "default", "config.json: rope type is \"{}\", expected default, linear, llama3, yarn or longrope",
              printable(type));
    }
    return rotary;
  }

  const Checkpoint& checkpoint_;
  nlohmann::json json_;
  JsonValues values_;
};

}  // namespace

std::unique_ptr<Family> llama_gguf(const Checkpoint& checkpoint) { return std::make_unique<LlamaGguf>(checkpoint); }
std::unique_ptr<Family> llama_hugging_face(const Checkpoint& checkpoint) {
  return std::make_unique<LlamaHuggingFace>(checkpoint);
}

}  // namespace regard
