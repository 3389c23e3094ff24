"""llama.cpp: a whole model, measured by its own llama-bench. The cache is f16, its default: llama-bench takes no f32.

    llama_peer.py LLAMA_BENCH MODEL
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from worker import Unsupported, die_with_parent, serve

BENCH, MODEL = sys.argv[1:]
SOURCE = (Path(__file__).parent / "requirements-llama.txt").read_text().split()[-1]


def llama_bench(threads: int, *options: str) -> dict:
    command = [BENCH, "-m", MODEL, "-t", str(threads), "-fa", "1", "-o", "json", *options]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=die_with_parent)
    if done.returncode != 0:
        raise Unsupported("llama-bench: " + (done.stderr.strip().splitlines() or ["failed"])[-1])
    return json.loads(done.stdout)[0]


def answer(request: dict) -> dict:
    if "case" not in request:
        return {"versions": {"llama.cpp": f"of {SOURCE}"}}
    if request.get("check"):
        raise Unsupported("llama-bench prints no numbers to check")
    _, stage, field = request["case"].split(":")
    length = int(field[1:])
    if stage == "prefill":
        # Long prompts vary little, and llama-bench runs each once more to warm up.
        tokens, repetitions = 1, 3 if length <= 512 else 1
        options = ["-p", str(length), "-n", "0"]
    else:
        tokens, repetitions = 32 if request["seconds"] >= 0.5 else 8, 3
        options = ["-p", "0", "-n", str(tokens), "-d", str(length - 1)]
    result = llama_bench(request["threads"], *options, "-r", str(repetitions))
    return {"milliseconds": statistics.median(result["samples_ns"]) / tokens * 1e-6}


if __name__ == "__main__":
    serve(answer)
