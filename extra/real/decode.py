"""Answer prompts with models of your own, and show which expert wrote what: Eq. (1). Read the ground floor's decode.py first.

    python -m extra.real.decode "PROMPT" --router own/seed0/router --experts math=DIR code=DIR
    python -m extra.real.decode --router ...          a conversation; /new begins another, an empty line or Ctrl-D ends it
    python -m extra.real.decode --router ... < FILE   a prompt a line, each by itself, \\n in it for a line break; blank lines are skipped
    python -m extra.real.decode --json "PROMPT" ...   one JSON object per token, then one with the answer

The experts must be those that the router was trained with, in the same order. --method leaves parts of Eq. (1) out:
    fusionroute    the router's logits plus the picked expert's
    routing_only   the picked expert alone
    router         the router's language model alone
    NAME           one expert alone

fusionroute decodes in blocks (extra/speed/block.py): the router drafts, and each expert checks what it is picked for in one pass. The
tokens are those of --block 1, token by token; in bfloat16, rounding may decide otherwise here and there. --top_k and --top_p decode token
by token.
"""

import json
import os
import re
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from extra.common import one_of
from extra.real import own
from extra.speed.block import Lookup, Trace, block_decode
from fusionroute import fuse
from model import Uniform, sample
from toy_experts import run
from toy_experts.batch import read_on
from toy_experts.run import UserError

METHODS = {"fusionroute": {}, "routing_only": {"use_router": False}, "router": {"use_expert": False}}


@dataclass
class Settings:
    device: str = "cpu"          # auto, cuda, mps or cpu
    method: str = "fusionroute"  # fusionroute, routing_only, router, or the name of an expert
    block: int = 32              # fusionroute: tokens drafted at most before the experts check them; 1: token by token
    temperature: float = 0.0     # 0: greedy, as in the paper; 1: sample from the fused distribution
    top_k: int = 0               # sample from this many of the likeliest tokens; 0: from all
    top_p: float = 1.0           # sample from the likeliest tokens with this probability together
    seed: int = 0                # of the random numbers
    system: str = ""             # a system message before each conversation

    def __post_init__(self):
        run.positive(self, "block")
        run.positive(self, "temperature", "top_k", "seed", or_zero=True)
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p is {self.top_p}, and must be above 0 and at most 1")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise UserError("--top_k and --top_p are about sampling: they need --temperature above 0")


@torch.inference_mode()
def decode_batch(router, experts, prompts, ends, max_new, use_router=True, use_expert=True, only=None, temperature=0.0, top_k=0, top_p=1.0,
                 seed=0):
    """Eq. (1) token by token for a batch of prompts (lists of token ids of any lengths). Returns one Trace a prompt.

    As toy_experts.batch.decode_batch, for tokenizers with several end tokens (`ends`) and models on any device in any dtype.
    """
    device, B = router.W.weight.device, len(prompts)
    have = torch.tensor([len(p) for p in prompts], device=device)                         # (B,)
    text = torch.zeros(B, int(have.max()) + max_new, dtype=torch.long, device=device)     # (B, T)
    for b, p in enumerate(prompts):
        text[b, :len(p)] = torch.tensor(p)
    room = min(text.size(1), router.lm.config.max_len)
    router_cache, *caches = [model.new_cache(B, room) for model in (router.lm, *experts)]
    uniform, traces, stop = Uniform(B, seed), [Trace() for _ in prompts], torch.tensor(ends, device=device)
    rows = torch.arange(B, device=device)                                                 # (b,): the answers that have not ended

    for _ in range(max_new):
        if use_router or only is None:
            router_logits, w = read_on(router, router_cache, rows, text, have)            # (b, V), (b, n)
        if only is None:
            weights, pick = w.softmax(-1), w.argmax(-1)                                   # (b, n), (b,): I*
        else:
            pick = torch.full_like(rows, only)                                            # (b,)
            weights = F.one_hot(pick, len(experts)).float()                               # (b, n)
        if use_expert:
            expert_logits = torch.empty(len(rows), router.lm.config.vocab_size, device=device)  # (b, V)
            for i in pick.unique().tolist():                                              # an expert that nobody picked does not run
                mine = (pick == i).nonzero()[:, 0]                                        # (m,)
                expert_logits[mine] = read_on(experts[i], caches[i], rows[mine], text, have)[0].float()
        alone = expert_logits if use_expert else router_logits                            # (b, V)
        logits = fuse(router_logits, expert_logits) if use_router and use_expert else alone  # (b, V), Eq. (1)
        if top_k:
            logits = logits.masked_fill(logits < logits.topk(min(top_k, logits.size(-1))).values[:, -1:], float("-inf"))
        token = sample(logits, temperature, top_p, uniform(rows.tolist(), device) if temperature else None)  # (b,)

        columns = [x.tolist() for x in (token, pick, weights, alone.argmax(-1))]
        for b, *values in zip(rows.tolist(), *columns):
            for name, value in zip(("tokens", "pick", "weights", "expert_choice"), values):
                getattr(traces[b], name).append(value)
        alive = ~torch.isin(token, stop)                                                  # (b,)
        rows = rows[alive]
        if not len(rows):
            break
        text[rows, have[rows]] = token[alive]
        have[rows] += 1
    return traces


