"""x"""


def percent(x):
    return "-" if x is None else f"{100 * x:.0f}"  # None: a gap of 0 leaves nothing uncovered, few prompts may hit nothing


def table(rows):
    """Rows of strings, the head first, as a Markdown table that also reads well in a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0])] + [x.rjust(w) for x, w in zip(row[1:], widths[1:])]) + " |" for row in rows]
    rule = "|" + "-" * (widths[0] + 2) + "|" + "|".join("-" * (w + 1) + ":" for w in widths[1:]) + "|"
    return [lines[0], rule, *lines[1:]]
