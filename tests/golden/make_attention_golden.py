#!/usr/bin/env python3
"""Makes attention_*.safetensors (the attention kernel alone) and layer_*.safetensors (a whole attention layer).

    ./make_attention_golden.py --out .

attention_<case>[_sinks].safetensors - plain PyTorch in float64 on float32 inputs, cross-checked with PyTorch's own
scaled_dot_product_attention:

    q         f32 [tokens, heads, d]        k   f32 [keys, kv_heads, d]       v  f32 [keys, kv_heads, dv]
    sinks     f32 [heads]                   only in the files named *_sinks
    position  i64 [tokens]                  position of each query; the key in row j of k and v has position j
    first     i64 [tokens], last  i64 [tokens]
                                            positions that a query sees, both inclusive; nothing if first > last
    out       f64 [tokens, heads, dv]       zeros for a query that sees nothing
    lse       f64 [tokens, heads]           log of the sum of exp(score) over the visible keys WITHOUT the sink, after
                                            scale and soft cap; -inf for a query that sees nothing
    metadata  f32_error (the largest error of PyTorch's own kernel in float32, at least 2^-24), mask, window, chunk, padding ("0" where a case has none), softmax_scale (score = scale * q.k),
              soft_cap ("0": none, else score = cap * tanh(score / cap), before the mask), kv_group (query heads that
              share a KV head: head h uses KV head h div kv_group), torch (version)

A sink is one more score in the denominator of its head's softmax, neither scaled nor capped, with no value of its own.

layer_<case>.safetensors - LlamaAttention of transformers, causal, run in float64 and rounded to float32:

    hidden_states f32 [batch, tokens, hidden]         position_ids i64 [batch, tokens]
    cos, sin      f32 [batch, tokens, head_dim]       halves layout: elements i and i + head_dim/2 share an angle
    q_proj.weight, q_proj.bias, ... o_proj.bias       f32, [out, in] and [out]; biases only where there are any
    key, value    f32 [batch, tokens, kv_heads, head_dim]      the key after rotation: what a cache keeps
    output        f32 [batch, tokens, hidden]
    metadata      num_attention_heads, num_key_value_heads, head_dim, attention_bias, rope_* , torch, transformers
"""

import argparse
import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

MAX_FILE_BYTES = 200_000
MAX_TOTAL_BYTES = 2_100_000
TOLERANCE = 1e-12  # two float64 computations of the same thing
FLOAT32_TOLERANCE = 2e-6


@dataclass
class AttentionCase:
    name: str
    mask: str  # causal, window, chunk, bidirectional, left_padding, right_padding, right_padding_bidirectional
    heads: int
    kv_heads: int
    d: int
    keys: int
    tokens: int | None = None  # the queries are the last `tokens` positions; None: as many as keys
    dv: int | None = None  # None: d
    window: int = 0
    chunk: int = 0
    padding: int = 0  # number of padded positions
    soft_cap: float = 0.0
    amplitude: float = 1.0  # of q: 1 gives scores of about +-3
    sinks: bool = True  # also make the variant with sinks


