#!/usr/bin/env python3
"""Makes families/<name>/: a tiny random checkpoint of each family, and what it computes.

    ./make_family_golden.py --out families [--only llama]

    config.json, model.safetensors   as transformers' save_pretrained writes them; in some the rotation is described
                                     with the older keys that most published files have (Variant.older_keys)
    <name>.gguf                      the same weights as GGUF, where the format can say what the config says
    golden.safetensors:
        tokens        i32 [tokens]
        hidden        f64 [layers + 1, tokens, hidden_size]
                                     0: the embedding rows, scaled where the family scales them; i: what layer i leaves
                                     in the residual stream. The final norm is in none of them
        logits        f64 [tokens, vocab_size]
        other_tokens  i32 [..], other_logits f64
                                     a second sequence, shorter and of other tokens, to be run beside the first
        short_tokens, short_logits   llama_longrope only: a text that fits the trained length
        prefill_hidden_error f64 [layers + 1, 2], prefill_logits_error f64 [2]
        decode_hidden_error, decode_logits_error
                                     largest and root mean square error of transformers in float32 on the same tokens,
                                     in one call and token by token with its cache (llama_longrope: in one call,
                                     as transformers changes the factors of a text that grows past the trained length)
        metadata      family, attention (the implementation that made the errors: what from_pretrained chooses by
                      itself), seed, torch, transformers

hidden and logits are transformers' own, run in float64 throughout: norms, softmax and rotation, which transformers
computes in float32 for any type, too (see float32_is_float64). plain_families.py has to come to the same within
AGREEMENT. Of bfloat16 checkpoints the weights are the rounded ones; all arithmetic, here and for the errors, is float64
or float32.

Weights are scaled so that attention is far from uniform, every expert has tokens, gains, biases and sinks are large.
Seeds are tried in turn until no router decides between experts by less than ROUTER_MARGIN, so that float32 chooses the
same.
"""

import argparse
import contextlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    Qwen3Config,
)

from family_gguf import write_gguf
from plain_families import PlainModel

AGREEMENT = 1e-11  # of transformers and plain_families.py, relative to the largest value
ROUTER_MARGIN = 2e-3
TOKENS, OTHER_TOKENS, SHORT_TOKENS = 44, 21, 12
MAX_FOLDER_BYTES = 750_000
MAX_TOTAL_BYTES = 6_100_000

