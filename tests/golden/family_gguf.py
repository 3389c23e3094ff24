"""Writes a Hugging Face folder of one of the families as GGUF, with the keys, names and layouts that llama.cpp's
converter gives them: matrices keep their type, everything else is f32."""

import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
}


def write_gguf(folder: Path, path: Path, rope, rope_local=None) -> None:
    """`rope` are the parameters of the rotation as transformers understands them; `rope_local` those of layers with
    windows where they have their own."""
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(folder.name)
    is_bf16 = "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if is_bf16 else gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_keys(writer, config, arch, rope, rope_local)
    for name, tensor in converted(load_file(folder / "model.safetensors"), config, rope):
        add_tensor(writer, arch, config["num_hidden_layers"], name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_keys(writer, config, arch, rope, rope_local):
    head_dim = config.get("head_dim")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if head_dim is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    add_rope(writer, rope, config)
    if rope_local is not None:
        writer.add_rope_freq_base_swa(rope_local["rope_theta"])
    if "num_local_experts" in config:
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if arch == gguf.MODEL_ARCH.LLAMA:
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(head_dim or config["hidden_size"] // config["num_attention_heads"])
    if arch in (gguf.MODEL_ARCH.GEMMA3, gguf.MODEL_ARCH.GPT_OSS):
        writer.add_sliding_window(config["sliding_window"])
    if arch == gguf.MODEL_ARCH.GPT_OSS:
        writer.add_expert_feed_forward_length(config["intermediate_size"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def add_rope(writer, rope, config):
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "beta_fast" in rope:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        if "beta_slow" in rope:
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    elif kind == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        trained = rope["original_max_position_embeddings"]
        growth = config["max_position_embeddings"] / trained
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(growth) / math.log(trained)))
        writer.add_rope_scaling_orig_ctx_len(trained)


def converted(tensors, config, rope):
    """Tensors with names of Hugging Face's style that gguf's map knows, in GGUF's layouts."""
    family = config["model_type"]
    for name, tensor in tensors.items():
        if family in ("llama", "mixtral"):
            if ".q_proj." in name:
                tensor = halves_to_pairs(tensor, config["num_attention_heads"])
            if ".k_proj." in name:
                tensor = halves_to_pairs(tensor, config["num_key_value_heads"])
        if ".block_sparse_moe.experts." in name:
            continue  # stacked below
        if name.endswith(".sinks"):
            name += ".weight"
        if family == "gemma3_text" and name.endswith("norm.weight"):
            tensor = tensor.float() + 1
        if ".mlp.experts." in name:  # gpt_oss: [expert, in, out], gate and up alternate
            yield from converted_gpt_oss_experts(name, tensor)
        else:
            yield name, tensor
    if family == "mixtral":
        yield from stacked_experts(tensors, config)
    if rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", llama3_divisors(rope, config)
    if rope["rope_type"] == "longrope":
        yield "rope_factors_long.weight", torch.tensor(rope["long_factor"])
        yield "rope_factors_short.weight", torch.tensor(rope["short_factor"])


def halves_to_pairs(rows, heads):
    """Rotary pairs (i, i + D/2) of each head become neighbours (2i, 2i + 1)."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def converted_gpt_oss_experts(name, tensor):
    is_bias = name.endswith("_bias")
    if not is_bias:
        tensor = tensor.transpose(1, 2)  # [expert, out, in]
    name = name.removesuffix("_bias")
    suffix = ".bias" if is_bias else ".weight"
    if name.endswith("gate_up_proj"):
        yield name.replace("gate_up_proj", "gate_proj") + suffix, tensor[:, 0::2]
        yield name.replace("gate_up_proj", "up_proj") + suffix, tensor[:, 1::2]
    else:
        yield name + suffix, tensor


def stacked_experts(tensors, config):
    for layer in range(config["num_hidden_layers"]):
        for part in ("w1", "w2", "w3"):
            prefix = f"model.layers.{layer}.block_sparse_moe.experts."
            experts = [tensors[f"{prefix}{e}.{part}.weight"] for e in range(config["num_local_experts"])]
            yield f"layers.{layer}.feed_forward.experts.{part}.weight", torch.stack(experts)


def llama3_divisors(rope, config):
    """By how much each pair's frequency is divided."""
    dim = config["head_dim"]
    divisors = []
    for pair in range(dim // 2):
        turns = rope["original_max_position_embeddings"] * rope["rope_theta"] ** (-2 * pair / dim) / (2 * math.pi)
        kept = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        kept = min(1.0, max(0.0, kept))
        divisors.append(1 / (kept + (1 - kept) / rope["factor"]))
    return torch.tensor(divisors)


def add_tensor(writer, arch, layers, name, tensor):
    if not name.startswith("rope_"):
        found = gguf.get_tensor_name_map(arch, layers).get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        name = found
    is_matrix = tensor.ndim > 1 and name.endswith(".weight") and "ffn_gate_inp" not in name
    values = tensor.float().contiguous().numpy()
    if is_matrix and tensor.dtype == torch.bfloat16:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values.astype(np.float32))
