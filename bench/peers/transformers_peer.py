"""transformers: a whole attention layer of Llama-3-8B's size, LlamaAttention with sdpa, its cache included."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, StaticCache
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from attention import DTYPES, reference, relative_error
from shape import Shape
from worker import Unsupported, median_milliseconds, release, serve

CACHES = {"DynamicCache": DynamicCache, "StaticCache": StaticCache}
# The faster cache of each case, found once.
chosen: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Case:
    """layer:prefill:f32:s2048, or layer:decode:f32:l4096 (the decoded token included)."""

    stage: str
    dtype: torch.dtype
    length: int

    @staticmethod
    def parse(text: str) -> Case:
        suite, stage, dtype, length = text.split(":")
        if suite != "layer" or dtype not in DTYPES:
            raise Unsupported(f"no such layer: {text}")
        return Case(stage, DTYPES[dtype], int(length[1:]))

    @property
    def tokens(self) -> int:
        """Tokens of one call, the last ones."""
        return self.length if self.stage == "prefill" else 1


class Layer:
    def __init__(self, case: Case):
        self.case = case
        self.config = LlamaConfig(
            hidden_size=4096,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            num_hidden_layers=1,
            max_position_embeddings=8192,
            attn_implementation="sdpa",
        )
        torch.manual_seed(1)
        self.attention = LlamaAttention(self.config, layer_idx=0).to(case.dtype).eval()
        self.hidden = torch.randn(1, case.length, 4096).to(case.dtype)
        # transformers makes these once for all layers of a model.
        positions = torch.arange(case.length)[None]
        self.rotary = LlamaRotaryEmbedding(self.config)(self.hidden, positions)
        self.output = torch.empty(0)

    def call(self, cache, first: int, end: int) -> None:
        rotary = tuple(part[:, first:end].contiguous() for part in self.rotary)
        self.output = self.attention(self.hidden[:, first:end], position_embeddings=rotary, cache=cache)[0]

    def prepare(self, kind: str) -> Callable[[], None]:
        """A call, after which the cache is as long as it was before."""
        length, tokens = self.case.length, self.case.tokens

        def empty():
            if kind == "StaticCache":
                return StaticCache(config=self.config, max_cache_len=length)
            return DynamicCache()

        if kind == "DynamicCache" and tokens == length:  # cheaper made anew than cropped
            return lambda: self.call(empty(), 0, length)
        cache = empty()
        self.call(cache, 0, length)
        cache.crop(-tokens)

        def run() -> None:
            self.call(cache, length - tokens, length)
            cache.crop(-tokens)

        return run

    def expected(self) -> torch.Tensor:
        """What the call should have computed, as the textbook writes it, in f32."""
        layer, length = copy.deepcopy(self.attention).float(), self.case.length
        hidden, (cos, sin) = self.hidden.float(), (part.float()[:, :, None] for part in self.rotary)

        def rotated(part: torch.Tensor) -> torch.Tensor:
            low, high = part.chunk(2, dim=-1)
            return part * cos + torch.cat([-high, low], dim=-1) * sin

        queries = rotated(layer.q_proj(hidden).view(1, length, 32, 128))
        keys = rotated(layer.k_proj(hidden).view(1, length, 8, 128))
        values = layer.v_proj(hidden).view(1, length, 8, 128)
        shape = Shape("prefill", "f32", 1, 32, 8, 128, length)
        result = layer.o_proj(reference(shape, queries, keys, values, None).flatten(2))
        return result[:, length - self.case.tokens :]


@torch.inference_mode()
def answer(request: dict) -> dict:
    if "case" not in request:
        return {"versions": {"PyTorch": release(torch), "transformers": transformers.__version__}}
    text = request["case"]
    torch.set_num_threads(request["threads"])
    case = Case.parse(text)
    if request.get("check"):
        layer = Layer(dataclasses.replace(case, length=min(case.length, 200)))
        errors = []
        for kind in CACHES:
            run = layer.prepare(kind)
            run()
            run()  # the second call shows whether the first left the cache as it was
            errors.append(relative_error(layer.output, layer.expected()))
        return {"error": max(errors)}
    layer = Layer(case)
    if text not in chosen:
        chosen[text] = min(CACHES, key=lambda kind: median_milliseconds(layer.prepare(kind), 0.2))
    kind = chosen[text]
    return {"milliseconds": median_milliseconds(layer.prepare(kind), request["seconds"]), "note": kind}


if __name__ == "__main__":
    serve(answer)