COMMON = {
    "vocab_size": 80,
    "hidden_size": 48,
    "intermediate_size": 56,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


@dataclass
class Variant:
    name: str
    config: type
    settings: dict
    dtype: torch.dtype = torch.bfloat16
    gguf: bool = True
    older_keys: bool = False
    decodes_alike: bool = True  # transformers gives the same for a text at once and token by token


def rope(kind="default", theta=10000.0, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


def llama(name, heads=6, kv_heads=2, layers=3, rope_parameters=None, **more):
    own = {k: more.pop(k) for k in ("dtype", "gguf", "older_keys", "decodes_alike") if k in more}
    settings = COMMON | IDS | {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rope_parameters": rope_parameters or rope(),
        **more,
    }
    return Variant(name, LlamaConfig, settings, **own)


def windows(pattern):
    return ["sliding_attention" if kind == "w" else "full_attention" for kind in pattern]


LONGROPE = rope(
    "longrope",
    original_max_position_embeddings=16,
    short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
    long_factor=[1.0, 1.3, 1.9, 2.6, 3.4, 4.0],
)

VARIANTS = [
    # Five heads over one KV head, of a width that is no power of two.
    llama("llama", heads=5, kv_heads=1, hidden_size=50, rms_norm_eps=1e-5),
    # Heads wider than hidden_size / heads.
    llama(
        "llama_llama3",
        layers=2,
        head_dim=16,
        tie_word_embeddings=True,
        dtype=torch.float32,
        older_keys=True,
        rope_parameters=rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
        ),
    ),
    llama("llama_biases", layers=2, attention_bias=True, mlp_bias=True, heads=3, kv_heads=3, head_dim=12),
    llama("llama_linear", layers=2, rope_parameters=rope("linear", factor=4.0), kv_heads=3),
    llama(
        "llama_yarn",
        layers=2,
        head_dim=16,
        older_keys=True,
        rope_parameters=rope(
            "yarn", theta=100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=0.8, beta_slow=0.1
        ),
    ),
    llama(
        "llama_yarn_mscale",
        layers=2,
        gguf=False,
        head_dim=16,
        rope_parameters=rope(
            "yarn",
            theta=100.0,
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=0.8,
            beta_slow=0.1,
            truncate=False,
            mscale=3.0,
            mscale_all_dim=0.5,
        ),
    ),
    llama("llama_longrope", layers=2, head_dim=12, rope_parameters=LONGROPE, older_keys=True, decodes_alike=False),
    Variant(
        "qwen3",
        Qwen3Config,
        COMMON | IDS | {
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": rope(theta=1e6),
            "use_sliding_window": False,
            "sliding_window": 8,
            "max_window_layers": 2,
        },
        older_keys=True,
    ),
    Variant(
        "qwen3_windows",
        Qwen3Config,
        COMMON | IDS | {
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "head_dim": 12,
            "attention_bias": True,
            "rope_parameters": rope(
                "yarn", theta=100.0, factor=4.0, original_max_position_embeddings=16, attention_factor=0.8
            ),
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
        gguf=False,
    ),
    # As published: five layers with windows, then one without. The root of hidden_size is the same in bfloat16, so that
    # it does not matter whether it is rounded to the type of the weights.
    Variant(
        "gemma3",
        Gemma3TextConfig,
        COMMON | {
            "hidden_size": 64,
            "intermediate_size": 32,
            "num_hidden_layers": 7,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "query_pre_attn_scalar": 12,
            "sliding_window": 8,
            "rope_parameters": {
                "sliding_attention": rope(theta=8000.0),
                "full_attention": rope("linear", theta=1e6, factor=8.0),
            },
        },
        older_keys=True,
    ),
    Variant(
        "gemma3_mixed",
        Gemma3TextConfig,
        COMMON | {
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 12,
            "query_pre_attn_scalar": 20,
            "sliding_window": 7,
            "layer_types": windows("fwwf"),
            "final_logit_softcapping": 6.0,
            "attention_bias": True,
            "rope_parameters": {"sliding_attention": rope(theta=100.0), "full_attention": rope(theta=5e4)},
        },
        dtype=torch.float32,
        gguf=False,
    ),
    Variant(
        "gpt_oss",
        GptOssConfig,
        COMMON | IDS | {
            "intermediate_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": rope(
                "yarn",
                theta=150000.0,
                factor=8.0,
                original_max_position_embeddings=16,
                beta_fast=2.0,
                beta_slow=0.25,
                truncate=False,
            ),
        },
        older_keys=True,
    ),
    Variant(
        "gpt_oss_f32",
        GptOssConfig,
        COMMON | IDS | {
            "intermediate_size": 12,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "sliding_window": 5,
            "layer_types": windows("fww"),
            "attention_bias": False,
            "swiglu_limit": 2.0,
            "swiglu_alpha": 1.4,
            "rope_parameters": rope(theta=500.0),
        },
        dtype=torch.float32,
        gguf=False,
    ),
    Variant(
        "olmo2",
        Olmo2Config,
        COMMON | IDS | {
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "rope_parameters": rope(theta=500000.0),
        },
        older_keys=True,
    ),
    Variant(
        "olmo2_biases",
        Olmo2Config,
        COMMON | IDS | {
            "hidden_size": 50,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": rope(theta=200.0),
        },
        dtype=torch.float32,
        gguf=False,
    ),
    Variant(
        "mixtral",
        MixtralConfig,
        COMMON | IDS | {
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "rope_parameters": rope(theta=1e6),
        },
        older_keys=True,
    ),
    Variant(
        "mixtral_windows",
        MixtralConfig,
        COMMON | IDS | {
            "intermediate_size": 20,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 14,
            "num_local_experts": 4,
            "num_experts_per_tok": 3,
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "rope_parameters": rope(theta=300.0),
        },
        gguf=False,
    ),
]


# ---- weights ----

# (mean, deviation) by the end of the name; deviations of matrices are divided by the root of their inputs.
MATRICES = {
    "embed_tokens": 1.0,
    "lm_head": 2.0,
    "q_proj": 1.5,
    "k_proj": 1.5,
    "v_proj": 1.0,
    "o_proj": 1.0,
    "gate_proj": 1.5,
    "up_proj": 1.5,
    "down_proj": 1.0,
    "router": 2.5,
    "gate": 2.5,
}


def random_values(name, shape, family, random):
    noise = torch.randn(shape, generator=random)
    owner = name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
    if name.endswith("norm.weight"):
        mean = 0.4 if owner in ("q_norm", "k_norm") else 0.0
        return noise * 0.3 + mean + (0.0 if family == "gemma3_text" else 1.0)
    if name.endswith("sinks"):
        return noise * 1.5 + 0.5
    if name.endswith("bias"):
        return noise * 0.5
    if name.endswith("embed_tokens.weight"):
        return noise * (0.3 if family == "gemma3_text" else 1.0)
    if ".experts." in name:
        inputs = shape[1] if family == "gpt_oss" else shape[2]
        scale = 0.5 if "down_proj" in name else 3.0 if family == "gpt_oss" else 1.5
        return noise * scale / inputs**0.5
    return noise * MATRICES[owner] / shape[1] ** 0.5


def save_checkpoint(variant, seed, folder):
    config = variant.config(**variant.settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.copy_(random_values(name, weights.shape, config.model_type, random))
    model.to(variant.dtype)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if variant.older_keys:
        use_older_keys(folder / "config.json")
        again = AutoConfig.from_pretrained(folder)
        again.standardize_rope_params()  # as the model does at first: only then keys outside rope_scaling count
        again.rope_parameters.pop("type", None)
        assert again.rope_parameters == config.rope_parameters, (again.rope_parameters, config.rope_parameters)
        assert getattr(again, "layer_types", None) == getattr(config, "layer_types", None)
    return config


def use_older_keys(path):
    """Describes the rotation as files published before transformers 5 do."""
    values = json.loads(path.read_text())
    parameters = values.pop("rope_parameters")
    if values["model_type"] == "gemma3_text":
        values["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        values["sliding_window_pattern"] = 6
        del values["layer_types"]
        parameters = parameters["full_attention"]
    values["rope_theta"] = parameters.pop("rope_theta")
    if parameters["rope_type"] == "longrope":  # as Phi-3's files
        values["original_max_position_embeddings"] = parameters.pop("original_max_position_embeddings")
        parameters["type"] = parameters.pop("rope_type")
    values["rope_scaling"] = None if parameters.get("rope_type") == "default" else parameters
    values["torch_dtype"] = values.pop("dtype")
    path.write_text(json.dumps(dict(sorted(values.items())), indent=2) + "\n")


# ---- running ----


@contextlib.contextmanager
def float32_is_float64():
    """Where transformers asks for float32 by name, it gets float64."""
    saved = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = saved


def run(model, tokens, at_once=True):
    """hidden [layers + 1, tokens, hidden_size], logits [tokens, vocab_size]."""
    layers = model.model.layers
    rows = [[] for _ in range(len(layers) + 1)]
    hooks = [layers[0].register_forward_pre_hook(lambda _, args: rows[0].append(args[0][0].clone()))]
    for into, layer in zip(rows[1:], layers):
        hooks.append(layer.register_forward_hook(lambda _, args, out, into=into: into.append(out[0].clone())))
    ids = torch.tensor(tokens)[None]
    logits = []
    cache = None
    with torch.no_grad():
        for part in [ids] if at_once else ids.split(1, dim=1):
            out = model(input_ids=part, cache=cache, use_cache=not at_once)
            cache = out.cache
            logits.append(out.logits[0])
    for hook in hooks:
        hook.remove()
    return torch.stack([torch.cat(parts) for parts in rows]).numpy(), torch.cat(logits).numpy()


def float64_model(folder):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    with float32_is_float64():
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    if model.config.model_type == "gemma3_text":
        model.model.embed_tokens.embed_scale = torch.tensor(model.config.hidden_size**0.5, dtype=torch.float64)
    return model


def errors(got, expected):
    """Largest and root mean square, over all axes but the first of hidden states."""
    difference = np.abs(got.astype(np.float64) - expected)
    axes = (1, 2) if difference.ndim == 3 else None
    return np.stack([difference.max(axis=axes), np.sqrt((difference**2).mean(axis=axes))], axis=-1)


def router_margins(model, tokens):
    """The smallest step between the last expert chosen and the first not chosen, and the fewest tokens an expert of a
    layer has; None without experts."""
    routers = [m for n, m in model.named_modules() if re.search(r"TopKRouter$", type(m).__name__)]
    if not routers:
        return None
    seen = []
    hooks = [r.register_forward_hook(lambda _, args, out: seen.append(out[0])) for r in routers]
    with float32_is_float64():
        run(model, tokens)
    for hook in hooks:
        hook.remove()
    margin, fewest = np.inf, np.inf
    for logits in seen:
        count = model.config.num_experts_per_tok
        top = logits.sort(dim=-1, descending=True)
        margin = min(margin, (top.values[:, count - 1] - top.values[:, count]).min().item())
        fewest = min(fewest, torch.bincount(top.indices[:, :count].flatten(), minlength=logits.shape[1]).min().item())
    return margin, fewest


def golden_of(model, plain, tokens):
    with float32_is_float64():
        hidden, logits = run(model, tokens)
    assert hidden.dtype == logits.dtype == np.float64
    for ours, theirs in zip(plain.run(tokens), (hidden, logits)):
        error = np.abs(ours - theirs).max()
        assert error < AGREEMENT * np.abs(theirs).max(), f"plain_families.py differs by {error}"
    return hidden, logits


def make(variant, out):
    folder = out / variant.name
    for seed in range(1, 100):
        config = save_checkpoint(variant, seed, folder)
        random = np.random.default_rng(seed)
        tokens, other, short = (random.integers(3, config.vocab_size, n) for n in (TOKENS, OTHER_TOKENS, SHORT_TOKENS))
        model = float64_model(folder)
        margins = [m for m in (router_margins(model, t) for t in (tokens, other)) if m is not None]
        if all(margin > ROUTER_MARGIN for margin, _ in margins) and all(n >= 3 for _, n in margins[:1]):
            break
    else:
        raise ValueError(f"{variant.name}: no seed gives every expert tokens and clear decisions")
    plain = PlainModel.of_folder(folder)
    hidden, logits = golden_of(model, plain, tokens)
    golden = {"tokens": tokens, "hidden": hidden, "logits": logits, "other_tokens": other}
    golden["other_logits"] = golden_of(model, plain, other)[1]
    if variant.name == "llama_longrope":
        golden |= {"short_tokens": short, "short_logits": golden_of(model, plain, short)[1]}
    single = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for stage in ("prefill", "decode"):
        got = run(single, tokens, at_once=stage == "prefill" or not variant.decodes_alike)
        golden[f"{stage}_hidden_error"] = errors(got[0], hidden)
        golden[f"{stage}_logits_error"] = errors(got[1], logits)
    golden = {k: np.ascontiguousarray(v.astype(np.int32) if k.endswith("tokens") else v) for k, v in golden.items()}
    metadata = {
        "family": config.model_type,
        "attention": single.config._attn_implementation,
        "seed": str(seed),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write_golden(folder / "golden.safetensors", golden, metadata)
    if variant.gguf:
        write_family_gguf(folder, config)
        check_gguf(folder, tokens, run(single, tokens)[1])
    report(variant, folder, golden, margins, seed)


def write_golden(path, golden, metadata):
    """The library's own writer orders the metadata at random; these files have the same bytes each time."""
    data = save(golden, metadata)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    assert len(text) == size
    path.write_bytes(data[:8] + text + data[8 + size :])


def check_gguf(folder, tokens, expected):
    """Where transformers reads GGUF of a family, it has to find the very same weights."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in ("llama", "qwen3", "gemma3_text"):
        return
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=f"{folder.name}.gguf", config=config, dtype=torch.float32
    )
    assert (run(model, tokens)[1] == expected).all(), folder


def write_family_gguf(folder, config):
    rope_parameters = config.rope_parameters
    if "full_attention" in rope_parameters:
        global_rope, local_rope = rope_parameters["full_attention"], rope_parameters["sliding_attention"]
    else:
        global_rope, local_rope = rope_parameters, None
    write_gguf(folder, folder / f"{folder.name}.gguf", global_rope, local_rope)


def report(variant, folder, golden, margins, seed):
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size < MAX_FOLDER_BYTES, f"{folder} has {size} bytes"
    print(f"{variant.name:28} seed {seed:3} {size / 1000:6.0f} kB  |h| {np.abs(golden['hidden'][-1]).max():6.1f}"
          f"  |logits| {np.abs(golden['logits']).max():5.1f}"
          f"  rms errors: prefill {golden['prefill_logits_error'][1]:.1e} decode {golden['decode_logits_error'][1]:.1e}"
          f"  {margins or ''}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="the names that begin so")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for variant in VARIANTS:
        if variant.name.startswith(arguments.only or ""):
            make(variant, arguments.out)
    total = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"{total} bytes")
    assert total < MAX_TOTAL_BYTES


if __name__ == "__main__":
    main()