CASES = [
    AttentionCase("causal", "causal", heads=6, kv_heads=2, d=40, keys=13),
    AttentionCase("causal_multi_head", "causal", heads=3, kv_heads=3, d=64, keys=11, sinks=False),
    AttentionCase("causal_multi_query", "causal", heads=5, kv_heads=1, d=33, keys=13),
    AttentionCase("causal_head_dim_128", "causal", heads=2, kv_heads=1, d=128, keys=11, sinks=False),
    AttentionCase("causal_head_dim_80", "causal", heads=4, kv_heads=2, d=80, keys=9, sinks=False),
    AttentionCase("causal_narrow_values", "causal", heads=4, kv_heads=2, d=40, dv=24, keys=13),
    AttentionCase("causal_wide_values", "causal", heads=4, kv_heads=2, d=16, dv=40, keys=17, sinks=False),
    AttentionCase("causal_soft_cap", "causal", heads=4, kv_heads=2, d=33, keys=12, soft_cap=2.5),
    AttentionCase("causal_large_scores", "causal", heads=4, kv_heads=2, d=40, keys=11, amplitude=40),
    AttentionCase("causal_one_token", "causal", heads=4, kv_heads=2, d=40, keys=1),
    AttentionCase("window_5", "window", heads=4, kv_heads=2, d=16, keys=27, window=5),
    AttentionCase("window_1", "window", heads=4, kv_heads=2, d=16, keys=18, window=1),
    AttentionCase("window_wider_than_text", "window", heads=4, kv_heads=1, d=16, keys=20, window=64),
    AttentionCase("window_soft_cap", "window", heads=4, kv_heads=2, d=24, keys=20, window=7, soft_cap=1.5, sinks=False),
    AttentionCase("window_over_many_keys", "window", heads=2, kv_heads=1, d=8, keys=120, window=33, sinks=False),
    AttentionCase("chunk_8", "chunk", heads=4, kv_heads=2, d=16, keys=27, chunk=8),
    AttentionCase("chunk_1", "chunk", heads=4, kv_heads=2, d=16, keys=12, chunk=1, sinks=False),
    AttentionCase("bidirectional", "bidirectional", heads=4, kv_heads=2, d=20, keys=19),
    AttentionCase("left_padding", "left_padding", heads=4, kv_heads=2, d=16, keys=24, padding=7),
    AttentionCase("right_padding", "right_padding", heads=4, kv_heads=2, d=16, keys=24, padding=7),
    AttentionCase("right_padding_bidirectional", "right_padding_bidirectional", heads=4, kv_heads=2, d=16, keys=20,
                  padding=5),
    AttentionCase("decode", "causal", heads=6, kv_heads=2, d=40, keys=37, tokens=1),
    AttentionCase("decode_long", "causal", heads=4, kv_heads=1, d=8, keys=500, tokens=1, sinks=False),
    AttentionCase("decode_window", "window", heads=4, kv_heads=2, d=64, keys=30, tokens=1, window=16),
    AttentionCase("decode_chunk", "chunk", heads=4, kv_heads=2, d=33, keys=45, tokens=1, chunk=16),
    AttentionCase("decode_chunk_starts", "chunk", heads=4, kv_heads=2, d=33, keys=33, tokens=1, chunk=16),
    AttentionCase("decode_soft_cap", "causal", heads=4, kv_heads=2, d=80, keys=20, tokens=1, soft_cap=2.0),
    AttentionCase("prefill_after_prefix", "causal", heads=4, kv_heads=2, d=20, keys=41, tokens=13),
    AttentionCase("prefill_after_prefix_window", "window", heads=4, kv_heads=2, d=20, keys=41, tokens=13, window=9),
    AttentionCase("prefill_after_prefix_chunk", "chunk", heads=4, kv_heads=2, d=20, keys=41, tokens=13, chunk=12),
    AttentionCase("prefill_without_prefix", "causal", heads=4, kv_heads=2, d=20, keys=16, tokens=16, sinks=False),
]


def visible(case: AttentionCase, position: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The boolean mask [tokens, keys], written down from the definition of each kind."""
    i, j = position[:, None], key[None, :]
    real = case.keys - case.padding
    match case.mask:
        case "causal":
            return j <= i
        case "window":
            return (j <= i) & (i - j < case.window)
        case "chunk":
            return (j <= i) & (i // case.chunk == j // case.chunk)
        case "bidirectional":
            return torch.ones(len(position), len(key), dtype=torch.bool)
        case "left_padding":  # padded queries see nothing
            return (j <= i) & (j >= case.padding)
        case "right_padding":
            return (j <= i) & (i < real)
        case "right_padding_bidirectional":
            return (i < real) & (j < real)
    raise ValueError(case.mask)


def intervals(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last visible key of each row; (0, -1) if there is none. Rows must have no holes."""
    first = torch.where(mask.any(1), mask.int().argmax(1), 0)
    last = first + mask.sum(1) - 1
    keys = torch.arange(mask.shape[1])
    assert torch.equal(mask, (keys >= first[:, None]) & (keys <= last[:, None])), "a mask row has holes"
    return first, last


def attention(q, k, v, mask, scale, soft_cap, sinks):
    """out [tokens, heads, dv] and lse [tokens, heads], all in float64; tensors come as [heads, rows, d]."""
    raw = scale * q @ k.transpose(1, 2)
    scores = soft_cap * torch.tanh(raw / soft_cap) if soft_cap else raw
    scores = scores.masked_fill(~mask, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)

    columns = scores if sinks is None else torch.cat(
        [scores, sinks[:, None, None].expand(-1, scores.shape[1], 1)], dim=-1)
    weights = torch.softmax(columns, dim=-1)[..., : scores.shape[-1]]
    seen = mask.any(dim=-1)[None, :, None]
    out = torch.where(seen, weights, 0.0) @ v

    # The same by PyTorch's own kernel: soft cap and mask as an additive bias, the sink as a factor sigma(lse - sink).
    bias = (scores - raw)[None]
    sdpa = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias, scale=scale)[0]
    if sinks is not None:
        sdpa = sdpa * torch.sigmoid(lse - sinks[:, None])[..., None]
    deviation = (torch.where(seen, sdpa, 0.0) - out).abs().max().item()
    assert deviation < TOLERANCE, f"deviates from scaled_dot_product_attention by {deviation}"
    # What float32 costs PyTorch itself: the yardstick for others.
    f32 = F.scaled_dot_product_attention(q.float()[None], k.float()[None], v.float()[None], attn_mask=bias.float(),
                                         scale=scale)[0]
    if sinks is not None:
        f32 = f32 * torch.sigmoid(lse.float() - sinks.float()[:, None])[..., None]
    error = (torch.where(seen, f32.double(), 0.0) - out).abs().max().item()
    return out.transpose(0, 1).contiguous(), lse.transpose(0, 1).contiguous(), error


