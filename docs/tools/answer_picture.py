"""Draws the README's picture of a routed answer, docs/answer.svg, and writes the lines below it.

    python -m docs.tools.answer_picture     with the weights in toy_experts/weights

The prompt is a test prompt, so no model has seen it. It was chosen among test prompts because it
shows what the sum of Eq. (1) is for: neither the router nor any expert answers it alone.
"""

import textwrap
from html import escape
from pathlib import Path

import decode
from docs.tools.pages import fill
from toy_experts import script, show
from toy_experts.decode_batch import decode_batch

PROMPT = (
    "Tom has 21 eggs. He loses 3 of them. Then he gives 7 away. How many eggs are there now? "
    "Finish with the word done."
)
ROOT = Path(__file__).parents[2]
COLOURS = {"math": "#0072B2", "code": "#00795A", "instruct": "#B54800", "router": "#A0407A"}
COLUMNS = 62  # characters in a line of the picture


def routed():
    """The prompt's answer as the rows of show.records, and what two of the models answer alone."""
    router, experts, _ = script.load_router(script.WEIGHTS, "router", "cpu", "run bash run.sh")
    ids = decode.encode(PROMPT, router.lm.config.max_len)
    rows = show.records(experts, ids, list(decode.decode(router, experts, ids)), "fusionroute")
    alone = {
        name: decode_batch(router, experts, [ids], **decode.METHODS[name])[0].text()
        for name in ("math", "router")
    }
    return rows, alone


# --- the picture ---------------------------------------------------------------------------------


def answer_lines(rows):
    """The answer as lines of <tspan>s, of at most COLUMNS characters."""
    lines, column = [""], 0
    for row in rows:
        for part in show.visible(row).splitlines(keepends=True):
            if column + len(part) > COLUMNS and part.startswith(" "):
                lines.append("")
                column, part = 0, part[1:]
            style = f' fill="{COLOURS[row["expert"]]}" font-weight="bold"' if row["in_S"] else ""
            style += ' text-decoration="underline"' if row["changed"] else ""
            lines[-1] += f"<tspan{style}>{escape(part.rstrip(chr(10)))}</tspan>"
            column += len(part)
            if part.endswith("\n"):
                lines.append("")
                column = 0
    return lines


def svg(prompt, rows):
    """The picture: prompt, answer, legend. Its background is white, also in dark mode."""
    used = dict.fromkeys(row["expert"] for row in rows if row["in_S"])
    names = ", ".join(f'<tspan fill="{COLOURS[e]}" font-weight="bold">{e}</tspan>' for e in used)
    notes = [
        f"in colour: the experts disagree, and this one was picked: {names}",
        '<tspan text-decoration="underline">underlined</tspan>: changed by the router',
    ]
    lines = textwrap.wrap(prompt, COLUMNS)
    texts = [f'<tspan fill="#555">{escape(line)} </tspan>' for line in lines]
    texts += ["", *answer_lines(rows), ""]
    body = "".join(
        f'<text x="16" y="{28 + 22 * i}" xml:space="preserve">{text}</text>'
        for i, text in enumerate(texts)
    )
    height = 22 * len(texts) + 62
    for i, note in enumerate(notes):
        y = height - 32 + 18 * i
        body += f'<text x="16" y="{y}" font-size="12" fill="#555">{note}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 {height}" width="600" '
        f'font-family="monospace" font-size="15"><rect width="600" height="{height}" rx="8" '
        f'fill="#fff" stroke="#ddd"/>{body}</svg>\n'
    )


# --- the lines below it --------------------------------------------------------------------------


def example(alone):
    """The prompt, and what the math expert and the router write alone, as the README shows it."""
    texts = {"prompt:": PROMPT} | {f"{name} alone:": text for name, text in alone.items()}
    return "\n".join(
        f"    {name:<15}{text.replace(chr(10), ' (line break) ')}" for name, text in texts.items()
    )


def main(argv=None):
    script.Parser(description=__doc__).parse_args(argv)
    rows, alone = routed()
    script.write(ROOT / "docs" / "answer.svg", svg(PROMPT, rows))
    readme = ROOT / "README.md"
    value = {"example": example(alone)}.get  # the README's other places belong to other programs
    script.write(readme, fill(readme.read_text(encoding="utf-8"), value))
    print("saved docs/answer.svg and README.md")


if __name__ == "__main__":
    script.run(main)
