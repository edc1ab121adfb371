"""Shows a routed answer: in the terminal, as JSON, or as a picture (SVG, see pictures.py).

Where all experts choose the same token, each alone would write the same: these tokens are plain.
(The router may still change one: Eq. (1) adds whole distributions.) Tokens in
the set S, where the experts disagree, have the colour of the expert that was picked. Underlined is
what the router changed: the picked expert by itself would have written another token.
"""

import codecs
from html import escape

import torch

from fusionroute import informative, score
from toy_experts import tokenizer
from toy_experts.train import EXPERTS

COLOURS = {"math": 34, "code": 32, "instruct": 33, "router": 35}  # blue, green, yellow, magenta
SVG = {"math": "#0072B2", "code": "#00795A", "instruct": "#B54800", "router": "#A0407A"}


def in_S(experts, prompt, tokens):
    """For each token of an answer: do the experts disagree there? Runs all experts.

    Only the display needs this. The decoder runs the router and one expert per token.
    """
    ids = torch.tensor([prompt + tokens])                                 # (1, T)
    _, choice = score(experts, ids, torch.tensor([ids.size(1)]))          # (1, T-1, n)
    return informative(choice)[0, len(prompt) - 1:].tolist()


def pieces(tokens):
    """The text of each token; "" for a part of a character, whose last part brings all of it."""
    decoder, out = codecs.getincrementaldecoder("utf-8")("replace"), []
    for i, token in enumerate(tokens):
        end = token == tokenizer.END
        part = b"" if end else tokenizer.encoding.decode_single_token_bytes(token)
        last = end or tokens[i + 1:i + 2] in ([], [tokenizer.END])   # nothing more can complete it
        out.append(decoder.decode(part, last))
    return out


def alone(token):
    """A token shown by itself: quoted, with its leading space; a part of a character as hex."""
    raw = tokenizer.encoding.decode_single_token_bytes(token)
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return f"byte 0x{raw.hex()}"


def records(steps, S, method):
    """One dict per token (decode.Step, and whether it is in S): what --json prints."""
    for step, inside, text in zip(steps, S, pieces([s.token for s in steps])):
        no_expert = method == "router"
        weights = dict(zip(EXPERTS, (round(w, 4) for w in step.weights)))
        yield {"token": text, "id": step.token,
               "expert": "router" if no_expert else EXPERTS[step.pick],
               "weights": {} if no_expert else weights,
               "expert_choice": tokenizer.encoding.decode([step.expert_choice]),
               "changed": step.token != step.expert_choice, "in_S": inside}


def visible(row):
    """A token's text; a changed line break gets a sign, as an underline would not be seen."""
    return row["token"].replace("\n", "↵\n") if row["changed"] else row["token"]


def coloured(rows):
    """The answer with ANSI colours: S in colour, what the router changed underlined."""
    out = ""
    for r in rows:
        codes = [COLOURS[r["expert"]]] * r["in_S"] + [4] * r["changed"]
        style = f"\033[{';'.join(map(str, codes))}m" if codes else ""
        text = visible(r)
        out += f"{style}{text}\033[0m" if style and text else text
    return out


def plain(rows):
    """The answer without colours: S in brackets after the expert's name, changed tokens in «».

    >>> row = lambda token, expert, in_S, changed: dict(token=token, expert=expert, in_S=in_S,
    ...                                                 changed=changed)
    >>> plain([row("After", "code", False, False), row(" doubling", "math", True, True)])
    'After[math:« doubling»]'
    """
    out, last = "", None
    for r in rows:
        if r["token"]:                        # not the end, nor the first part of a character
            expert = r["expert"] if r["in_S"] else None
            if expert != last:
                out += "]" * bool(last) + f"[{expert}:" * bool(expert)
            out, last = out + (f"«{r['token']}»" if r["changed"] else r["token"]), expert
    return out + "]" * bool(last)


def legend(steps, rows, colour):
    """One line: how many tokens, who was picked in S, what the router changed."""
    picked = [r["expert"] for r in rows if r["in_S"]]
    names = {e: f"\033[{COLOURS[e]}m{e}\033[0m" if colour else e for e in picked}
    counts = ", ".join(f"{names[e]} {picked.count(e)}" for e in names)
    changed = ", ".join(f"{alone(s.expert_choice)} -> {alone(s.token)}" for s in steps
                        if s.token != s.expert_choice)
    return (f"({len(steps)} tokens with the end; the experts disagree at {len(picked)}"
            f"{': ' if picked else ''}{counts}; changed by the router: {changed or 'none'})")


def svg(prompt, rows, width=62):
    """A picture of an answer, with a white background, so that it can be read in dark mode too."""
    lines, column = [[]], 0
    for r in rows:
        for part in visible(r).splitlines(keepends=True):
            if column + len(part) > width and part.startswith(" "):
                lines, column, part = lines + [[]], 0, part[1:]
            style = f' fill="{SVG[r["expert"]]}" font-weight="bold"' if r["in_S"] else ""
            style += ' text-decoration="underline"' if r["changed"] else ""
            lines[-1].append(f"<tspan{style}>{escape(part.rstrip(chr(10)))}</tspan>")
            column += len(part)
            if part.endswith("\n"):
                lines, column = lines + [[]], 0
    used = list(dict.fromkeys(r["expert"] for r in rows if r["in_S"]))
    keys = ", ".join(f'<tspan fill="{SVG[e]}" font-weight="bold">{e}</tspan>' for e in used)
    notes = [f"in colour: the experts disagree, and this one was picked: {keys}",
             '<tspan text-decoration="underline">underlined</tspan>: changed by the router']
    words, question = prompt.split(" "), [""]
    for word in words:
        if len(question[-1]) + len(word) > width:
            question.append("")
        question[-1] += word + " "
    texts = [f'<tspan fill="#555">{escape(q)}</tspan>' for q in question]
    texts += [""] + ["".join(line) for line in lines] + [""]
    rows_svg = "".join(f'<text x="16" y="{28 + 22 * i}" xml:space="preserve">{text}</text>'
                       for i, text in enumerate(texts))
    height = 22 * len(texts) + 62
    for i, note in enumerate(notes):
        rows_svg += (f'<text x="16" y="{height - 32 + 18 * i}" font-size="12" fill="#555">{note}'
                     "</text>")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 {height}" width="600" '
            f'font-family="monospace" font-size="15"><rect width="600" height="{height}" rx="8" '
            f'fill="#fff" stroke="#ddd"/>{rows_svg}</svg>\n')
