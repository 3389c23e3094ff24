#pragma once

#include <optional>
#include <variant>
#include <vector>

#include "families/gguf_reader.h"
#include "regard/model_spec.h"

// What families share in reading GGUF metadata. Which biases there are, and whether the head is the embedding, follows
// from the tensors, as the format has no keys for it.
namespace regard::gguf {

// Sizes, head and norm of the whole model; no layers.
[[nodiscard]] ModelSpec model_of(const GgufReader& reader, std::string_view family);

// Heads, widths, causality, biases and scale of each layer, without rotation, norms and masks.
[[nodiscard]] std::vector<AttentionConfig> attentions_of(const GgufReader& reader);

// The rotation with that base, stretched as `rope.scaling.*` says [POS-5], [POS-7]. `rope_freqs.weight` holds a divisor
// for each frequency; `rope_factors_short.weight` and `rope_factors_long.weight` are LongRoPE's.
[[nodiscard]] RotaryConfig rotary_of(const GgufReader& reader, double default_base = 10000.0);

// The MLP of all layers: experts where `expert_count` says so.
[[nodiscard]] std::variant<DenseMlp, ExpertsMlp> mlp_of(const GgufReader& reader, const DenseMlp& kind,
                                                        const RouterSpec& router);

// Layers as in Llama: one rotation, one window, RMS norms before attention and MLP.
[[nodiscard]] std::vector<LayerSpec> layers_of(const GgufReader& reader, const NormSpec& norm);

// The window in tokens; 0: none.
[[nodiscard]] int64_t sliding_window_of(const GgufReader& reader);

}  // namespace regard::gguf
