"""Answer prompts with models of your own, and show which expert wrote what: greedy decoding of Eq. (1). The ground floor's decode.py first.

    python -m extra.real.decode "PROMPT" --router own/seed0/router --experts math=DIR code=DIR
    python -m extra.real.decode --router ...          asks for prompts; an empty line or Ctrl-D ends it
    python -m extra.real.decode --router ... < FILE   a prompt a line, \\n in it for a line break; blank lines are skipped
    python -m extra.real.decode --json "PROMPT" ...   one JSON object per token, then one with the answer

The experts must be those that the router was trained with, in the same order. --method leaves parts of Eq. (1) out:
    fusionroute    the router's logits plus the picked expert's
    routing_only   the picked expert alone
    router         the router's language model alone
    NAME           one expert alone

fusionroute decodes in blocks (extra/speed/block.py): the router drafts, and each expert checks what it is picked for in one pass. The
tokens are those of --block 1, token by token; in bfloat16, rounding may decide otherwise here and there.
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

    def __post_init__(self):
        run.positive(self, "block")


@torch.inference_mode()
def decode_batch(router, experts, prompts, ends, max_new, use_router=True, use_expert=True, only=None, temperature=0.0, seed=0):
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
        token = sample(logits, temperature, u=uniform(rows.tolist(), device) if temperature else None)  # (b,)

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
    print(f"({len(steps)} tokens{' with the end' * ended(trace, of.ends)}: {legend}; changed by the router: {', '.join(changed) or 'none'})")
    if trace.drafted:
        print(f"({len(steps) / trace.drafted:.0%} of the drafted tokens kept; passes a token: router "
              f"{trace.router_passes / len(steps):.2f}, experts {trace.expert_passes / len(steps):.2f}; --block 1: 1.00 and 1.00)")
    if not ended(trace, of.ends):
        print(f"(stopped after {of.max_new} tokens)")


# --- the command --------------------------------------------------------------------------------------------------------------------------


def encode(prompt, max_len, of):
    """Token ids of a user's prompt. UserError when it is empty or leaves no room for an answer."""
    if of.tokenizer.empty(prompt):
        raise UserError("the prompt is empty: write a question, for example \"What is 38 mod 5?\"")
    ids = of.encode_prompt(prompt)
    if len(ids) + of.max_new > max_len:
        raise UserError(f"the prompt has {len(ids)} tokens, and at most {max_len - of.max_new} fit before an answer of --max_new {of.max_new}")
    return ids


def respond(prompt, router, experts, method, as_json, block, of):
    ids = encode(prompt, router.lm.config.max_len, of)
    if block > 1 and method == "fusionroute":
        trace = block_decode(router, experts, ids, of.ends, of.max_new, block, Lookup([ids]))
    else:
        trace = decode_batch(router, experts, [ids], of.ends, of.max_new, **options(method, of.names))[0]
    if not as_json:
        return show(trace, method, sys.stdout.isatty() and "NO_COLOR" not in os.environ, of)
    steps = list(records(trace, method, of))
    for r in steps[:-1] if ended(trace, of.ends) else steps:
        print(json.dumps(r))
    text = "".join(of.pieces(answer_ids(trace, of.ends)))
    counts = ("blocks", "drafted", "router_passes", "expert_passes") if trace.drafted else ()
    print(json.dumps({"answer": text, "prompt": prompt, "method": method, "end": steps[-1] if ended(trace, of.ends) else None,
                      **{name: getattr(trace, name) for name in counts}}))


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
        encode(prompt, of.max_len, of)  # before anything is loaded
    router, experts = of.models()
    if prompt is not None:
        return respond(prompt, router, experts, s.method, as_json, s.block, of)
    typed, failed = sys.stdin.isatty(), False
    sys.stdin.reconfigure(errors="replace")  # bytes that are no character do not end it
    while True:
        try:
            line = input("prompt> " if typed else "")
        except EOFError:  # Ctrl-D
            break
        if not line.strip():
            if typed:
                break
            continue  # in a file a blank line only separates
        if not typed and not as_json:
            print(f"prompt> {line}")
        try:
            respond(line.replace("\\n", "\n"), router, experts, s.method, as_json, s.block, of)
        except UserError as e:  # a bad prompt does not end the others
            print(f"error: {e}", file=sys.stderr)
            failed = not typed  # nobody sees the line in a script: the status says it again
    if failed:
        sys.stdout.flush()
        sys.exit(2)


if __name__ == "__main__":
    run.run(main)
