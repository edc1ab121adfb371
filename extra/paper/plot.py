"""The one plot of the results, as SVG: for each label and line a dot (mean) and ticks (seeds)."""

from html import escape
from statistics import mean

COLOURS = ("#D55E00", "#0072B2", "#E69F00", "#666666", "#009E73", "#CC79A7", "#56B4E9")
WIDTH, STEP, GAP, LETTER = 720, 11, 8, 6.2  # pixels: a row's height, space between labels, a letter


def draw(rows, title):
    """rows: [(label, line, shares, one a seed)], in order -> the text of an SVG of accuracies."""
    lines = list(dict.fromkeys(line for _, line, _ in rows))
    left = 16 + LETTER * max(len(label) for label, _, _ in rows)
    wide = 40 + LETTER * max(map(len, lines))  # of one entry of the legend
    per_row = max(1, int(WIDTH // wide))
    top = 24 + 16 * ((len(lines) - 1) // per_row)
    low = min(int(10 * min(shares)) for _, _, shares in rows) / 10  # the axis begins at a full ten
    marks, y, before = [], top, None

    def x(share):
        return round(left + (WIDTH - left - 24) * (share - low) / (1 - low), 1)

    for label, line, shares in rows:
        if label != before:
            y += GAP
            marks.append(text(left - 8, y + 8, label, "end"))
        colour = COLOURS[lines.index(line)]
        ticks = "".join(f"M{x(v)} {y}v8" for v in shares)
        each = ", ".join(f"{100 * v:.1f}" for v in shares)
        said = escape(f"{label}, {line}: {100 * mean(shares):.1f} ({each})")
        marks.append(f'<path d="{ticks}" stroke="{colour}"/>')
        dot = f'<circle cx="{x(mean(shares))}" cy="{y + 4}" r="3.5" fill="{colour}">'
        marks.append(f"{dot}<title>{said}</title></circle>")
        y, before = y + STEP, label
    axis = []
    for per_cent in range(round(100 * low), 101, 10):
        at = x(per_cent / 100)
        axis.append(f'<path d="M{at} {top}V{y + 4}" stroke="#ddd"/>')
        axis.append(text(at, y + 18, f"{per_cent}%", "middle"))
    legend = []
    for i, line in enumerate(lines):
        at, row = 12 + i % per_row * wide, 14 + i // per_row * 16
        legend.append(f'<circle cx="{at}" cy="{row - 4}" r="3.5" fill="{COLOURS[i]}"/>')
        legend.append(text(at + 8, row, line))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 24}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="11">'
    )
    return "\n".join(
        [
            head,
            '<rect width="100%" height="100%" fill="#fff"/>',
            *axis,
            *legend,
            *marks,
            "</svg>",
            "",
        ]
    )


def text(x, y, words, anchor="start"):
    return f'<text x="{x:g}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
