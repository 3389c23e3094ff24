"""A Llama forward pass in plain numpy float64, straight from the tensors of a GGUF file.

It shares nothing with transformers but the GGUF reader, so that the two check each other. A GGUF of the llama
architecture stores the rows of the Q and K projections so that rotary pairs are neighbours (2i, 2i+1); this pass uses
them as they lie, while transformers puts the rows back in halves order (i, i + D/2). Both must give the same logits.
"""

from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize

QUERY_BLOCK = 512  # rows of scores held at once


class PlainLlama:
    def __init__(self, path: Path):
        reader = GGUFReader(path)
        self.tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}

        def value(key):
            return reader.fields["llama." + key].contents()

        self.layers = value("block_count")
        self.heads = value("attention.head_count")
        self.kv_heads = value("attention.head_count_kv")
        self.head_dim = value("embedding_length") // self.heads
        self.rope_base = value("rope.freq_base")
        self.eps = value("attention.layer_norm_rms_epsilon")

    def hidden(self, ids) -> np.ndarray:
        """Final, normalised hidden states [tokens, hidden]."""
        x = self.tensors["token_embd.weight"][np.asarray(ids)]
        for layer in range(self.layers):
            w = {k.split(".", 2)[2]: v for k, v in self.tensors.items() if k.startswith(f"blk.{layer}.")}
            x = x + self._attention(self._norm(x, w["attn_norm.weight"]), w)
            h = self._norm(x, w["ffn_norm.weight"])
            gate = h @ w["ffn_gate.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w["ffn_up.weight"].T)) @ w["ffn_down.weight"].T
        return self._norm(x, self.tensors["output_norm.weight"])

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        head = self.tensors.get("output.weight", self.tensors["token_embd.weight"])  # tied when absent
        return hidden @ head.T

    def _norm(self, x, gain):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * gain

    def _rotate(self, x):  # [tokens, heads, D], pairs are neighbours
        d = self.head_dim
        angle = np.arange(len(x))[:, None] * self.rope_base ** (-np.arange(0, d, 2) / d)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * cos - odd * sin
        out[..., 1::2] = even * sin + odd * cos
        return out

    def _attention(self, x, w):
        n, d = len(x), self.head_dim
        q = self._rotate((x @ w["attn_q.weight"].T).reshape(n, self.heads, d))
        k = self._rotate((x @ w["attn_k.weight"].T).reshape(n, self.kv_heads, d))
        v = (x @ w["attn_v.weight"].T).reshape(n, self.kv_heads, d)
        out = np.empty_like(q)
        for head in range(self.heads):
            kv = head // (self.heads // self.kv_heads)
            for start in range(0, n, QUERY_BLOCK):
                end = min(n, start + QUERY_BLOCK)
                scores = q[start:end, head] @ k[:end, kv].T / np.sqrt(d)
                scores[np.arange(end)[None, :] > np.arange(start, end)[:, None]] = -np.inf
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                out[start:end, head] = weights @ v[:end, kv] / weights.sum(axis=-1, keepdims=True)
        return out.reshape(n, -1) @ w["attn_output.weight"].T
