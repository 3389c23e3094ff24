"""What the workers share: JSON lines in and out, the clock, and dying with the driver."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


class Unsupported(Exception):
    """The peer has no such case; the text says why."""


def die_with_parent() -> None:
    """For a new process to call. A worker is stopped most of the time and would not notice that its pipe closed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def release(module) -> str:
    """A module's version without what tells builds apart."""
    return module.__version__.split("+")[0]


def median_milliseconds(run: Callable[[], object], seconds: float) -> float:
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def serve(answer: Callable[[dict], dict]) -> None:
    """Answers requests until stdin closes. What a library prints goes to stderr: stdout is for answers only."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Unsupported as reason:
            reply = {"unsupported": str(reason)}
        except Exception as error:  # whatever a peer throws is its answer: the comparison goes on
            text = " ".join(str(error).split())
            reply = {"unsupported": f"{type(error).__name__}: {text[:200]}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
