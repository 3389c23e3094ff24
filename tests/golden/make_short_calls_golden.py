#!/usr/bin/env python3
"""Makes short_calls.json: how exact PyTorch's attention layers are in float32 when a call has 1 to 4 tokens.

    ./make_short_calls_golden.py --out .

PyTorch multiplies few rows by other kernels than many, with shorter sums. Each case is a layer of transformers, run in
float32 on `tokens` tokens that follow `history` cached ones, CALLS times with other inputs:

    layer     its name in LAYERS          history, tokens
    error     the largest error of transformers' float32 output against float64, over all calls
    first     the first number of the first call's float64 output: whether a reader has the same weights and inputs

Weights and inputs are not in the file: `numbers` makes them, and short_calls_test.cc has the same function. float64 is
a plain forward pass, because transformers' norms and Llama 4's rotation compute in float32 whatever the type.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from golden_writer import write
from transformers import DbrxConfig, Gemma3TextConfig, GraniteConfig, Llama4TextConfig, LlamaConfig
from transformers.cache_utils import DynamicCache
from transformers.models.dbrx.modeling_dbrx import DbrxAttention
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention
from transformers.models.granite.modeling_granite import GraniteAttention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.llama4.modeling_llama4 import Llama4TextAttention

CALLS = 3
HISTORIES = (0, 40, 300)
TOKENS = (1, 2, 3, 4)
THETA = 10000.0
EPS = 1e-5


@dataclass
class Layer:
    family: str
    hidden: int
    heads: int
    kv_heads: int
    d: int
    scale: float = 0.0  # 0: d^-0.5
    clip: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.family}_{self.hidden}"


LAYERS = [
    Layer("llama", 64, 4, 2, 16),
    Layer("llama", 120, 5, 1, 24),
    Layer("llama", 576, 9, 3, 64),
    Layer("llama", 1024, 8, 2, 128),
    Layer("granite", 256, 4, 2, 64, scale=0.25),
    Layer("dbrx", 256, 4, 2, 64, clip=1.5),
    Layer("llama4", 256, 2, 1, 128),
    Layer("gemma3", 320, 2, 1, 256),
]
HIDDEN, Q, K, V, O, Q_NORM, K_NORM = range(7)


def numbers(stream: int, shape: tuple, amplitude: float) -> torch.Tensor:
    """Uniform in [-amplitude, amplitude): SplitMix64 of the index, its upper 24 bits."""
    z = (np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(1) + np.uint64(stream << 32))
    z *= np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    unit = ((z >> np.uint64(40)).astype(np.float32) - np.float32(2**23)) * np.float32(2.0**-23)
    return torch.from_numpy((unit * np.float32(amplitude)).reshape(shape))


def weights_of(layer: Layer, index: int) -> dict[int, torch.Tensor]:
    def matrix(part, rows, columns):
        return numbers(16 * index + part, (rows, columns), 2.5 / math.sqrt(columns))

    width, kv_width = layer.heads * layer.d, layer.kv_heads * layer.d
    weights = {Q: matrix(Q, width, layer.hidden), K: matrix(K, kv_width, layer.hidden),
               V: matrix(V, kv_width, layer.hidden), O: matrix(O, layer.hidden, width)}
    if layer.family == "gemma3":
        weights |= {part: numbers(16 * index + part, (layer.d,), 0.5) for part in (Q_NORM, K_NORM)}
    return weights


def angles(layer: Layer, count: int) -> torch.Tensor:  # [count, d/2], float64
    return torch.arange(count)[:, None] * THETA ** (-torch.arange(0, layer.d, 2, dtype=torch.float64) / layer.d)


def visible(history: int, count: int) -> torch.Tensor:  # [count, history + count]
    return torch.arange(history + count)[None, :] <= history + torch.arange(count)[:, None]


def exact(layer: Layer, weights: dict, x: torch.Tensor, tokens: int) -> torch.Tensor:
    """The last `tokens` rows of the layer's output in float64."""
    x = x.double()
    w = {part: weight.double() for part, weight in weights.items()}
    count = len(x)

    def heads(part):
        out = x @ w[part].T
        return (out.clamp(-layer.clip, layer.clip) if layer.clip else out).view(count, -1, layer.d)

    def norm(y, gain):
        return y / torch.sqrt((y * y).mean(-1, keepdim=True) + EPS) * gain

    cos, sin = angles(layer, count).cos()[:, None], angles(layer, count).sin()[:, None]

    def rotate(y):
        out = torch.empty_like(y)
        a, b = (slice(0, None, 2), slice(1, None, 2)) if layer.family == "llama4" else \
            (slice(0, layer.d // 2), slice(layer.d // 2, None))
        out[..., a], out[..., b] = y[..., a] * cos - y[..., b] * sin, y[..., b] * cos + y[..., a] * sin
        return out

    q, k, v = heads(Q), heads(K), heads(V)
    if layer.family == "gemma3":
        q, k = norm(q, 1 + w[Q_NORM]), norm(k, 1 + w[K_NORM])
    q, k = rotate(q), rotate(k)
    if layer.family == "llama4":
        q, k = norm(q, 1.0), norm(k, 1.0)
    group = layer.heads // layer.kv_heads
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * (layer.scale or layer.d**-0.5)
    scores = scores.masked_fill(~visible(0, count), -torch.inf)
    attended = torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), v.repeat_interleave(group, 1))
    return (attended.reshape(count, -1) @ w[O].T)[-tokens:]


