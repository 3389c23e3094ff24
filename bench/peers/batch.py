#!/usr/bin/env python3
"""Many texts at once: regard batch, one text alone, and llama.cpp's llama-batched-bench, in turns.

    bench/peers/batch.py REGARD MODEL [--llama LLAMA_BATCHED_BENCH] [--texts 32] [--prompt 512] [--generate 128]
                         [--rounds 2] [--threads 2] [--kv-dtypes f32,bf16,int8]

Prompts are random words that are one token each, so that texts have exactly as many as llama.cpp's and share nothing.
A text that ends by itself counts with the tokens that it has. Generating is what all tokens take longer than one each.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

WORDS = (
    "time people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area "
    "money story fact month lot right study book eye job word business issue side kind head house service friend father"
).split()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout + done.stderr


class Batch:
    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options = options
        self.folder = folder
        draw = random.Random(1)
        self.prompts = [" ".join(draw.choices(WORDS, k=options.prompt)) for _ in range(options.texts)]

    def run(self, dtype: str, tokens: int) -> tuple[float, int]:
        """All texts, each with so many generated tokens at most: the seconds, and how many were generated."""
        requests, results = self.folder / "requests.jsonl", self.folder / "results.jsonl"
        lines = [{"id": str(i), "prompt": text, "max_tokens": tokens} for i, text in enumerate(self.prompts)]
        requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
        results.unlink(missing_ok=True)
        start = time.monotonic()
        run(self.options.regard, "batch", "-m", self.options.model, "-i", str(requests), "-o", str(results),
            "--kv-dtype", dtype, "--threads", str(self.options.threads), "--max-batch", str(self.options.texts))
        seconds = time.monotonic() - start
        done = [json.loads(line) for line in results.read_text().splitlines()]
        for result in done:
            if len(result["prompt_tokens"]) != self.options.prompt:
                raise SystemExit(f"a prompt has {len(result['prompt_tokens'])} tokens, expected {self.options.prompt}")
        return seconds, sum(len(result["tokens"]) for result in done)

    def alone(self, dtype: str) -> float:
        """Generated tokens a second of one text."""
        out = run(self.options.regard, "generate", "-m", self.options.model, "-p", self.prompts[0], "-n",
                  str(self.options.generate), "--kv-dtype", dtype, "--threads", str(self.options.threads))
        return float(re.search(r"decode ([0-9.]+) tokens/s", out).group(1))

    def llama(self) -> tuple[float, float]:
        """Tokens a second in all, and while generating."""
        o = self.options
        out = run(o.llama, "-m", o.model, "-npp", str(o.prompt), "-ntg", str(o.generate), "-npl", str(o.texts), "-fa", "1",
                  "-c", str(o.texts * (o.prompt + o.generate + 64)), "-t", str(o.threads), "--output-format", "jsonl")
        row = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
        return row["speed"], row["speed_tg"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("regard")
    parser.add_argument("model")
    parser.add_argument("--llama")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-dtypes", default="f32,bf16,int8")
    options = parser.parse_args()
    dtypes = options.kv_dtypes.split(",")
    total: dict[str, list[float]] = {}
    generating: dict[str, list[float]] = {}
    alone: dict[str, list[float]] = {dtype: [] for dtype in dtypes}

    def note(name: str, in_all: float, while_generating: float) -> None:
        total.setdefault(name, []).append(in_all)
        generating.setdefault(name, []).append(while_generating)

    with tempfile.TemporaryDirectory() as folder:
        batch = Batch(options, Path(folder))
        for _ in range(options.rounds):
            if options.llama:
                note("llama.cpp", *batch.llama())
            for dtype in dtypes:
                alone[dtype].append(batch.alone(dtype))
                seconds, generated = batch.run(dtype, options.generate)
                seconds_of_one, ones = batch.run(dtype, 1)
                in_all = options.texts * options.prompt + generated
                note(f"regard {dtype}", in_all / seconds, (generated - ones) / (seconds - seconds_of_one))
                alone[dtype].append(batch.alone(dtype))

    def shown(values: list[float]) -> str:
        return ", ".join(f"{value:.0f}" for value in values)

    print("| | tokens/s in all | against llama.cpp | generating | one text alone | |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, values in total.items():
        dtype = name.removeprefix("regard ")
        peer = f"{statistics.median(values) / statistics.median(total['llama.cpp']):.2f}" if options.llama else ""
        single = alone.get(dtype, [])
        times = f"{statistics.median(generating[name]) / statistics.median(single):.2f}" if single else ""
        print(f"| {name} | {shown(values)} | {peer} | {shown(generating[name])} | {shown(single)} | {times} |")


if __name__ == "__main__":
    main()
