"""Tables and plot of one result."""

from __future__ import annotations

import statistics
from pathlib import Path

from cases import GROUPS, TITLES, Case, Group
from driver import DISTURBED

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = {
    "regard": "#000000",
    "torch": "#D55E00",
    "onnxruntime": "#56B4E9",
    "vllm": "#009E73",
    "transformers": "#E69F00",
    "llama": "#CC79A7",
}


class Result:
    """What compare.py wrote, its times as medians over the rounds."""

    def __init__(self, result: dict):
        self.result = result
        self.measured = {case["case"]: case for case in result["cases"]}

    def milliseconds(self, case: Case, peer: str) -> float | None:
        times = self.measured.get(case.name, {}).get("milliseconds", {}).get(peer)
        return statistics.median(times) if times else None

    def reason(self, case: Case, peer: str) -> str:
        return self.measured[case.name]["unsupported"].get(peer, "not measured")

    def groups(self) -> list[tuple[Group, list[Case], list[str]]]:
        """The tables that have rows: with their cases and the peers that were asked."""
        found = []
        for group in GROUPS:
            cases = [case for case in group.cases if case.name in self.measured]
            peers = [peer for peer in group.peers if peer in self.result["peers"]]
            if cases and peers:
                found.append((group, cases, peers))
        return found

    def disturbed(self) -> tuple[int, int]:
        """Measurements during which other programs were busy, and all of them."""
        shares = [
            share for case in self.result["cases"] for times in case.get("others", {}).values() for share in times
        ]
        return sum(share > DISTURBED for share in shares), len(shares)

    def spread(self) -> float:
        """How far the rounds of one case and peer lie apart, as a share of their median: the median over all."""
        spreads = [
            (max(times) - min(times)) / statistics.median(times)
            for case in self.result["cases"]
            for times in case["milliseconds"].values()
        ]
        return statistics.median(spreads) if spreads else 0.0


