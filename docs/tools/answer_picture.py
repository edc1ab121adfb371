"""Draws the README's picture of a routed answer, docs/answer.svg, and writes the lines below it.

    python -m toy_experts.pictures        with the weights in toy_experts/weights

The prompt is a test prompt, so no model has seen it. It was chosen among test prompts because it
shows what the sum of Eq. (1) is for: neither the router nor any expert answers it alone.
"""

from pathlib import Path

from toy_experts.decode_batch import decode_batch
from toy_experts.script import load_router

import decode
from toy_experts import script, show

PROMPT = ("Tom has 21 eggs. He loses 3 of them. Then he gives 7 away. How many eggs are there now? "
          "Finish with the word done.")
ROOT = Path(__file__).parent.parent
BEGIN = "<!-- begin: example, written by python -m toy_experts.pictures -->\n"
END = "<!-- end: example -->"


def routed():
    """The prompt's answer as the rows of show.records, and what each part alone answers."""
    router, experts, _ = load_router(script.WEIGHTS, "router", "cpu", "run bash run.sh")
    ids = decode.encode(PROMPT, router.lm.config.max_len)
    steps = list(decode.decode(router, experts, ids))
    inside = show.in_S(experts, ids, [step.token for step in steps])
    alone = {name: decode_batch(router, experts, [ids], **METHODS[name])[0].text()
             for name in ("math", "router")}
    return list(show.records(steps, inside, "fusionroute")), alone


def lines(alone):
    """The prompt, and what the math expert and the router write alone, as the README shows it."""
    texts = {"prompt:": PROMPT} | {f"{name} alone:": text for name, text in alone.items()}
    return "".join(f"    {name:<15}{text.replace(chr(10), ' (line break) ')}\n"
                   for name, text in texts.items())


def main():
    rows, alone = routed()
    script.write(ROOT / "docs" / "answer.svg", show.svg(PROMPT, rows))
    text = (ROOT / "README.md").read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise script.UserError(f"README.md must have the lines {BEGIN.strip()} and {END} once each")
    start = text.index(BEGIN) + len(BEGIN)
    script.write(ROOT / "README.md", text[:start] + lines(alone) + text[text.index(END):])
    print("saved docs/answer.svg and README.md")


if __name__ == "__main__":
    script.run(main)
