"""What the workers that run attention have in common: inputs, the plain reference, and the requests."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable

import torch

from shape import Shape
from worker import median_milliseconds, serve

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
INT8_STEP = 1 / 32


@dataclasses.dataclass
class Inputs:
    """Numbers of one case, rounded to what its dtype holds: queries [batch, queries, heads, head_dim]; keys and values
    [batch, length, kv_heads, head_dim]. f32 for fp8 and int8 caches, and then keys and values are exact in the cache:
    how a peer rounds is not what is compared."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    sinks: torch.Tensor | None

    @staticmethod
    def make(shape: Shape) -> Inputs:
        generator = torch.Generator().manual_seed(1)
        dtype = DTYPES.get(shape.dtype, torch.float32)

        def numbers(*size: int, scale: float) -> torch.Tensor:
            return ((torch.rand(size, generator=generator) * 2 - 1) * scale).to(dtype)

        def cached(scale: float) -> torch.Tensor:
            part = numbers(shape.batch, shape.length, shape.kv_heads, shape.head_dim, scale=scale)
            if shape.dtype == "fp8":
                return part.to(torch.float8_e4m3fn).float()
            return (part / INT8_STEP).round() * INT8_STEP if shape.dtype == "int8" else part

        queries = numbers(shape.batch, shape.queries, shape.heads, shape.head_dim, scale=2)
        return Inputs(queries, cached(2), cached(1), torch.zeros(shape.heads) if shape.sink else None)


@dataclasses.dataclass
class Prepared:
    """A case ready to be timed. output() gives what the last run computed, [batch, queries, heads, head_dim]."""

    run: Callable[[], object]
    output: Callable[[], torch.Tensor]
    note: str = ""


def visible(shape: Shape) -> torch.Tensor:
    query = torch.arange(shape.length - shape.queries, shape.length)[:, None]
    key = torch.arange(shape.length)[None, :]
    mask = key <= query
    if shape.window:
        mask &= key > query - shape.window
    if shape.chunk:
        mask &= key // shape.chunk == query // shape.chunk
    return mask


def reference(shape: Shape, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sinks) -> torch.Tensor:
    """Attention as the textbook writes it, in f32."""
    group = shape.heads // shape.kv_heads
    keys, values = (part.float().repeat_interleave(group, dim=2) for part in (keys, values))
    scores = torch.einsum("bqhd,bkhd->bhqk", queries.float(), keys) / shape.head_dim**0.5
    scores.masked_fill_(~visible(shape), float("-inf"))
    if sinks is not None:
        sink = sinks[None, :, None, None].expand(shape.batch, -1, shape.queries, 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : shape.length]
    return torch.einsum("bhqk,bkhd->bqhd", weights, values)


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest number."""
    return float((output.float() - expected).abs().max() / expected.abs().max())


def serve_attention(prepare: Callable[[Shape, Inputs, int], Prepared], versions: dict[str, str]) -> None:
    @torch.inference_mode()
    def answer(request: dict) -> dict:
        if "case" not in request:
            return {"versions": versions}
        torch.set_num_threads(request["threads"])
        shape = Shape.parse(request["case"])
        if request.get("check"):
            shape = shape.shrunk()
        inputs = Inputs.make(shape)
        prepared = prepare(shape, inputs, request["threads"])
        if request.get("check"):
            prepared.run()
            expected = reference(shape, *dataclasses.astuple(inputs))
            return {"error": relative_error(prepared.output(), expected)}
        del inputs
        gc.collect()
        return {"milliseconds": median_milliseconds(prepared.run, request["seconds"]), "note": prepared.note}

    serve(answer)
