"""Shows a routed answer in the terminal or as JSON.

Where all experts choose the same token, each alone would write the same: these tokens are plain.
(The router may still change one: Eq. (1) adds whole distributions.) Tokens in
the set S, where the experts disagree, have the colour of the expert that was picked. Underlined is
what the router changed: the picked expert by itself would have written another token.
"""

import codecs
import os
import sys

import torch

from fusionroute import informative, score
from toy_experts import tokenizer
from toy_experts.script import EXPERTS

COLOURS = {"math": 34, "code": 32, "instruct": 33, "router": 35}  # blue, green, yellow, magenta


def in_S(experts, prompt, tokens):
    """For each token of an answer: do the experts disagree there? Runs all experts.

    Only the display needs this. The decoder runs the router and one expert per token.
    """
    ids = torch.tensor([prompt + tokens])  # (1, T)
    _, choice = score(experts, ids, torch.tensor([ids.size(1)]))  # (1, T-1, n)
    return informative(choice)[0, len(prompt) - 1 :].tolist()


def pieces(tokens):
    """The text of each token; "" for a part of a character, whose last part brings all of it."""
    decoder, out = codecs.getincrementaldecoder("utf-8")("replace"), []
    for i, token in enumerate(tokens):
        end = token == tokenizer.END
        part = b"" if end else tokenizer.encoding.decode_single_token_bytes(token)
        last = end or tokens[i + 1 : i + 2] in ([], [tokenizer.END])  # nothing more can complete it
        out.append(decoder.decode(part, last))
    return out


def records(experts, prompt, steps, method):
    """One dict per token, the end token's included: what --json prints.

    prompt: token ids. steps: what decode.decode yielded. method: a name of decode.METHODS.
    """
    tokens = [step.token for step in steps]
    rows = []
    for step, inside, text in zip(steps, in_S(experts, prompt, tokens), pieces(tokens)):
        routed = method not in ("router", *EXPERTS)
        weights = dict(zip(EXPERTS, (round(w, 4) for w in step.weights))) if routed else {}
        rows.append(
            {
                "token": text,
                "id": step.token,
                "expert": "router" if method == "router" else EXPERTS[step.pick],
                "weights": weights,
                "expert_choice": tokenizer.encoding.decode([step.expert_choice]),
                "changed": step.token != step.expert_choice,
                "in_S": inside,
            }
        )
    return rows


def as_json(rows, prompt, method):
    """The dicts that --json prints: one per token of the answer, then one with the whole answer."""
    ended = rows[-1]["id"] == tokenizer.END
    tokens = rows[:-1] if ended else rows
    answer = tokenizer.encoding.decode([row["id"] for row in tokens])
    end = rows[-1] if ended else None
    return [*tokens, {"answer": answer, "prompt": prompt, "method": method, "end": end}]


def answer(rows):
    """The answer and the line below it, with colours on a terminal that shows them."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return (coloured(rows) if colour else plain(rows)) + "\n" + legend(rows, colour)


def visible(row):
    """A token's text; a changed line break gets a sign, as an underline would not be seen."""
    return row["token"].replace("\n", "↵\n") if row["changed"] else row["token"]


def coloured(rows, colours=COLOURS):
    """The answer with ANSI colours: S in its expert's, what the router changed underlined."""
    out = ""
    for r in rows:
        codes = [colours[r["expert"]]] * r["in_S"] + [4] * r["changed"]
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
        if r["token"]:  # not the end, nor the first part of a character
            expert = r["expert"] if r["in_S"] else None
            if expert != last:
                out += "]" * bool(last) + f"[{expert}:" * bool(expert)
            out, last = out + (f"«{r['token']}»" if r["changed"] else r["token"]), expert
    return out + "]" * bool(last)


def legend(rows, colour):
    """One line: how many tokens, who was picked in S, what the router changed."""
    picked = [r["expert"] for r in rows if r["in_S"]]
    names = {e: f"\033[{COLOURS[e]}m{e}\033[0m" if colour else e for e in picked}
    counts = ", ".join(f"{names[e]} {picked.count(e)}" for e in names)
    changes = [
        f"{r['expert_choice']!r} -> {tokenizer.encoding.decode([r['id']])!r}"
        for r in rows
        if r["changed"]
    ]
    end = " with the end" if rows[-1]["id"] == tokenizer.END else ""
    return (
        f"({len(rows)} tokens{end}; the experts disagree at {len(picked)}"
        f"{': ' if picked else ''}{counts}; "
        f"changed by the router: {', '.join(changes) or 'none'})"
    )
