"""Measures regard and its peers in turns, round after round; prints a table, draws a plot. bench/peers/run sets up the
peers and calls this."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from cases import GROUPS, TITLES, Case, Group
from driver import DISTURBED, Worker
from report import Result, draw, markdown

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# How far a peer may be from the plain reference, as a share of the largest number: computing in f32, and in 16 bits.
TOLERANCE = 1e-5
HALF_TOLERANCE = 1e-2


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/peers/run", description="Measure regard and its peers, interleaved.")
    parser.add_argument("--rounds", type=int, default=5, help="the median over them counts (default: 5)")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases with this text in their name")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--peers", default="", metavar="A,B", help=f"of {', '.join(list(TITLES)[1:])} (default: all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: results in the peers' folder")
    parser.add_argument("--quick", action="store_true", help="one round of short measurements")
    parser.add_argument("--check", action="store_true", help="compare the peers' numbers with a plain reference")
    parser.add_argument("--plot-only", type=Path, metavar="JSON", help="print and draw an earlier result again")
    # What bench/peers/run found.
    parser.add_argument("--folder", type=Path, default=ROOT / "build/peers", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out or options.folder / "results"
    options.peers = [name for name in options.peers.split(",") if name and name != "regard"] or list(TITLES)[1:]
    if unknown := set(options.peers) - set(TITLES):
        parser.error(f"no peer called {', '.join(sorted(unknown))}")
    return options


def make_workers(options: argparse.Namespace) -> dict[str, Worker]:
    torch, vllm = (str(options.folder / venv / "bin/python") for venv in ("torch", "vllm"))
    commands = {
        "regard": [sys.executable, "regard_peer.py", str(ROOT / "build/release/bin/regard"), options.model],
        "torch": [torch, "torch_peer.py"],
        "onnxruntime": [torch, "onnxruntime_peer.py"],
        "vllm": [vllm, "vllm_peer.py"],
        "transformers": [torch, "transformers_peer.py"],
        "llama": [sys.executable, "llama_peer.py", str(options.folder / "llama/build/bin/llama-bench"), options.model],
    }
    logs = options.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    workers = {}
    for name in ["regard", *options.peers]:
        command, script, *rest = commands[name]
        log = logs / f"{name}.log"
        log.write_text("")
        workers[name] = Worker([command, str(HERE / script), *rest], log)
    return workers


def chosen_cases(options: argparse.Namespace) -> list[tuple[Group, Case]]:
    return [
        (group, case)
        for group in GROUPS
        if set(group.peers) & set(options.peers)
        for case in group.cases
        if options.filter in case.name
    ]


def output_of(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    name = output_of("git", "rev-parse", "--short", "HEAD") or "unknown"
    return name + (", changed" if output_of("git", "status", "--porcelain", "--untracked-files=no") else "")


def describe(options: argparse.Namespace) -> dict:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": cpu[1] if cpu else "unknown CPU", "cores": os.cpu_count(), "threads": options.threads},
        "versions": {},
        "peers": options.peers,
        "rounds": 0,
        "seconds": 0.1 if options.quick else 0.5,
        "cases": [],
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def note_reply(result: dict, measured: dict, peer: str, reply: dict) -> None:
    if "unsupported" in reply:
        measured["unsupported"][peer] = reply["unsupported"]
        return
    measured["milliseconds"].setdefault(peer, []).append(reply["milliseconds"])
    measured["others"].setdefault(peer, []).append(round(reply["others"], 3))
    if reply.get("note"):
        measured["notes"][peer] = reply["note"]
    machine, seen = result["machine"], reply.get("machine", {})
    if seen:
        machine["target"] = seen["target"]
        for name in ("fma_gflops", "read_gbs"):  # the best that regard saw of the machine
            machine[name] = max(seen[name], machine.get(name, 0))


def measure_round(options, workers: dict[str, Worker], result: dict, cases: list[tuple[Group, Case]]) -> None:
    by_name = {measured["case"]: measured for measured in result["cases"]}
    for group, case in cases:
        measured = by_name[case.name]
        for peer in ["regard", *group.peers]:
            if peer not in workers or peer in measured["unsupported"]:
                continue
            request = {"case": case.spec, "flags": case.flags, "threads": options.threads, "seconds": result["seconds"]}
            reply = workers[peer].ask_undisturbed(request)
            note_reply(result, measured, peer, reply)
            time = f"{reply['milliseconds']:.3f} ms" if "milliseconds" in reply else "-"
            disturbed = "milliseconds" in reply and reply["others"] > DISTURBED
            warning = f"  others took {100 * reply['others']:.0f} % of the machine" if disturbed else ""
            say(f"  {case.name:<46} {peer:<13} {time:>12}{warning}")
        save(options, result)  # an interrupted comparison can still be shown with --plot-only


def compare(options, workers: dict[str, Worker], cases: list[tuple[Group, Case]]) -> dict:
    result = describe(options)
    for worker in workers.values():
        result["versions"] |= worker.ask({}).get("versions", {})
    for _, case in cases:
        empty = {"case": case.name, "milliseconds": {}, "others": {}, "notes": {}, "unsupported": {}}
        result["cases"].append(empty)
    for turn in range(1 if options.quick else options.rounds):
        say(f"round {turn + 1}")
        result["rounds"] = turn + 1
        measure_round(options, workers, result, cases)
    return result


def save(options, result: dict) -> None:
    (options.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")


def show(options, result: dict) -> None:
    text = markdown(Result(result))
    print(text)
    (options.out / "peers.md").write_text(text)
    try:
        draw(Result(result), options.out / "peers.png")
        say(f"{options.out}: peers.json, peers.md, peers.png")
    except ImportError as error:
        say(f"no plot: {error}")


def check(options, workers: dict[str, Worker], cases: list[tuple[Group, Case]]) -> bool:
    good = True
    for group, case in cases:
        tolerance = TOLERANCE if {"f32", "int8"} & set(case.spec.split(":")) else HALF_TOLERANCE
        for peer in group.peers:
            if peer not in workers:
                continue
            reply = workers[peer].ask({"case": case.spec, "threads": options.threads, "check": True})
            if "error" not in reply:
                print(f"{case.spec:<46} {peer:<13} -        {reply['unsupported']}")
                continue
            bad = not reply["error"] <= tolerance
            good = good and not bad
            print(f"{case.spec:<46} {peer:<13} {reply['error']:.1e}  {'WRONG' if bad else 'good'}", flush=True)
    return good


def main() -> int:
    options = parse_options()
    if options.plot_only:
        options.out.mkdir(parents=True, exist_ok=True)
        show(options, json.loads(options.plot_only.read_text()))
        return 0
    cases = chosen_cases(options)
    if not cases:
        say("no such case")
        return 2
    # Ended politely, the driver ends its workers; ended otherwise, the kernel does (worker.die_with_parent).
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    workers = make_workers(options)
    try:
        if options.check:
            return 0 if check(options, workers, cases) else 1
        show(options, compare(options, workers, cases))
        return 0
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        for worker in workers.values():
            worker.end()


if __name__ == "__main__":
    sys.exit(main())
