"""The rows of the tables and the columns of each."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    spec: str
    title: str
    flags: tuple[str, ...] = ()  # of `regard bench`: what the caller allows, the peers know nothing of

    @property
    def name(self) -> str:
        return " ".join((self.spec, *self.flags))


@dataclasses.dataclass(frozen=True)
class Group:
    title: str
    peers: tuple[str, ...]
    cases: tuple[Case, ...]


# By the name that --peers takes. regard is always measured.
TITLES = {
    "regard": "regard",
    "torch": "PyTorch SDPA",
    "onnxruntime": "ONNX Runtime GQA",
    "vllm": "vLLM CPU",
    "transformers": "transformers",
    "llama": "llama.cpp",
}

GROUPS = (
    Group(
        "Attention",
        ("torch", "onnxruntime", "vllm"),
        (
            Case("prefill:f32:b1:h32:kv8:d128:s2048", "prefill f32, 32/8 heads of 128, 2048 tokens"),
            Case("prefill:bf16:b1:h32:kv8:d128:s2048", "prefill bf16, 32/8 heads of 128, 2048 tokens"),
            Case(
                "prefill:bf16:b1:h32:kv8:d128:s2048",
                "the same, products of bf16 allowed",
                ("--bf16-products",),
            ),
            Case("prefill:f32:b1:h9:kv3:d64:s8192", "prefill f32, 9/3 heads of 64, 8192 tokens"),
            Case("prefill:f32:b4:h16:kv8:d128:s512", "prefill f32, 16/8 heads of 128, 4 × 512 tokens"),
            Case(
                "prefill:f32:b1:h64:kv8:d64:s4096:w128:sink",
                "prefill f32, 64/8 heads of 64, 4096 tokens, window 128, sinks",
            ),
            Case(
                "prefill:f32:b1:h32:kv8:d128:s4096:c1024",
                "prefill f32, 32/8 heads of 128, 4096 tokens, chunks of 1024",
            ),
            Case("decode:f32:b1:h32:kv8:d128:l8192", "decode f32, 32/8 heads of 128, 8192 cached"),
            Case("decode:bf16:b1:h32:kv8:d128:l8192", "decode bf16, 32/8 heads of 128, 8192 cached"),
            Case("decode:f16:b1:h32:kv8:d128:l8192", "decode f16, 32/8 heads of 128, 8192 cached"),
            Case("decode:int8:b1:h32:kv8:d128:l8192", "decode int8, 32/8 heads of 128, 8192 cached"),
            Case("decode:fp8:b1:h32:kv8:d128:l8192", "decode fp8, 32/8 heads of 128, 8192 cached"),
            Case("decode:bf16:b16:h32:kv8:d128:l2048", "decode bf16, 32/8 heads of 128, 16 × 2048 cached"),
        ),
    ),
    Group(
        "Attention layer of Llama-3-8B's size, projections included",
        ("transformers",),
        (
            Case("layer:prefill:f32:s2048", "prefill f32, 2048 tokens"),
            Case("layer:prefill:bf16:s2048", "prefill bf16, 2048 tokens"),
            Case("layer:prefill:bf16:s2048", "the same, products of bf16 allowed", ("--bf16-products",)),
            Case("layer:decode:f32:l4096", "decode f32, 4096 cached"),
            Case("layer:decode:bf16:l4096", "decode bf16, 4096 cached"),
        ),
    ),
    Group(
        "Whole model, SmolLM2-135M-Instruct Q4_1",
        ("llama",),
        (
            Case("decoder:prefill:s512", "prefill, 512 tokens"),
            Case("decoder:prefill:s4096", "prefill, 4096 tokens"),
            Case("decoder:decode:l1", "decode, nothing cached"),
            Case("decoder:decode:l4097", "decode, 4096 cached"),
            Case("decoder:decode:l8001", "decode, 8000 cached"),
            Case("decoder:decode:l8001", "the same, cache int8 (llama.cpp's stays f16)", ("--kv-dtype", "int8")),
        ),
    ),
)