def options(method, names):
    """decode_batch's options for a method by name; names: of the experts."""
    return {"use_router": False, "only": names.index(method)} if method in names else METHODS[method]


def ended(trace, ends):
    return trace.tokens[-1:] != [] and trace.tokens[-1] in ends


def answer_ids(trace, ends):
    return trace.tokens[:-1] if ended(trace, ends) else trace.tokens


# --- showing an answer --------------------------------------------------------------------------------------------------------------------

COLOURS = [34, 32, 33, 36, 31, 94, 92, 93]  # ANSI, for the experts in turn: blue, green, yellow, ...
MOST = 12                                   # changed tokens that are listed
MAGENTA = 35                                # the router's
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal obeys, if a model writes it: shown as \x1b


def records(trace, method, of):
    """One dict per generated token: what --json prints. of: own.Setup."""
    texts = of.pieces(answer_ids(trace, of.ends)) + [""]  # the end token has no text
    for i, token in enumerate(trace.tokens):
        weights = {} if method == "router" else dict(zip(of.names, (round(w, 4) for w in trace.weights[i])))
        yield {"token": texts[i], "id": token, "expert": "router" if method == "router" else of.names[trace.pick[i]], "weights": weights,
               "expert_choice": of.tokenizer.alone(trace.expert_choice[i]), "changed": token != trace.expert_choice[i]}


def show(trace, method, colour, of):
    """Print an answer: each token in its expert's colour, underlined where the router changed the expert's own choice.

    Without colour, each stretch of one expert's tokens follows its name, and a changed token is in «».
    """
    said, steps = [], list(records(trace, method, of))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(of.names)} | {"router": MAGENTA}
    for r in steps:
        text = CONTROL.sub(lambda c: repr(c[0])[1:-1], r["token"])
        if not text:  # the end token, or the first part of a character
            continue
        if colour:
            said.append(f"\033[{colours[r['expert']]}{';4' if r['changed'] else ''}m{text}\033[0m")
        else:
            if not said or r["expert"] != said[-1][0]:
                said.append([r["expert"], ""])
            said[-1][1] += f"«{text}»" if r["changed"] else text
    if colour:
        print("".join(said))
    else:
        width = max((len(name) for name, _ in said), default=0)
        for name, text in said:
            print(f"{name:>{width}} | " + text.replace("\n", "\n" + " " * width + " | "))
    used = {name: sum(r["expert"] == name for r in steps) for name in colours}
    legend = ", ".join((f"\033[{colours[n]}m{n}\033[0m" if colour else n) + f" {k}" for n, k in used.items() if k)
    changed = [f"{r['expert_choice']!r} -> {of.tokenizer.alone(r['id'])!r}" for r in steps if r["changed"]]
    changed = changed[:MOST] + [f"{len(changed) - MOST} more"] * (len(changed) > MOST)
    end = " with the end" if ended(trace, of.ends) else ""
    print(f"({len(steps)} tokens{end}: {legend}; changed by the router: {', '.join(changed) or 'none'})")
    if trace.drafted:
        print(f"({len(steps) / trace.drafted:.0%} of the drafted tokens kept; passes a token: router "
              f"{trace.router_passes / len(steps):.2f}, experts {trace.expert_passes / len(steps):.2f}; --block 1: 1.00 and 1.00)")
    if not ended(trace, of.ends):
        print(f"(stopped after {of.max_new} tokens)")


# --- the command --------------------------------------------------------------------------------------------------------------------------


