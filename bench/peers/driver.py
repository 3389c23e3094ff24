"""Starts, stops and asks the workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path

from worker import die_with_parent

TIMEOUT = 900  # seconds; the longest answer, a model's long prompt, takes about two minutes on two cores

# A measurement during which other programs had more of the machine than this says little: programs whose threads wait
# for each other lose far more than that share, and some more than others.
DISTURBED = 0.03
ATTEMPTS = 3


def ticks_of_machine() -> tuple[int, int]:
    """Clock ticks that all processors were busy, or taken by the virtual machine's host; and all ticks."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


class Worker:
    """One peer's process. It is stopped (SIGSTOP) except while it answers, so that its idle threads cannot spin."""

    def __init__(self, command: list[str], log: Path):
        self.command = command
        self.log = log
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # one signal reaches the worker and whatever it started
                preexec_fn=die_with_parent,
            )

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def ask(self, request: dict) -> dict:
        try:
            if self.process is None:
                self.start()
            else:
                self.signal(signal.SIGCONT)
            # A peer that hangs is killed, which ends the line it owes.
            clock = threading.Timer(TIMEOUT, self.signal, [signal.SIGKILL])
            clock.start()
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            finally:
                clock.cancel()
            if line:
                self.signal(signal.SIGSTOP)
                return json.loads(line)
        except OSError as error:
            if self.process is None:
                return {"unsupported": f"cannot be started: {error}"}
        return {"unsupported": self.obituary()}

    def ticks(self) -> int:
        """Clock ticks that the worker and the processes it waited for have used."""
        if self.process is None:
            return 0
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15])

    def ask_watched(self, request: dict) -> dict:
        """As ask(); adds "others": the share of the machine that other programs had meanwhile."""
        own, (busy, every) = self.ticks(), ticks_of_machine()
        reply = self.ask(request)
        own, (busy_after, every_after) = self.ticks() - own, ticks_of_machine()
        reply["others"] = max(0.0, (busy_after - busy - own) / max(1, every_after - every))
        return reply

    def ask_undisturbed(self, request: dict) -> dict:
        """As ask_watched(), again when others were busy: what decides is their share, never the time."""
        for _ in range(ATTEMPTS):
            reply = self.ask_watched(request)
            if "unsupported" in reply or reply["others"] <= DISTURBED:
                break
        return reply

    def obituary(self) -> str:
        self.end()
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"the peer's process ended: {lines[-1][:200] if lines else 'it says nothing'}"

    def end(self) -> None:
        if self.process is None:
            return
        self.signal(signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process = None
