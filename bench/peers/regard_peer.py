"""regard itself: `regard bench`, one process a case.

    regard_peer.py REGARD MODEL
"""

from __future__ import annotations

import json
import subprocess
import sys

from worker import Unsupported, die_with_parent, serve

REGARD, MODEL = sys.argv[1:]


def answer(request: dict) -> dict:
    if "case" not in request:
        return {"versions": {}}
    if request.get("check"):
        raise Unsupported("regard has tests of its own")
    case = request["case"]
    suite = case.split(":")[0]
    if suite == "layer":
        chosen = ["--suite", "layer", "--filter", case]
    elif suite == "decoder":
        chosen = ["--suite", "decoder", "-m", MODEL, "--filter", case]
    else:
        chosen = ["--shape", case]
    command = [REGARD, "bench", "--json", "--threads", str(request["threads"]), *chosen, *request.get("flags", [])]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=die_with_parent)
    if done.returncode != 0:
        raise Unsupported("regard: " + (done.stderr.strip().splitlines() or ["failed"])[-1])
    result = json.loads(done.stdout)
    found = next(part for part in result["cases"] if part["shape"] == case)
    return {"milliseconds": found["milliseconds"], "machine": result["machine"]}


if __name__ == "__main__":
    serve(answer)
