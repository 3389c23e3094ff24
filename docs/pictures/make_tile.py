"""Draws docs/pictures/tile.svg: the life of a row tile against one key block. Standard library only."""

WIDTH, HEIGHT = 1040, 470
parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>',
]


def text(x, y, words, size=13, anchor="middle", weight="normal", colour="#222"):
    parts.append(
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{words}</text>'
    )


def box(x, y, w, h, fill, lines):
    parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="4" fill="{fill}" stroke="#444"/>')
    top = y + h / 2 - 8 * (len(lines) - 1) + 4
    for i, line in enumerate(lines):
        text(x + w / 2, top + 16 * i, line, weight="bold" if i == 0 else "normal")


def arrow(x1, y1, x2, y2, dashed=False):
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    parts.append(
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#444" stroke-width="1.5"{dash} marker-end="url(#a)"/>'
    )


MEMORY, SECOND, FIRST, REGISTER = "#e8e8e8", "#d6e6f5", "#fbe3c0", "#d8efd3"
for y, h, fill, label in (
    (20, 80, "#f6f6f6", "memory"),
    (110, 110, "#eef4fa", "L2 cache"),
    (230, 90, "#fdf3e3", "L1 cache"),
    (330, 110, "#eef8ec", "registers"),
):
    parts.append(f'<rect x="10" y="{y}" width="{WIDTH - 20}" height="{h}" fill="{fill}"/>')
    text(22, y + 18, label, anchor="start", colour="#777")

box(110, 35, 210, 50, MEMORY, ["keys of block i + 1", "[16 tiles][head_dim][16]"])
box(560, 35, 210, 50, MEMORY, ["values of block i + 1", "[v_head_dim/16][256][16]"])

box(110, 140, 210, 60, SECOND, ["keys of block i", "256 keys of one KV head"])
box(350, 140, 160, 60, SECOND, ["queries of the unit", "up to 240 rows"])
box(560, 140, 210, 60, SECOND, ["values of block i", "of the same KV head"])
box(820, 140, 170, 60, SECOND, ["partial of the unit", "max, sum, values"])

box(165, 250, 145, 55, FIRST, ["scores", "12 rows, 256 keys"])
box(395, 250, 200, 55, FIRST, ["weights", "2^(f (score - max)), in place"])
box(690, 250, 170, 55, FIRST, ["partial of the tile", "12 rows, this block"])

box(110, 360, 230, 60, REGISTER, ["1. q . k", "12 rows x 32 keys, 24 sums"])
box(395, 360, 200, 60, REGISTER, ["2. softmax of a row", "max, powers of 2, 16 sums"])
box(640, 360, 225, 60, REGISTER, ["3. weights . v", "12 rows x 32 columns, 24 sums"])
box(885, 360, 135, 60, REGISTER, ["4. merge", "in order of position"])

arrow(160, 85, 160, 138, True)
arrow(610, 85, 610, 138, True)
text(170, 106, "fetched while block i is used", 11, "start", colour="#555")
text(620, 106, "fetched while block i is used", 11, "start", colour="#555")
arrow(138, 200, 138, 358)
arrow(375, 200, 325, 358)
arrow(237, 360, 237, 307)
arrow(310, 290, 415, 358)
arrow(495, 360, 495, 307)
arrow(565, 305, 655, 358)
arrow(650, 200, 675, 358)
arrow(775, 360, 775, 307)
arrow(850, 305, 920, 358)
arrow(960, 360, 940, 202)
text(520, 460, "The next row tile of the unit takes the same way past the same block; then comes block i + 1.", 13)
parts.append("</svg>")
open(__file__.replace("make_tile.py", "tile.svg"), "w").write("\n".join(parts) + "\n")
