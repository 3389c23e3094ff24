// One attention layer of a checkpoint, without the model around it.
#include "model/layer_weights.h"
#include "tensor/fail.h"

namespace regard {
namespace {

void check_layer(const ModelSpec& spec, int64_t layer) {
  const auto layers = std::ssize(spec.layers);
  require(layer >= 0 && layer < layers, "checkpoint: layer is {}, expected 0 to {}", layer, layers - 1);
}

// The layer's other tensors are looked up as well, so that those which nothing uses stand out.
void require_layer_is_whole(TensorReader& reader, const ModelSpec& spec, int64_t layer) {
  const LayerSpec& of = spec.layers[static_cast<size_t>(layer)];
  (void)mlp_weights(reader, of, layer);
  for (const auto& [norm, part] : {std::pair{&of.attention_norm, "attention.norm"},
                                   {&of.post_attention_norm, "attention.post_norm"},
                                   {&of.mlp_norm, "mlp.norm"},
                                   {&of.post_mlp_norm, "mlp.post_norm"}})
    (void)norm_weights(reader, *norm, part, layer, spec.hidden_size);
  reader.require_all_read(reader.names().layer_prefix(layer));
}

}  // namespace

AttentionConfig AttentionConfig::from(const Checkpoint& checkpoint, int64_t layer) {
  const ModelSpec spec = ModelSpec::from(checkpoint);
  check_layer(spec, layer);
  return spec.layers[static_cast<size_t>(layer)].attention;
}

Attention Attention::load(const Checkpoint& checkpoint, int64_t layer, const AttentionConfig& config,
                          const Threads& threads, const Ranks& ranks) {
  check_shard(checkpoint, ranks);
  const ModelSpec spec = ModelSpec::from(checkpoint);
  check_layer(spec, layer);
  TensorReader reader(checkpoint, tensor_names_of(checkpoint));
  const AttentionWeights weights = attention_weights(reader, config.validated(), layer);
  require_layer_is_whole(reader, spec, layer);
  try {
    return load(weights, config, threads, ranks);
  } catch (const Error& error) {
    fail("checkpoint: layer {}: {}", layer, error.what());
  }
}

}  // namespace regard
