#!/usr/bin/env python3
"""Makes mlp_*.safetensors: MLPs of experts, by transformers' own modules in float64 on float32 weights.

    ./make_mlp_golden.py --out .

mlp_<family>.safetensors, f32 unless said otherwise, matrices [out, in] for mixtral, qwen2_moe and deepseek_v3:

    x              [tokens, hidden]
    router         [experts, hidden]            router_bias [experts] (gpt_oss), selection_bias [experts] (deepseek_v3)
    gate_up        [experts, 2 * width, hidden], rows of gate, then of up; gpt_oss: [experts, hidden, 2 * width], columns
                   of gate and up in turn, with gate_up_bias [experts, 2 * width]
    down           [experts, hidden, width]; gpt_oss: [experts, width, hidden], with down_bias [experts, hidden]
    shared.gate, shared.up, shared.down         (qwen2_moe, deepseek_v3)
    shared_gate    [hidden]                     (qwen2_moe)
    out            f64 [tokens, hidden]
    metadata       f32_error (the largest error of the same module in float32, at least 2^-24 of the largest output)

mlp_activations.safetensors: x f32, and for each activation its value in f64 (`silu`) and PyTorch's in f32 (`silu_f32`).
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.activations import ACT2FN
from transformers.models.deepseek_v3 import configuration_deepseek_v3, modeling_deepseek_v3
from transformers.models.gpt_oss import configuration_gpt_oss, modeling_gpt_oss
from transformers.models.mixtral import configuration_mixtral, modeling_mixtral
from transformers.models.qwen2_moe import configuration_qwen2_moe, modeling_qwen2_moe

HIDDEN, WIDTH, EXPERTS, PER_TOKEN, TOKENS = 24, 144, 8, 3, 24


def filled(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            scale = tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.3
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale * 1.5)
    return module.eval()


def run(module, x):
    with torch.no_grad():
        out = module(x[None])
    return (out[0] if isinstance(out, tuple) else out)[0]


def write(out, name, module, parts, seed):
    generator = torch.Generator().manual_seed(seed + 100)
    x = torch.randn(TOKENS, HIDDEN, generator=generator)
    plain = run(module, x)
    exact = run(module.double(), x.double())
    error = max((plain.double() - exact).abs().max().item(), exact.abs().max().item() * 2**-24)
    tensors = {key: value.float().contiguous().clone() for key, value in parts.items()}
    save_file({"x": x, "out": exact.contiguous(), **tensors}, out / f"mlp_{name}.safetensors",
              {"f32_error": repr(error), "torch": torch.__version__})


def shared(mlp):
    return {f"shared.{part}": getattr(mlp, f"{part}_proj").weight for part in ("gate", "up", "down")}


def mixtral(out):
    config = configuration_mixtral.MixtralConfig(hidden_size=HIDDEN, intermediate_size=WIDTH, num_local_experts=EXPERTS,
                                                 num_experts_per_tok=PER_TOKEN)
    config._experts_implementation = "eager"
    block = filled(modeling_mixtral.MixtralSparseMoeBlock(config), 1)
    write(out, "mixtral", block, {"router": block.gate.weight, "gate_up": block.experts.gate_up_proj,
                                  "down": block.experts.down_proj}, 1)


def gpt_oss(out):
    config = configuration_gpt_oss.GptOssConfig(hidden_size=HIDDEN, intermediate_size=WIDTH, num_local_experts=EXPERTS,
                                                num_experts_per_tok=PER_TOKEN)
    config._experts_implementation = "eager"
    block = filled(modeling_gpt_oss.GptOssMLP(config), 2)
    with torch.no_grad():
        block.experts.gate_up_proj.mul_(4)  # beyond the limit of the clamp
    write(out, "gpt_oss", block, {"router": block.router.weight, "router_bias": block.router.bias,
                                  "gate_up": block.experts.gate_up_proj, "gate_up_bias": block.experts.gate_up_proj_bias,
                                  "down": block.experts.down_proj, "down_bias": block.experts.down_proj_bias}, 2)


def qwen2_moe(out):
    config = configuration_qwen2_moe.Qwen2MoeConfig(hidden_size=HIDDEN, moe_intermediate_size=WIDTH,
                                                    shared_expert_intermediate_size=2 * WIDTH, num_experts=EXPERTS,
                                                    num_experts_per_tok=PER_TOKEN, norm_topk_prob=False)
    config._experts_implementation = "eager"
    block = filled(modeling_qwen2_moe.Qwen2MoeSparseMoeBlock(config), 3)
    write(out, "qwen2_moe", block, {"router": block.gate.weight, "gate_up": block.experts.gate_up_proj,
                                    "down": block.experts.down_proj,
                                    "shared_gate": block.shared_expert_gate.weight[0], **shared(block.shared_expert)}, 3)


def deepseek_v3(out):
    config = configuration_deepseek_v3.DeepseekV3Config(hidden_size=HIDDEN, moe_intermediate_size=WIDTH,
                                                        n_routed_experts=EXPERTS, num_local_experts=EXPERTS,
                                                        num_experts_per_tok=PER_TOKEN, n_group=4, topk_group=2,
                                                        n_shared_experts=1, norm_topk_prob=True,
                                                        routed_scaling_factor=2.5)
    config._experts_implementation = "eager"
    block = filled(modeling_deepseek_v3.DeepseekV3MoE(config), 4)
    write(out, "deepseek_v3", block, {"router": block.gate.weight, "selection_bias": block.gate.e_score_correction_bias,
                                      "gate_up": block.experts.gate_up_proj, "down": block.experts.down_proj,
                                      **shared(block.shared_experts)}, 4)


def activations(out):
    x = torch.cat([torch.linspace(-30, 30, 1201), torch.linspace(-2, 2, 401),
                   torch.tensor([0.0, 1e-30, -1e-30, 1e-40, -1e-40, 1e3, -1e3, 1e19, -1e19, 3e38, -3e38])])
    tensors = {"x": x}
    for name, key in (("silu", "silu"), ("gelu", "gelu"), ("gelu_tanh", "gelu_pytorch_tanh"), ("relu", "relu")):
        tensors[name] = ACT2FN[key](x.double())
        tensors[name + "_f32"] = ACT2FN[key](x)
    # PyTorch's 1 + erf and 1 + tanh lose all digits below 0, in float64 as well.
    wide = x.double()
    tensors["gelu"] = wide * 0.5 * torch.special.erfc(-wide * 0.5**0.5)
    tensors["gelu_tanh"] = wide * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3))
    # _apply_gate of gpt_oss takes gate and up in turn.
    experts = type("Experts", (), {"limit": 7.0, "alpha": 1.702})()
    up = x.flip(0)
    both = torch.stack([x, up], -1).flatten()
    gate = modeling_gpt_oss.GptOssExperts._apply_gate
    tensors["clamped_silu"] = gate(experts, both.double())
    tensors["clamped_silu_f32"] = gate(experts, both)
    save_file(tensors, out / "mlp_activations.safetensors", {"torch": torch.__version__})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."))
    out = parser.parse_args().out
    for make in (mixtral, gpt_oss, qwen2_moe, deepseek_v3, activations):
        make(out)


if __name__ == "__main__":
    main()
