"""PyTorch: scaled_dot_product_attention."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from attention import Inputs, Prepared, serve_attention
from shape import Shape
from worker import Unsupported, median_milliseconds, release

# The fastest way of each case, found once.
chosen: dict[Shape, str] = {}


def expanded(part: torch.Tensor, heads: int) -> torch.Tensor:
    return part.repeat_interleave(heads // part.shape[1], dim=1)


def ways(shape: Shape, queries: torch.Tensor) -> dict[str, tuple[Callable, Callable]]:
    """By name: how keys and values are stored, and attention over them. All [batch, heads, tokens, head_dim]."""
    causal = shape.stage == "prefill"
    found = {
        "enable_gqa": (
            lambda part: part,
            lambda k, v: sdpa(queries, k, v, is_causal=causal, enable_gqa=True),
        ),
        "expanded keys and values": (
            lambda part: expanded(part, shape.heads),
            lambda k, v: sdpa(queries, k, v, is_causal=causal),
        ),
    }
    if not causal:
        # One query token sees every key, so the heads that share a key head may as well be tokens of one head.
        folded = queries.view(shape.batch, shape.kv_heads, -1, shape.head_dim)
        found["query heads folded into tokens"] = (
            lambda part: part,
            lambda k, v: sdpa(folded, k, v).view(queries.shape),
        )
    return found


def prepare(shape: Shape, inputs: Inputs, threads: int) -> Prepared:
    if shape.dtype in ("int8", "fp8"):
        raise Unsupported("PyTorch's scaled_dot_product_attention takes no int8 or fp8 keys on a CPU")
    if shape.window or shape.chunk or shape.sink:
        raise Unsupported("PyTorch's scaled_dot_product_attention has no window, chunk or sink, only a dense mask")
    queries, keys, values = (
        part.transpose(1, 2).contiguous() for part in (inputs.queries, inputs.keys, inputs.values)
    )
    last: list[torch.Tensor] = []

    def make(way: str) -> Callable[[], None]:
        store, attend = ways(shape, queries)[way]
        caches = itertools.cycle([(store(keys.clone()), store(values.clone())) for _ in range(shape.cache_count)])

        def run() -> None:
            last[:] = [attend(*next(caches))]

        return run

    if shape not in chosen:
        chosen[shape] = min(ways(shape, queries), key=lambda way: median_milliseconds(make(way), 0.2))
    return Prepared(make(chosen[shape]), lambda: last[0].transpose(1, 2), note=chosen[shape])


if __name__ == "__main__":
    serve_attention(prepare, {"PyTorch": release(torch)})
