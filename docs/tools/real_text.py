"""Fills docs/real-text.md from extra/results/real_text.json, and draws docs/real-text.svg.

    python -m docs.tools.real_text       after extra.real.benchmarks has been run

A key is a path into the JSON file, such as sizes/all/tokens. A figure with an interval is written
with it; a share whose key ends in % is a percentage. The tables are built here.
"""

import json
from html import escape
from pathlib import Path

from docs.tools.pages import fill, percent, table
from toy_experts import script

DOCS = Path(__file__).parents[1]
PAGE, PICTURE = DOCS / "real-text.md", DOCS / "real-text.svg"
DOMAINS = ["math", "code", "general"]
RESULT = DOCS.parent / "extra" / "results" / "real_text.json"
NAMES = {
    "fusionroute": "**FusionRoute**",
    "phase1": "FusionRoute, phase 1 only",
    "routing_only": "routing only",
    "router": "the router alone",
    "co_llm": "Co-LLM-style, the router a choice",
    "tuned": "Fine-tuned Model",
    "two_tuned": "sum of two fine-tuned models",
    "product": "product of the experts",
    "generalist": "generalist",
    "base": "SmolLM2 itself",
    "oracle": "best expert per token (bounds choosing)",
    "own": "the domain's own expert, no router",
    "math": "math expert",
    "code": "code expert",
    "general": "general expert",
    "gap": "no code expert: FusionRoute, phase 1 only",
    "gap_routing_only": "no code expert: routing only",
    "gap_router": "no code expert: the router alone",
}
ANSWERING = {
    "fusionroute": "**FusionRoute**",
    "routing_only": "routing only",
    "own expert": "the set's own expert",
    "tuned": "Fine-tuned Model",
    "base": "SmolLM2 itself",
}
CLAIMS = {  # of the toy's ledger: row, the sign of the lead over it, and where
    "FusionRoute is ahead of the math expert": ("math", 1, "all"),
    "of the code expert": ("code", 1, "all"),
    "of the general expert": ("general", 1, "all"),
    "of the product of the experts": ("product", 1, "all"),
    "of the Fine-tuned Model": ("tuned", 1, "all"),
    "of the sum of two fine-tuned models": ("two_tuned", 1, "all"),
    "added logits help: it is ahead of routing only": ("routing_only", 1, "all"),
    "phase 2 helps: it is ahead of phase 1 only": ("phase1", 1, "all"),
    "the Co-LLM-style router is ahead of FusionRoute": ("co_llm", -1, "all"),
    "no code expert, on code: FusionRoute is ahead of routing only": (
        "gap_routing_only",
        1,
        "code",
    ),
    "no code expert, on code: of the router alone": ("gap_router", 1, "code"),
}
MEASURES = {"bits": "bits", "bits at T": "bits at T", "right": "next token"}
ROUNDING = {"bits": 0.003, "bits at T": 0.003, "right": 0.005}  # a smaller lead shows nothing
SETS = {"gsm8k-test": "GSM8K", "mbpp": "MBPP", "humaneval": "HumanEval", "ifeval": "IFEval"}


def said(value, digits=3):
    """[mean, low, high] -> "mean [low, high]"."""
    mean, low, high = (f"{v:.{digits}f}" for v in value)
    return f"{mean} [{low}, {high}]"


def ordered(result):
    return sorted(result["rows"], key=lambda row: result["rows"][row]["bits"]["all"][0])


def bits(result):
    rows = [["bits per byte", *DOMAINS, "all", "lead", "T", "all, at T", "lead, at T"]]
    for row in ordered(result):
        found = result["rows"][row]
        cells = [f"{found['bits'][d][0]:.3f}" for d in DOMAINS]
        cells += [said(found["bits"]["all"]), signed(found["lead, bits"]["all"])]
        at = [said(found["bits at T"]["all"]), signed(found["lead, bits at T"]["all"])]
        cells += [str(found["T"]), *at] if found["T"] else ["", "", ""]
        rows.append([NAMES[row], *cells])
    return "\n".join(table(rows))


def signed(value, digits=3):
    """A difference with its interval; nothing for FusionRoute itself."""
    mean, low, high = (f"{v:+.{digits}f}" for v in value)
    return "" if value == [0, 0, 0] else f"{mean} [{low}, {high}]"


def claims(result):
    """What the leads say of each claim: holds, if all of the interval is on the claim's side of 0.

    A lead that is not larger than bfloat16's rounding says nothing.
    """
    rows = [["claim", *MEASURES.values()]]
    for claim, (row, sign, where) in CLAIMS.items():
        verdicts = []
        for m, rounding in ROUNDING.items():
            mean, *interval = (sign * v for v in result["rows"][row][f"lead, {m}"][where])
            if abs(mean) <= rounding or min(interval) <= 0 <= max(interval):
                verdicts.append("cannot be said")
            else:
                verdicts.append("holds" if mean > 0 else "does not")
        rows.append([claim, *verdicts])
    return "\n".join(table(rows))