def number(value: float) -> str:
    """Three digits that count, never an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def machine_line(machine: dict) -> str:
    text = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    if "fma_gflops" in machine:
        text += (
            f" ({machine['target']}; {machine['fma_gflops']:.0f} GFLOP/s of f32 multiply-adds, "
            f"{machine['read_gbs']:.0f} GB/s of reading)"
        )
    return text


def header(result: Result) -> list[str]:
    raw = result.result
    versions = ", ".join(f"{name} {version}" for name, version in raw["versions"].items())
    rounds = f"{raw['rounds']} interleaved rounds" if raw["rounds"] > 1 else "one round"
    rounds += f" of at least {raw['seconds']} s a measurement"
    if raw["rounds"] > 1:
        rounds += f"; rounds lie {100 * result.spread():.0f} % apart (median)"
    disturbed, every = result.disturbed()
    if disturbed:
        rounds += (
            f". **Not a quiet machine: other programs had more than {100 * DISTURBED:.0f} % of it during {disturbed} of "
            f"{every} measurements**"
        )
    return [f"{raw['date']}, commit {raw['commit']}; {machine_line(raw['machine'])}; {versions}; {rounds}."]


def table(result: Result, group: Group, cases: list[Case], peers: list[str], notes: list[str]) -> list[str]:
    titles = [group.title, "regard", *(TITLES[peer] for peer in peers)]
    fastest = len(peers) > 1
    lines = ["| " + " | ".join(titles + ["× fastest peer"] * fastest) + " |"]
    lines.append("|---|" + "---:|" * (len(titles) - 1 + fastest))
    for case in cases:
        own = result.milliseconds(case, "regard")
        cells = [case.title, missing(result, case, "regard", notes) if own is None else f"{number(own)} ms"]
        ratios = []
        for peer in peers:
            time = result.milliseconds(case, peer)
            if time is None:
                cells.append(missing(result, case, peer, notes))
            elif own is None:
                cells.append(f"{number(time)} ms")
            else:
                ratios.append(time / own)
                cells.append(f"{number(time)} ms, {time / own:.2f}×")
        if fastest:
            cells.append(f"**{min(ratios):.2f}**" if ratios else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def missing(result: Result, case: Case, peer: str, notes: list[str]) -> str:
    reason = result.reason(case, peer)
    if reason not in notes:
        notes.append(reason)
    return f"- [{notes.index(reason) + 1}]"


def ways(result: Result) -> list[str]:
    """What the peers said of how they ran, as "PyTorch SDPA: enable_gqa (3 cases), ..."."""
    counts: dict[str, dict[str, int]] = {}
    for case in result.result["cases"]:
        for peer, note in case["notes"].items():
            ways_of_peer = counts.setdefault(peer, {})
            ways_of_peer[note] = ways_of_peer.get(note, 0) + 1
    return [
        f"{TITLES[peer]}: " + ", ".join(f"{note} ({count})" for note, count in found.items())
        for peer, found in counts.items()
    ]


def markdown(result: Result) -> str:
    lines, notes = header(result), []
    for group, cases, peers in result.groups():
        lines += ["", *table(result, group, cases, peers, notes)]
    lines += ["", "× is how many times regard's speed is the peer's: above 1, regard is faster."]
    if found := ways(result):
        lines += ["How each peer ran, with the number of cases: " + "; ".join(found) + "."]
    if notes:
        lines += ["", *(f"[{index}] {reason}  " for index, reason in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


def draw(result: Result, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = []
    for group, cases, peers in result.groups():
        rows = [(case, bars(result, case, peers)) for case in cases if result.milliseconds(case, "regard")]
        rows = [(case, found) for case, found in rows if len(found) > 1]
        if rows:
            panels.append((group, rows))
    if not panels:
        return
    heights = [sum(len(found) + 1 for _, found in rows) + 1.5 for _, rows in panels]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(10, 0.21 * sum(heights) + 1.6),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    longest = max(speed for _, rows in panels for _, found in rows for _, speed, _ in found)
    for (group, rows), axis in zip(panels, axes[:, 0], strict=True):
        draw_panel(axis, group, rows, longest)
    axes[-1, 0].set_xlabel("speed, regard = 1 (longer is faster; the label is the time)")
    shown = {peer for _, rows in panels for _, found in rows for peer, _, _ in found}
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[peer]) for peer in TITLES if peer in shown]
    figure.legend(
        handles,
        [TITLES[peer] for peer in TITLES if peer in shown],
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
    )
    raw, machine = result.result, result.result["machine"]
    quiet = "; NOT A QUIET MACHINE" if result.disturbed()[0] else ""
    figure.supxlabel(
        f"{raw['date']}, commit {raw['commit']}; {machine['cpu']}, {machine['threads']} threads{quiet}",
        fontsize="small",
        color="#555555",
    )
    figure.savefig(file, dpi=150)
    plt.close(figure)


def bars(result: Result, case: Case, peers: list[str]) -> list[tuple[str, float, float]]:
    """(peer, speed relative to regard, milliseconds) of the peers that ran the case, regard first."""
    own = result.milliseconds(case, "regard")
    times = [(peer, result.milliseconds(case, peer)) for peer in ["regard", *peers]]
    return [(peer, own / time, time) for peer, time in times if time]


def draw_panel(axis, group: Group, rows: list, longest: float) -> None:
    place, ticks = 0.0, []
    for case, found in rows:
        ticks.append((place + (len(found) - 1) / 2, case.title))
        for peer, speed, time in found:
            axis.barh(place, speed, height=0.86, color=COLOURS[peer])
            label = axis.text(speed + 0.008 * longest, place, f"{number(time)} ms", va="center", fontsize="x-small")
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # over the line at 1
            place += 1
        place += 1
    axis.axvline(1, color="#000000", linewidth=0.8, linestyle=":")
    axis.set_yticks([middle for middle, _ in ticks], [title for _, title in ticks], fontsize="small")
    axis.set_ylim(place - 1, -1)
    axis.set_xlim(0, 1.1 * longest)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(group.title, fontsize="medium", loc="left")
