r"""Answer with a trained router, and show which expert wrote what: Eq. (1).

    python -m extra.real.decode "What is 38 mod 5?" --router own/seed0/router
    python -m extra.real.decode --router ...          a conversation; /new begins another
    python -m extra.real.decode --router ... < FILE   a prompt a line, each by itself
    python -m extra.real.decode "..." --json ...      one JSON object per token, then the answer

In a prompt \n is a line break; not in FILE with --json, where prompts may have LaTeX's \neq.

Tokens in S, where the experts disagree, are coloured, or in brackets: [math:18]. What the router
changed is underlined, or in «». --method leaves parts of Eq. (1) out:
    fusionroute    the router's logits plus the picked expert's
    routing_only   the picked expert alone
    router         the router's language model alone
    NAME           one expert alone
"""

import json
import os
import re
import sys
from dataclasses import dataclass
from itertools import cycle

import torch

from extra.real import runs
from extra.real.data import Encoder, Wrong, check_room
from extra.real.loading import longest
from extra.real.modeling import FusionRoute
from extra.tokenizers import real as other
from fusionroute import informative
from toy_experts import script, show
from toy_experts.script import UserError

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal obeys: shown as \x1b


@dataclass
class Settings:
    prompt: str = None  # without it, prompts are read line by line
    router: str = ""  # DIR: what a training wrote, OUT/seedN/NAME
    experts: list = ()  # NAME=DIR NAME=DIR ...: where the experts are now, if they have moved
    method: str = "fusionroute"  # fusionroute, routing_only, router, or the name of an expert
    device: str = "auto"  # auto, cuda, mps or cpu
    fuse: str = "tokens"  # tokens; bytes or spans: experts with other tokenizers
    dtype: str = "float32"  # of all models; bfloat16 halves what they take
    max_new: int = 256  # longest answer, in tokens; with bytes, in bytes
    temperature: float = 0.0  # 0: greedy, as in the paper; 1: sample from the fused distribution
    top_k: int = 0  # sample from this many of the likeliest tokens; 0: from all
    top_p: float = 1.0  # sample from the likeliest tokens with this probability together
    seed: int = 0  # of the random numbers
    system: str = ""  # a system message before each conversation
    json: bool = False  # one JSON object per token, then one with the answer

    def __post_init__(self):
        script.positive(self, "max_new")
        script.positive(self, "temperature", "top_k", "seed", or_zero=True)
        script.one_of(self, "dtype", ("float32", "bfloat16", "float16"))
        script.one_of(self, "fuse", ("tokens", "bytes", "spans"))
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p is {self.top_p}, and must be above 0 and at most 1")
        if not self.router:
            raise UserError("--router DIR is needed: what train_sft or train_cdpo wrote")
        self.experts = runs.named(self.experts)


def load(s):
    """The FusionRoute in --router, set to --method."""
    if not os.path.exists(s.router):
        half = " yet: its training is unfinished, start it again"
        raise UserError(f"there is no {s.router}" + half * os.path.exists(f"{s.router}.state"))
    if not os.path.exists(f"{s.router}/W.safetensors"):
        raise UserError(f"{s.router} has no W.safetensors: it is no trained router")
    how = {"dtype": getattr(torch, s.dtype), "device_map": {"": script.device(s.device)}}
    model = FusionRoute.from_pretrained(s.router, expert_paths=s.experts, **how)
    if s.fuse == "tokens":
        s.fuse = model.config.fuse  # as it was trained
    if s.method == "router":
        s.fuse = "tokens"  # its own
    if s.fuse == "spans" and s.temperature:
        raise UserError("--fuse spans finds the likeliest token only: sample with --fuse bytes")
    if s.fuse == "bytes" and (s.top_k or s.top_p < 1):
        raise UserError("--fuse bytes samples from all bytes: leave out --top_k and --top_p")
    names = [name for name, _ in model.config.experts]
    script.one_of(s, "method", ("fusionroute", "routing_only", "router", *names))
    model.use_expert = s.method != "router"
    model.use_router = s.method in ("fusionroute", "router")
    model.only = names.index(s.method) if s.method in names else None
    return model