def facts(result):
    """Shares of the answers' tokens in per cent, FusionRoute's for each seed."""
    found = result["facts"]
    kinds = [*DOMAINS, "all"]
    rows = [["per cent of tokens", *kinds]]
    for name in ("S", "an expert is right"):
        rows.append([name, *(percent(found[d][name]) for d in kinds)])
    for name in ("overrules", "overrules, right", "overrules, wrong"):
        rows.append(
            [name, *(" and ".join(f"{100 * x:.1f}" for x in found[d][name]) for d in kinds)]
        )
    picks = [" and ".join("/".join(map(percent, p)) for p in found[d]["pick"]) for d in kinds]
    rows.append([f"picks, {'/'.join(DOMAINS)}", *picks])
    for who, of in (("best expert", "loss of the best expert"), ("sum", "loss of the sum")):
        for column, name in (("above_half", "loses more than half"), ("mean", "loses, mean")):
            cells = []
            for d in kinds:
                each = found[d][of] if isinstance(found[d][of], list) else [found[d][of]]
                cells.append(" and ".join(f"{100 * x[column]:.1f}" for x in each))
            rows.append([f"{who} {name}", *cells])
    return "\n".join(table(rows))


def answers(result):
    found = result["answers"]
    sets = [x for x in SETS if f"fusionroute/{x}" in found]  # --ifeval 0 leaves one out
    last = sets[-1]
    rows = [["right of all", *map(SETS.get, sets), f"{SETS[last]}: only it, only FusionRoute"]]
    for method, name in ANSWERING.items():
        cells = [found[f"{method}/{x}"] for x in sets]
        pairs = [*zip(found[f"{method}/{last}"]["which"], found[f"fusionroute/{last}"]["which"])]
        alone = f"{pairs.count(('1', '0'))}, {pairs.count(('0', '1'))}"
        rows.append([name, *(f"{c['right']} of {c['of']} {exact(c)}" for c in cells), alone])
    rows[1][-1] = ""  # FusionRoute against itself
    return "\n".join(table(rows))


def exact(cell):
    """Clopper and Pearson's 95% interval of a share, in per cent."""
    low, high = cell["interval"]
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def took(result):
    return f"{sum(x['cpu_minutes'] for x in result['took'].values()):.0f}"


def picture(result):
    """Bits per byte of every method: with its interval, and at the temperature that suits it."""
    rows = ordered(result)
    values = [v for r in rows for m in ("bits", "bits at T") for v in result["rows"][r][m]["all"]]
    low, high, left, width = min(values) - 0.02, max(values) + 0.02, 230, 720
    x = lambda v: round(left + (width - left - 20) * (v - low) / (high - low), 1)
    marks = []
    for i, row in enumerate(rows):
        y, found = 40 + 22 * i, result["rows"][row]
        name = NAMES[row].strip("*")
        marks.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        for m, colour, up in (("bits", "#D55E00", -4), ("bits at T", "#0072B2", 4)):
            if m == "bits at T" and not found["T"]:
                continue
            mean, a, b = found[m]["all"]
            marks.append(f'<path d="M{x(a)} {y + up}H{x(b)}" stroke="{colour}"/>')
            tip = f"<title>{escape(name)}, {m}: {said(found[m]['all'])}</title>"
            dot = f'<circle cx="{x(mean)}" cy="{y + up}" r="3.5" fill="{colour}">{tip}</circle>'
            marks.append(dot)
    bottom = 40 + 22 * len(rows)
    for tenth in range(int(low * 10) + 1, int(high * 10) + 1):
        at = x(tenth / 10)
        marks.insert(0, f'<path d="M{at} 26V{bottom - 10}" stroke="#ddd"/>')
        marks.append(f'<text x="{at}" y="{bottom + 6}" text-anchor="middle">{tenth / 10}</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 14}" role="img" '
        'aria-label="Bits per byte of every method" font-family="sans-serif" font-size="12">'
    )
    legend = (
        '<text x="12" y="16">Bits per byte, mean of three domains, with 95% intervals. Orange: as '
        "it is. Blue: at the temperature that suits it.</text>"
    )
    white = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, white, legend, *marks, "</svg>", ""])


def filled(text, result):
    """The text of the page, every marked place written anew."""
    tables = {f.__name__: f for f in (bits, claims, facts, answers, took)}

    def value(key):
        if key in tables:
            return tables[key](result)
        found = result
        for part in key.removesuffix("%").split("/"):
            found = found[int(part)] if isinstance(found, list) else found[part]
        if isinstance(found, list):
            of = key.split("/")[2]
            if of == "right":  # per cent
                return said([100 * v for v in found], 1)
            return (signed if of.startswith("lead") else said)(found)
        if isinstance(found, int):
            return f"{found:,}"
        return percent(found) if key.endswith("%") else str(found)

    return fill(text, value)


def main(argv=None):
    script.Parser(description=__doc__).parse_args(argv)
    result = json.loads(RESULT.read_text())
    script.write(PAGE, filled(PAGE.read_text(encoding="utf-8"), result))
    script.write(PICTURE, picture(result))
    print(f"filled {PAGE}, drew {PICTURE}")


if __name__ == "__main__":
    script.run(main)
