"""The attention cases, written as `regard bench --shape` writes them (src/cli/bench/shape.h)."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

BYTES = {"f32": 4, "bf16": 2, "f16": 2, "int8": 1, "fp8": 1}


@dataclasses.dataclass(frozen=True)
class Shape:
    stage: str
    dtype: str
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    length: int
    window: int = 0  # 0: none
    chunk: int = 0  # 0: none
    sink: bool = False

    @staticmethod
    @functools.cache
    def parse(text: str) -> Shape:
        stage, dtype, *fields = text.split(":")
        number = {}
        for field in fields:
            name, digits = re.fullmatch(r"([a-z]+)(\d*)", field).groups()
            number[name] = int(digits or 1)
        return Shape(
            stage,
            dtype,
            number["b"],
            number["h"],
            number["kv"],
            number["d"],
            number["s" if stage == "prefill" else "l"],
            number.get("w", 0),
            number.get("c", 0),
            "sink" in number,
        )

    @property
    def queries(self) -> int:
        """Query tokens a sequence; the last one is the sequence's last token."""
        return self.length if self.stage == "prefill" else 1

    @property
    def cache_bytes(self) -> int:
        return 2 * BYTES[self.dtype] * self.batch * self.length * self.kv_heads * self.head_dim

    @property
    def cache_count(self) -> int:
        """Caches that decode goes round, as `regard bench` does: one that stays in the processor's last level would be
        read faster than the many layers of a model can be."""
        if self.stage == "prefill":
            return 1
        return min(16, 1 + 4 * last_level_cache() // self.cache_bytes)  # no more than a tiny shape needs to be checked

    def shrunk(self) -> Shape:
        """The same kind of case, small enough for a plain reference."""
        return dataclasses.replace(
            self,
            batch=min(self.batch, 3),
            length=min(self.length, 200),
            window=min(self.window, 24),
            chunk=min(self.chunk, 24),
        )


@functools.cache
def last_level_cache() -> int:
    """As src/kernels/cache_sizes.cc finds it."""
    sizes = []
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        digits, unit = re.fullmatch(r"(\d+)([KM]?)", (index / "size").read_text().strip()).groups()
        sizes.append(int(digits) << {"": 0, "K": 10, "M": 20}[unit])
    return max(sizes, default=8 << 20)