@torch.no_grad()
def answer(model, messages, s):
    """Answer a conversation. Returns one dict per new token, what --json prints; see show.py."""
    if s.fuse != "tokens":
        return other.answer(model, messages, s)
    tokenizer, names = model.tokenizer, [name for name, _ in model.config.experts]
    try:
        prompt = torch.tensor([Encoder(tokenizer).prompt(messages)], device=model.device)
    except Wrong as e:
        raise UserError(str(e)) from e
    check_room("a model", longest(model.router, *model.experts), prompt.size(1), s.max_new)
    sampling = {"do_sample": True, "temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p}
    how = sampling if s.temperature else {"do_sample": False, "assistant_model": model.router}
    if not model.use_expert or model.only is not None:
        how.pop("assistant_model", None)  # there is nothing to check, or nothing drafts as well
    torch.manual_seed(s.seed)
    ids = model.generate(prompt, max_new_tokens=s.max_new, **how)  # (1, T)
    new = ids[0, prompt.size(1) :].tolist()
    inside = [None] * len(new)  # unknown: experts with other tokens cannot read the router's
    if model.config.fuse == "tokens":  # display only: all experts
        choices = torch.stack([e(input_ids=ids).logits.argmax(-1) for e in model.experts], -1)
        inside = informative(choices)[0, prompt.size(1) - 1 :].tolist()
    texts = pieces(tokenizer, new)
    rows = []
    for i, token in enumerate(new):
        trace = model.trace
        own = int(trace.choices[0, i]) if trace else token
        weights = zip(names, (round(w, 4) for w in trace.weights[0, i].tolist())) if trace else ()
        rows.append(
            {
                "token": texts[i],
                "id": token,
                "expert": names[trace.picks[0, i]] if trace else "router",
                "weights": dict(weights),
                "expert_choice": tokenizer.decode([own]),
                "changed": token != own,
                "in_S": inside[i],
            }
        )
    return rows


def pieces(tokenizer, ids):
    """The text of each token; "" for a part of a character, whose last part brings all of it."""
    out, said = [], ""
    for t in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:t], skip_special_tokens=True)
        whole = t == len(ids) or not text.endswith("\ufffd")
        out.append(text[len(said) :] if whole else "")
        said = text if whole else said
    return out


def legend(rows, names, fuse):
    """One line: how many tokens, who was picked in S, what the router changed."""
    picked = [r["expert"] for r in rows if r["in_S"]]
    counts = ", ".join(f"{name} {picked.count(name)}" for name in names if name in picked)
    if fuse != "tokens":
        return f"({fuse}: {counts})"
    if rows[0]["in_S"] is None:  # --method router
        return f"({len(rows)} tokens)"
    changes = [f"{r['expert_choice']!r} -> {r['token']!r}" for r in rows if r["changed"]]
    changes = changes[:12] + ["..."] * (len(changes) > 12)
    return (
        f"({len(rows)} tokens; experts disagree at {len(picked)}{': ' * bool(counts)}{counts}; "
        f"changed by the router: {', '.join(changes) or 'none'})"
    )


def respond(model, messages, s):
    """Answer a conversation on the terminal; returns the answer's text."""
    rows, names = answer(model, messages, s), [name for name, _ in model.config.experts]
    ends = model.generation_config.eos_token_id
    ended = rows[-1]["id"] in (ends if isinstance(ends, list) else [ends])
    text = "".join(r["token"] for r in rows)
    if s.json:
        last = {"answer": text, "prompt": messages[-1]["content"], "method": s.method}
        last["end"] = rows.pop() if ended else None
        print("\n".join(map(json.dumps, [*rows, last])))
        return text
    for r in rows:
        r["token"] = CONTROL.sub(lambda c: repr(c[0])[1:-1], r["token"])
    colours = dict(zip(names, cycle([34, 32, 33, 36, 31, 94]))) | {"router": 35}  # blue, green, ...
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(show.coloured(rows, colours) if colour else show.plain(rows))
    print(legend(rows, names, s.fuse) + ("" if ended else f" (stopped: --max_new {s.max_new})"))
    return text


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    if s.prompt is not None and not s.prompt.strip():
        raise UserError('the prompt is empty: write a question, such as "What is 38 mod 5?"')
    model = load(s)
    start = [{"role": "system", "content": s.system}] * bool(s.system)
    talk = list(start)

    def say(line):
        if line.strip() == "/new":
            talk[:] = start
            return
        text = line.encode(errors="replace").decode()  # bytes that are no character
        if s.prompt is not None or not s.json:
            text = text.replace("\\n", "\n")
        asked = [*talk, {"role": "user", "content": text}]
        said = respond(model, asked, s)
        if sys.stdin.isatty() and s.prompt is None:  # a conversation goes on
            talk[:] = [*asked, {"role": "assistant", "content": said}]

    if s.prompt is not None:
        say(s.prompt)
    else:
        script.each_line(say, echo=not s.json)


if __name__ == "__main__":
    runs.run(main)