def attention_file(case: AttentionCase, with_sinks: bool) -> tuple[str, dict, dict]:
    tokens, dv = case.tokens or case.keys, case.dv or case.d
    random = np.random.Generator(np.random.PCG64(zlib.crc32(case.name.encode())))

    def normal(*shape, amplitude=1.0):
        return torch.from_numpy((amplitude * random.standard_normal(shape)).astype(np.float32))

    q = normal(tokens, case.heads, case.d, amplitude=case.amplitude)
    k = normal(case.keys, case.kv_heads, case.d)
    v = normal(case.keys, case.kv_heads, dv)
    sinks = normal(case.heads, amplitude=2.0) if with_sinks else None

    key = torch.arange(case.keys)
    position = key[case.keys - tokens :].clone()
    mask = visible(case, position, key)
    first, last = intervals(mask)
    group = case.heads // case.kv_heads
    scale = float(np.float32(case.d**-0.5))  # exact in float32, so that every reader uses the same number

    def by_head(x, repeat):
        return x.double().transpose(0, 1).repeat_interleave(repeat, dim=0)

    out, lse, error = attention(by_head(q, 1), by_head(k, group), by_head(v, group), mask, scale, case.soft_cap,
                         sinks.double() if with_sinks else None)
    tensors = {"q": q, "k": k, "v": v, "position": position, "first": first, "last": last, "out": out, "lse": lse}
    if with_sinks:
        tensors["sinks"] = sinks
    metadata = {
        "mask": case.mask, "window": str(case.window), "chunk": str(case.chunk), "padding": str(case.padding),
        "softmax_scale": repr(scale), "soft_cap": repr(case.soft_cap) if case.soft_cap else "0",
        "kv_group": str(group), "lse": "without the sink", "f32_error": repr(max(error, 2.0**-24)), "torch": torch.__version__,
    }
    return f"attention_{case.name}{'_sinks' if with_sinks else ''}", tensors, metadata


PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# The original length is short enough for 8 frequencies to fall in all three bands: kept, blended, divided.
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LAYERS = [  # name, bias, rope, heads, kv heads, head_dim
    ("layer_plain", False, PLAIN_ROPE, 6, 2, 16),
    ("layer_llama3_bias", True, LLAMA3_ROPE, 6, 2, 16),
    ("layer_narrow_projection", False, PLAIN_ROPE, 2, 1, 24),  # heads * head_dim is not the hidden size
]
LAYER_BATCH, LAYER_TOKENS, LAYER_HIDDEN = 2, 37, 96
FIRST_POSITIONS = [0, 1000]  # of the two rows of the batch


