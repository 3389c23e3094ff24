"""Draws docs/pictures/pages.svg, rings.svg and sharing.svg. Standard library only."""

A, B, FREE, GONE, SHARED, NEW = "#d6e6f5", "#fbe3c0", "#ffffff", "#e8e8e8", "#d8efd3", "#f5d6e0"


class Picture:
    def __init__(self, width, height):
        self.size = (width, height)
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
            f'font-size="13">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>',
        ]

    def text(self, x, y, words, size=13, anchor="middle", colour="#222", weight="normal"):
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
            f'font-weight="{weight}">{words}</text>'
        )

    def box(self, x, y, w, h, fill, words="", second=""):
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{fill}" stroke="#444"/>')
        if second:
            self.text(x + w / 2, y + h / 2 - 3, words, weight="bold")
            self.text(x + w / 2, y + h / 2 + 13, second, size=11)
        elif words != "":
            self.text(x + w / 2, y + h / 2 + 5, words)

    def arrow(self, x1, y1, x2, y2, dashed=False):
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#444" stroke-width="1.3"{dash} '
            f'marker-end="url(#a)"/>'
        )

    def save(self, name):
        with open(f"docs/pictures/{name}.svg", "w", encoding="utf-8") as file:
            file.write("\n".join(self.parts + ["</svg>", ""]))


def pages():
    p = Picture(900, 330)
    p.text(20, 30, "what the kernels see", anchor="start", colour="#777")
    p.text(20, 66, "slot 0, 83 tokens", anchor="start")
    p.text(20, 126, "slot 1, 40 tokens", anchor="start")
    for i, words in enumerate(["0..31", "32..63", "64..82"]):
        p.box(180 + 110 * i, 45, 110, 34, A, words)
    p.text(20, 176, "tables", anchor="start", colour="#777")
    p.text(20, 206, "slot 0: 4, 1, 6", anchor="start")
    p.text(20, 226, "slot 1: 0, 3", anchor="start")
    p.text(20, 276, "the pool", anchor="start", colour="#777")
    owner = {4: (A, "0..31"), 1: (A, "32..63"), 6: (A, "64..82"), 0: (B, "0..31"), 3: (B, "32..39")}
    for page in range(8):
        fill, words = owner.get(page, (FREE, "free"))
        p.box(180 + 85 * page, 255, 85, 50, fill, f"page {page}", words)
    for i, page in enumerate([4, 1, 6]):
        p.arrow(235 + 110 * i, 79, 222 + 85 * page, 253)
    for i, words in enumerate(["0..31", "32..39"]):
        p.box(180 + 110 * i, 105, 110, 34, B, words)
    for i, page in enumerate([0, 3]):
        p.arrow(235 + 110 * i, 139, 222 + 85 * page, 253, dashed=True)
    p.save("pages")


def rings():
    p = Picture(900, 300)
    p.text(20, 26, "a window of 40 tokens, pages of 16; the sequence grows to the right", anchor="start", colour="#777")
    for row, (length, first, held) in enumerate([(40, 0, 3), (56, 1, 3), (90, 3, 3)]):
        y = 60 + 75 * row
        p.text(20, y + 22, f"{length} tokens", anchor="start")
        for page in range(7):
            end = page * 16 + 16
            if page < first:
                p.box(140 + 105 * page, y, 105, 36, GONE, "given back")
            elif page * 16 < length:
                p.box(140 + 105 * page, y, 105, 36, A, f"{page * 16}..{min(end, length) - 1}")
        # What the next token sees, itself included.
        left = 140 + 105 / 16 * max(0, length - 39)
        right = 140 + 105 / 16 * (length + 1)
        p.parts.append(
            f'<line x1="{left}" y1="{y + 46}" x2="{right}" y2="{y + 46}" stroke="#b03060" stroke-width="3"/>'
        )
        p.text((left + right) / 2, y + 62, f"what token {length} sees", size=11, colour="#b03060")
    p.save("rings")


def sharing():
    p = Picture(900, 340)
    p.text(20, 26, "tokens of three prompts that begin alike; each box is a page", anchor="start", colour="#777")
    p.box(60, 140, 150, 44, SHARED, "page 2", "held 5 times")
    p.box(270, 140, 150, 44, SHARED, "page 5", "held 5 times")
    p.box(480, 60, 150, 44, A, "page 7", "A, and the tree")
    p.box(480, 140, 150, 44, B, "page 0", "B, and the tree")
    p.box(480, 220, 150, 44, SHARED, "page 9", "C and its fork")
    p.box(700, 60, 150, 44, A, "page 1", "A alone: not full")
    p.box(700, 265, 150, 44, NEW, "page 3", "the fork's copy")
    p.arrow(210, 162, 268, 162)
    for y in (82, 162, 242):
        p.arrow(420, 162, 478, y)
    p.arrow(630, 82, 698, 82)
    p.arrow(630, 250, 698, 285, dashed=True)
    p.text(665, 325, "copied when the fork writes to it", size=11)
    p.text(135, 205, "root of a salt: the first page", size=11)
    p.save("sharing")


pages()
rings()
sharing()
