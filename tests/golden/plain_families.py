"""Forward passes of llama, qwen3, gemma3, gpt_oss, olmo2 and mixtral in plain numpy float64.

Straight from the keys of config.json and the tensors of a Hugging Face folder, one token and one head at a time. It
shares nothing with transformers, so that the two check each other in make_family_golden.py and make_gemma3_golden.py.
"""

import json
import math
from pathlib import Path

import numpy as np
from safetensors import safe_open


class PlainModel:
    def __init__(self, config: dict, tensors: dict):
        self.config = config
        self.tensors = tensors
        self.family = self.config["model_type"]
        self.eps = self.config["rms_norm_eps"]
        self.heads = self.config["num_attention_heads"]
        self.kv_heads = self.config["num_key_value_heads"]
        self.head_dim = self.config.get("head_dim") or self.config["hidden_size"] // self.heads
        self.layers = [self._weights(f"model.layers.{i}.") for i in range(self.config["num_hidden_layers"])]

    @classmethod
    def of_folder(cls, folder: Path):
        with safe_open(folder / "model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name).double().numpy() for name in file.keys()}
        return cls(json.loads((folder / "config.json").read_text()), tensors)

    def run(self, tokens):
        """hidden [layers + 1, tokens, hidden_size]: the embedding rows, and what each layer leaves (before the final
        norm); logits [tokens, vocab_size]."""
        outputs = self._layer_outputs(tokens)
        return outputs, self.logits(self._final_norm(outputs[-1]))

    def hidden(self, tokens):
        """Final, normalised hidden states [tokens, hidden_size]."""
        return self._final_norm(self._layer_outputs(tokens)[-1])

    def logits(self, hidden):
        """[tokens, vocab_size], from final, normalised hidden states."""
        head = self.tensors.get("lm_head.weight", self.tensors["model.embed_tokens.weight"])
        logits = hidden @ head.T
        cap = self.config.get("final_logit_softcapping")
        return cap * np.tanh(logits / cap) if cap else logits

    def _layer_outputs(self, tokens):
        x = self.tensors["model.embed_tokens.weight"][np.asarray(tokens)]
        if self.family == "gemma3_text":
            x = x * math.sqrt(self.config["hidden_size"])
        hidden = [x]
        for index, weights in enumerate(self.layers):
            x = self._layer(x, weights, self._window(index), self._rope(index))
            hidden.append(x)
        return np.stack(hidden)

    def _final_norm(self, x):
        return self._norm(x, self.tensors["model.norm.weight"])

    def _weights(self, prefix):
        return {name.removeprefix(prefix): w for name, w in self.tensors.items() if name.startswith(prefix)}

    def _layer(self, x, w, window, rope):
        """Norms stand before a block (llama), after it (olmo2) or on both sides (gemma3)."""
        if self.family == "olmo2":
            x = x + self._norm(self._attention(x, w, window, rope), w["post_attention_layernorm.weight"])
            return x + self._norm(self._gated_mlp(x, w, "mlp."), w["post_feedforward_layernorm.weight"])
        attended = self._attention(self._norm(x, w["input_layernorm.weight"]), w, window, rope)
        if self.family == "gemma3_text":
            x = x + self._norm(attended, w["post_attention_layernorm.weight"])
            mlp = self._gated_mlp(self._norm(x, w["pre_feedforward_layernorm.weight"]), w, "mlp.")
            return x + self._norm(mlp, w["post_feedforward_layernorm.weight"])
        x = x + attended
        h = self._norm(x, w["post_attention_layernorm.weight"])
        if self.family == "gpt_oss":
            return x + np.stack([self._gpt_oss_experts(row, w) for row in h])
        if self.family == "mixtral":
            return x + np.stack([self._mixtral_experts(row, w) for row in h])
        return x + self._gated_mlp(h, w, "mlp.")

    def _norm(self, x, gain):
        if self.family == "gemma3_text":
            gain = 1 + gain
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * gain

    # ---- attention ----

    def _attention(self, x, w, window, rope):
        q = linear(x, w, "self_attn.q_proj")
        k = linear(x, w, "self_attn.k_proj")
        v = linear(x, w, "self_attn.v_proj")
        if self.family == "olmo2":  # over the whole width
            q = self._norm(q, w["self_attn.q_norm.weight"])
            k = self._norm(k, w["self_attn.k_norm.weight"])
        q = q.reshape(len(x), self.heads, self.head_dim)
        k = k.reshape(len(x), self.kv_heads, self.head_dim)
        v = v.reshape(len(x), self.kv_heads, self.head_dim)
        if self.family in ("qwen3", "gemma3_text"):  # each head by itself
            q = self._norm(q, w["self_attn.q_norm.weight"])
            k = self._norm(k, w["self_attn.k_norm.weight"])
        frequencies, magnitude = frequencies_of(rope, self.head_dim, len(x), self.config)
        q = rotate(q, frequencies, magnitude)
        k = rotate(k, frequencies, magnitude)
        scale = self.config.get("query_pre_attn_scalar", self.head_dim) ** -0.5
        out = np.empty_like(q)
        for position in range(len(x)):
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(self.heads):
                kv = head // (self.heads // self.kv_heads)
                scores = scale * (k[first : position + 1, kv] @ q[position, head])
                sinks = [w["self_attn.sinks"][head]] if self.family == "gpt_oss" else []
                weights = softmax(np.concatenate([scores, sinks]))[: len(scores)]
                out[position, head] = weights @ v[first : position + 1, kv]
        return linear(out.reshape(len(x), -1), w, "self_attn.o_proj")

    def _window(self, layer):
        """How many keys a query of the layer sees, itself included; None: all."""
        types = self._layer_types()
        if types is None:  # llama and olmo2 have no windows, all layers of mixtral have the same
            return self.config.get("sliding_window") if self.family == "mixtral" else None
        return self.config["sliding_window"] if types[layer] == "sliding_attention" else None

    def _layer_types(self):
        if pattern := self.config.get("sliding_window_pattern"):  # older files of gemma3
            full = [(i + 1) % pattern == 0 for i in range(len(self.layers))]
            return ["full_attention" if is_full else "sliding_attention" for is_full in full]
        return self.config.get("layer_types")

    def _rope(self, layer):
        """The parameters of the layer's rotation, from the newer key rope_parameters or the older ones."""
        config = self.config
        if self.family != "gemma3_text":
            older = {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
            return config.get("rope_parameters") or older
        kind = self._layer_types()[layer]
        if "rope_parameters" in config:
            return config["rope_parameters"][kind]
        if kind == "sliding_attention":
            return {"rope_theta": config["rope_local_base_freq"]}
        return {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}

    # ---- MLPs ----

    def _gated_mlp(self, x, w, prefix):
        activation = gelu_tanh if self.family == "gemma3_text" else silu
        gate = linear(x, w, prefix + "gate_proj")
        up = linear(x, w, prefix + "up_proj")
        return linear(activation(gate) * up, w, prefix + "down_proj")

    def _mixtral_experts(self, row, w):
        scores = softmax(w["block_sparse_moe.gate.weight"] @ row)
        chosen = largest(scores, self.config["num_experts_per_tok"])
        out = 0
        for expert in chosen:
            prefix = f"block_sparse_moe.experts.{expert}."
            gate = w[prefix + "w1.weight"] @ row
            up = w[prefix + "w3.weight"] @ row
            out = out + scores[expert] / scores[chosen].sum() * (w[prefix + "w2.weight"] @ (silu(gate) * up))
        return out

    def _gpt_oss_experts(self, row, w):
        scores = w["mlp.router.weight"] @ row + w["mlp.router.bias"]
        chosen = largest(scores, self.config["num_experts_per_tok"])
        limit = self.config["swiglu_limit"]
        alpha = self.config.get("swiglu_alpha", 1.702)
        out = 0
        for expert, weight in zip(chosen, softmax(scores[chosen])):
            both = row @ w["mlp.experts.gate_up_proj"][expert] + w["mlp.experts.gate_up_proj_bias"][expert]
            gate = np.minimum(both[0::2], limit)
            up = np.clip(both[1::2], -limit, limit)
            inner = (up + 1) * gate / (1 + np.exp(-alpha * gate))
            out = out + weight * (inner @ w["mlp.experts.down_proj"][expert] + w["mlp.experts.down_proj_bias"][expert])
        return out


def linear(x, w, name):
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def largest(scores, count):
    return np.argsort(-scores, kind="stable")[:count]


def rotate(x, frequencies, magnitude):  # [tokens, heads, head_dim], pairs are i and i + head_dim / 2
    angle = np.arange(len(x))[:, None] * frequencies
    cos = magnitude * np.cos(angle)[:, None]
    sin = magnitude * np.sin(angle)[:, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def frequencies_of(rope, dim, length, config):
    """Radians a position of each pair, and what cos and sin are multiplied by."""
    base = rope["rope_theta"]
    plain = base ** (-np.arange(0, dim, 2) / dim)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / rope["factor"], 1.0
    trained = config.get("original_max_position_embeddings") or rope["original_max_position_embeddings"]
    if kind == "llama3":
        return llama3_frequencies(plain, rope, trained), 1.0
    if kind == "yarn":
        return yarn_frequencies(plain, rope, trained, base, dim), yarn_magnitude(rope)
    assert kind == "longrope", kind
    factor = rope.get("factor") or config["max_position_embeddings"] / trained
    magnitude = rope.get("attention_factor") or math.sqrt(1 + math.log(factor) / math.log(trained))
    return plain / np.asarray(rope["long_factor" if length > trained else "short_factor"]), magnitude


def llama3_frequencies(plain, rope, trained):
    out = []
    for frequency in plain:
        turns = trained * frequency / (2 * math.pi)  # in the trained context
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        out.append(kept * frequency + (1 - kept) * frequency / rope["factor"])
    return np.asarray(out)


def yarn_frequencies(plain, rope, trained, base, dim):
    def pair_that_turns(times):
        return dim * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(base))

    low = pair_that_turns(rope.get("beta_fast") or 32)
    high = pair_that_turns(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    interpolated = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    return interpolated * plain / rope["factor"] + (1 - interpolated) * plain


def yarn_magnitude(rope):
    def grown(by):
        return 0.1 * by * math.log(rope["factor"]) + 1 if rope["factor"] > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return grown(rope["mscale"]) / grown(rope["mscale_all_dim"])
    return grown(1)