def transformers_layer(layer: Layer, weights: dict) -> torch.nn.Module:
    sizes = dict(hidden_size=layer.hidden, num_attention_heads=layer.heads, num_key_value_heads=layer.kv_heads,
                 head_dim=layer.d, num_hidden_layers=1, attn_implementation="sdpa")
    if layer.family == "llama":
        module = LlamaAttention(LlamaConfig(**sizes), layer_idx=0)
    elif layer.family == "granite":
        module = GraniteAttention(GraniteConfig(**sizes, attention_multiplier=layer.scale), layer_idx=0)
    elif layer.family == "dbrx":
        config = DbrxConfig(d_model=layer.hidden, n_heads=layer.heads, n_layers=1, attn_implementation="sdpa",
                            attn_config={"kv_n_heads": layer.kv_heads, "clip_qkv": layer.clip, "rope_theta": THETA})
        module = DbrxAttention(config, layer_idx=0)
    elif layer.family == "llama4":
        config = Llama4TextConfig(**sizes, no_rope_layers=[1], use_qk_norm=True, rms_norm_eps=EPS)
        module = Llama4TextAttention(config, layer_idx=0)
    else:
        config = Gemma3TextConfig(**sizes, query_pre_attn_scalar=layer.d, rms_norm_eps=EPS, sliding_window=4096,
                                  layer_types=["full_attention"])
        module = Gemma3Attention(config, layer_idx=0)
    parameters = dict(module.named_parameters())
    if layer.family == "dbrx":
        parameters["Wqkv.weight"].copy_(torch.cat([weights[Q], weights[K], weights[V]]))
        parameters["out_proj.weight"].copy_(weights[O])
    else:
        for name, part in (("q_proj", Q), ("k_proj", K), ("v_proj", V), ("o_proj", O), ("q_norm", Q_NORM),
                           ("k_norm", K_NORM)):
            if part in weights:
                parameters[f"{name}.weight"].copy_(weights[part])
    return module.eval()


def by_transformers(layer: Layer, module: torch.nn.Module, x: torch.Tensor, tokens: int) -> torch.Tensor:
    """The last `tokens` rows in float32: the others are cached by a call before."""
    table = angles(layer, len(x))
    cache = DynamicCache(config=module.config)
    history = len(x) - tokens
    out = None
    for first, count in ((0, history), (history, tokens)):
        if count == 0:
            continue
        part = table[first : first + count]
        if layer.family == "llama4":
            positions = torch.polar(torch.ones_like(part), part).to(torch.complex64)[None]
        else:
            positions = tuple(f(part).repeat(1, 2).float()[None] for f in (torch.cos, torch.sin))
        mask = None if first == 0 or count == 1 else visible(first, count)[None, None]
        out, _ = module(hidden_states=x[None, first : first + count], position_embeddings=positions,
                        attention_mask=mask, cache=cache)
    return out[0]


def cases_of(layer: Layer, index: int) -> list[dict]:
    weights = weights_of(layer, index)
    module = transformers_layer(layer, weights)
    cases = []
    for history in HISTORIES:
        for tokens in TOKENS:
            error, first = 0.0, None
            for call in range(CALLS):
                x = numbers(16 * (100 + 10 * index + call) + tokens, (history + tokens, layer.hidden), 1.75)
                expected = exact(layer, weights, x, tokens)
                actual = by_transformers(layer, module, x, tokens).double()
                torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)
                error = max(error, (actual - expected).abs().max().item())
                first = expected[0, 0].item() if first is None else first
            cases.append({"layer": layer.name, "history": history, "tokens": tokens, "error": error, "first": first})
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder to write to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    cases = [case for index, layer in enumerate(LAYERS) for case in cases_of(layer, index)]
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    versions = f'"torch": "{torch.__version__}", "transformers": "{transformers.__version__}"'
    write(args.out / "short_calls.json", f'{{{versions}, "calls": {CALLS}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