def encode(prompt, max_len, of):
    """Token ids of a user's prompt, or of messages that end with it. UserError when it is empty or leaves no room for an answer."""
    last = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if len(last) > of.tokenizer.most_characters(max_len):
        raise UserError(f"the prompt has {len(last):,} characters, more than the {max_len} tokens that the models read")
    if of.tokenizer.empty(last):
        raise UserError("the prompt is empty: write a question, for example \"What is 38 mod 5?\"")
    ids = of.encode_prompt(prompt)
    if len(ids) + of.max_new > max_len:
        what, hint = ("prompt", "") if isinstance(prompt, str) or len(prompt) < 3 else ("conversation", "; /new begins another")
        raise UserError(f"the {what} has {len(ids)} tokens, and at most {max_len - of.max_new} fit before an answer of --max_new "
                        f"{of.max_new}{hint}")
    return ids


def messages(s, prompt, before=()):
    """A prompt, after --system and the messages before it: as encode takes it."""
    turns = [{"role": "system", "content": s.system}] * bool(s.system) + [*before, {"role": "user", "content": prompt}]
    return prompt if len(turns) == 1 else turns


def respond(prompt, router, experts, s, as_json, of, before=()):
    """Answer a prompt after the messages before it, and print the answer; returns its text."""
    ids = encode(messages(s, prompt, before), router.lm.config.max_len, of)
    if s.block > 1 and s.method == "fusionroute" and not s.top_k and s.top_p == 1:
        trace = block_decode(router, experts, ids, of.ends, of.max_new, s.block, Lookup([ids]), s.temperature, s.seed)
    else:
        how = {"temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "seed": s.seed}
        trace = decode_batch(router, experts, [ids], of.ends, of.max_new, **options(s.method, of.names), **how)[0]
    text = "".join(of.pieces(answer_ids(trace, of.ends)))
    if not as_json:
        show(trace, s.method, sys.stdout.isatty() and "NO_COLOR" not in os.environ, of)
        return text
    steps = list(records(trace, s.method, of))
    for r in steps[:-1] if ended(trace, of.ends) else steps:
        print(json.dumps(r))
    counts = ("blocks", "drafted", "router_passes", "expert_passes") if trace.drafted else ()
    print(json.dumps({"answer": text, "prompt": prompt, "method": s.method, "end": steps[-1] if ended(trace, of.ends) else None,
                      **{name: getattr(trace, name) for name in counts}}))
    return text


def main(argv=None):
    names = ["router", "experts", "dtype", "max_new"]
    p = own.parser(Settings, __doc__, *names)
    p.add_argument("prompt", nargs="?", help="the prompt; without one, prompts are read line by line")
    p.add_argument("--json", action="store_true", help="print one JSON object per token, then one with the answer")
    prompt, as_json, s, flags = own.parse(p, Settings, argv, names, "prompt", "json")
    of = own.Setup(flags, run.device(s.device))
    one_of(s, "method", [*METHODS, *of.names])
    if prompt is not None:
        prompt = prompt.encode(errors="replace").decode()  # bytes of the command line that are no character
        encode(messages(s, prompt), of.max_len, of)  # before anything is loaded
    router, experts = of.models()
    if prompt is not None:
        respond(prompt, router, experts, s, as_json, of)
    elif sys.stdin.isatty():
        talk(router, experts, s, as_json, of)
    else:
        answer_lines(router, experts, s, as_json, of)


def one_line(e):
    return f"error: {' '.join(str(e).split())}"[:1000]


def talk(router, experts, s, as_json, of):
    """Ask for prompts; each sees what was said before it. Without a chat template, each stands by itself."""
    before = []
    while True:
        try:
            prompt = input("prompt> ")
        except EOFError:  # Ctrl-D
            return
        if not prompt.strip():
            return
        if prompt.strip() == "/new":
            before = []
            continue
        try:
            text = respond(prompt, router, experts, s, as_json, of, before)
            if of.tokenizer.template is not None:
                before += [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        except (UserError, RuntimeError, MemoryError) as e:  # a bad prompt, or one that memory is too small for, does not end the rest
            print(one_line(e), file=sys.stderr)


def answer_lines(router, experts, s, as_json, of):
    """Answer each line of the standard input. One that fails does not end the others; the exit status is then 2."""
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # bytes that are no character do not end it
    failed = False
    for number, line in enumerate(sys.stdin):
        line = line.removesuffix("\n").removeprefix("\ufeff" if number == 0 else "")
        if not line.strip():
            continue
        if not as_json:
            print(f"prompt> {line}")
        try:
            respond(line.replace("\\n", "\n"), router, experts, s, as_json, of)
        except (UserError, RuntimeError, MemoryError) as e:
            print(one_line(e), file=sys.stderr)
            failed = True
    if failed:
        sys.stdout.flush()
        sys.exit(2)


if __name__ == "__main__":
    run.run(main)