def exact_angles(rope: dict, head_dim: int, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [batch, tokens, head_dim] in float64; transformers' own angles are float32, which costs digits far out."""
    frequency = rope["rope_theta"] ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if rope["rope_type"] == "llama3":
        turns = rope["original_max_position_embeddings"] * frequency / (2 * torch.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (kept + (1 - kept) / rope["factor"])
    angles = (positions.double()[..., None] * frequency).repeat(1, 1, 2)
    return angles.cos(), angles.sin()


def layer_file(name: str, bias: bool, rope: dict, heads: int, kv_heads: int, head_dim: int) -> tuple[str, dict, dict]:
    config = LlamaConfig(
        hidden_size=LAYER_HIDDEN, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        attention_bias=bias, rope_parameters=rope, max_position_embeddings=2048, num_hidden_layers=1,
        attn_implementation="sdpa",
    )
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))

    def normal(shape, amplitude):
        return torch.from_numpy((amplitude * random.standard_normal(shape)).astype(np.float32))

    layer = LlamaAttention(config, layer_idx=0).eval()
    for parameter_name, parameter in layer.named_parameters():
        parameter.copy_(normal(parameter.shape, 0.5 if "bias" in parameter_name else 1.5 * parameter.shape[-1] ** -0.5))
    weights = {n: p.detach().clone() for n, p in layer.named_parameters()}

    hidden = normal((LAYER_BATCH, LAYER_TOKENS, LAYER_HIDDEN), 1.0)
    positions = torch.tensor(FIRST_POSITIONS)[:, None] + torch.arange(LAYER_TOKENS)
    cos, sin = LlamaRotaryEmbedding(config)(hidden, positions)

    exact = exact_angles(rope, head_dim, positions)
    assert max((cos - exact[0]).abs().max(), (sin - exact[1]).abs().max()) < 2e-4

    def run(dtype):
        cache = DynamicCache(config=config)
        output, _ = layer.to(dtype)(hidden.to(dtype), position_embeddings=exact if dtype == torch.float64 else (cos, sin),
                                    attention_mask=None, cache=cache)
        key, value = cache.layers[0].keys, cache.layers[0].values
        return [x.to(torch.float32).contiguous() for x in (output, key.transpose(1, 2), value.transpose(1, 2))]

    single, (output, key, value) = run(torch.float32), run(torch.float64)
    for a, b in zip(single, (output, key, value)):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)
    tensors = {"hidden_states": hidden, "position_ids": positions, "cos": cos.contiguous(), "sin": sin.contiguous(),
               **weights, "key": key, "value": value, "output": output}
    metadata = {
        "num_attention_heads": str(heads), "num_key_value_heads": str(kv_heads), "head_dim": str(head_dim),
        "f32_error": repr((single[0].double() - output.double()).abs().max().item()),
        "attention_bias": str(bias).lower(), "mask": "causal", "softmax_scale": repr(head_dim**-0.5),
        **{k if k.startswith("rope_") else f"rope_{k}": str(v) for k, v in rope.items()},
        "torch": torch.__version__, "transformers": transformers.__version__,
    }
    return name, tensors, metadata


SAFETENSORS_TYPE = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


def save(path: Path, tensors: dict, metadata: dict) -> int:
    """Writes a safetensors file and returns its size. The library's own writer orders the metadata at random, and
    these files should be the same bytes each time they are made."""
    header, data = {"__metadata__": metadata}, b""
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):  # keeps 8-byte types aligned
        start, data = len(data), data + tensor.contiguous().numpy().tobytes()
        header[name] = {"dtype": SAFETENSORS_TYPE[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(struct.pack("<Q", len(text)) + text + data)
    loaded = load_file(temporary)
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[n], t) for n, t in tensors.items()), path
    os.replace(temporary, path)
    return 8 + len(text) + len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder to write to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

    files = [attention_file(case, sinks) for case in CASES for sinks in ((False, True) if case.sinks else (False,))]
    files += [layer_file(*layer) for layer in LAYERS]
    total = 0
    for name, tensors, metadata in files:
        size = save(args.out / f"{name}.safetensors", tensors, metadata)
        total += size
        assert size <= MAX_FILE_BYTES, f"{name} has {size} bytes, expected at most {MAX_FILE_BYTES}"
    assert total <= MAX_TOTAL_BYTES, f"{total} bytes in all, expected at most {MAX_TOTAL_BYTES}"
    print(f"{len(files)} files, {total} bytes")


if __name__ == "__main__":
    main()
