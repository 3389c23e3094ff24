"""Draws docs/pictures/parallelism.svg: which of four ranks computes and keeps what. Needs matplotlib (3.11.2 drew it)."""

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "regard", "svg.fonttype": "none", "font.family": "sans-serif"})
import matplotlib.pyplot as plt
from matplotlib.patches import Patch, Rectangle

COLOURS = ["#7fb2dd", "#f2b56b", "#8fcf86", "#e39ab5"]  # of ranks 0..3
LENGTH, GAP = 1024, 96  # tokens of a sequence, and the space between the two
QUERY_HEADS, KV_HEADS = 8, 2
NEW = 96  # how wide a decoded token is drawn


def cell(axes, ranks, x, width, first_head, heads):
    """What these ranks have; where several have the same, each gets a stripe."""
    stripe = heads / len(ranks)
    for i, rank in enumerate(ranks):
        axes.add_patch(Rectangle((x, first_head + i * stripe), width, stripe, facecolor=COLOURS[rank], linewidth=0))
    axes.add_patch(Rectangle((x, first_head), width, heads, fill=False, edgecolor="#444", linewidth=0.7))


def sequences(new_token):
    """The first position of each sequence on the axis, and how wide it is drawn there."""
    for start in (0, LENGTH + GAP):
        yield (start + LENGTH - NEW, NEW) if new_token else (start, LENGTH)


def heads_of(ranks, count, all_heads):
    """Ranks of a row, with the heads each has."""
    for i, rank in enumerate(ranks):
        yield rank, i * all_heads // count, all_heads // count


def rows_of_tokens(axes, rows, runs):
    """Query heads of prefill: rows of ranks take runs of tokens in turn."""
    for x, width in sequences(new_token=False):
        for run in range(runs):
            for rank, first, heads in heads_of(rows[run % len(rows)], 2, QUERY_HEADS):
                cell(axes, [rank], x + run * width / runs, width / runs, first, heads)


def tensor_parallel(queries, kept):
    for x, width in sequences(new_token=False):
        for rank, first, heads in heads_of(range(4), 4, QUERY_HEADS):
            cell(queries, [rank], x, width, first, heads)
        for head in range(KV_HEADS):
            cell(kept, [2 * head, 2 * head + 1], x, width, head, 1)


def context_parallel(queries, kept, runs):
    rows_of_tokens(queries, [[0, 1], [2, 3]], runs)
    for x, width in sequences(new_token=False):
        for head in range(KV_HEADS):
            cell(kept, [head, head + 2], x, width, head, 1)


def data_parallel(queries, kept):
    for row, (x, width) in enumerate(sequences(new_token=True)):
        for rank, first, heads in heads_of([2 * row, 2 * row + 1], 2, QUERY_HEADS):
            cell(queries, [rank], x, width, first, heads)
    for row, (x, width) in enumerate(sequences(new_token=False)):
        for head in range(KV_HEADS):
            cell(kept, [2 * row + head], x, width, head, 1)


def flash_decoding(queries, kept):
    for x, width in sequences(new_token=True):
        for rank, first, heads in heads_of(range(4), 4, QUERY_HEADS):
            cell(queries, [rank], x, width, first, heads)
    for x, width in sequences(new_token=False):
        for head in range(KV_HEADS):
            for run in range(4):
                cell(kept, [2 * head + run % 2], x + run * width / 4, width / 4, head, 1)


PANELS = [
    ("TP 4", "both stages", tensor_parallel),
    ("CP 2 x TP 2, contiguous", "prefill; decode is TP 4", lambda q, k: context_parallel(q, k, 2)),
    ("CP 2 x TP 2, strided", "prefill; tokens drawn wider", lambda q, k: context_parallel(q, k, 8)),
    ("DP 2 x TP 2", "decode", data_parallel),
    ("TP 4, flash decoding", "decode; runs of 256 tokens", flash_decoding),
]

figure, grid = plt.subplots(2, len(PANELS), figsize=(14, 5.2), height_ratios=[2, 1])
for column, (name, stage, draw) in enumerate(PANELS):
    queries, kept = grid[0][column], grid[1][column]
    draw(queries, kept)
    queries.set_title(f"{name}\n", fontsize=11, fontweight="bold")
    queries.text(0.5, 1.03, stage, transform=queries.transAxes, ha="center", fontsize=9.5, color="#555")
    for axes, heads in ((queries, QUERY_HEADS), (kept, KV_HEADS)):
        axes.set_xlim(-10, 2 * LENGTH + GAP + 10)
        axes.set_ylim(heads + 0.05, -0.05)
        axes.set_yticks([i + 0.5 for i in range(heads)], [str(i) for i in range(heads)], fontsize=8.5)
        axes.set_xticks([])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for start in (0, LENGTH + GAP):
            axes.add_patch(
                Rectangle((start, 0), LENGTH, heads, fill=False, edgecolor="#999", linewidth=0.7, linestyle=(0, (2, 2)))
            )
    kept.set_xticks([LENGTH / 2, LENGTH * 1.5 + GAP], ["sequence A", "sequence B"], fontsize=9.5)
grid[0][0].set_ylabel("who computes which\nquery heads of which tokens", fontsize=10)
grid[1][0].set_ylabel("who keeps which\nKV heads", fontsize=10)
figure.legend(
    handles=[Patch(facecolor=colour, edgecolor="#444", label=f"rank {i}") for i, colour in enumerate(COLOURS)],
    loc="lower center",
    ncols=4,
    frameon=False,
    fontsize=10,
)
figure.subplots_adjust(left=0.066, right=0.995, top=0.87, bottom=0.145, wspace=0.13, hspace=0.1)
figure.savefig("docs/pictures/parallelism.svg", metadata={"Date": None})
