"""Answer a prompt with FusionRoute, and show which expert wrote what: greedy decoding of Eq. (1).

    python decode.py "Maya has 12 apples. She buys 5 more. Then she doubles the number. How many \
apples are there now?"
    python decode.py                    asks for prompts; an empty line ends it
    python decode.py < FILE             one prompt a line
    python decode.py --json "PROMPT"    one JSON object per token, then one with the answer

For each token only the router and one expert run. Each model has a cache of what it has read. An
expert that was not picked falls behind. When it is picked again, it first reads what it missed, in
one pass: many tokens in one pass cost little more than one.

Tokens in S, where the experts disagree, are coloured, or in brackets: [math:18]. What the router
changed is underlined, or in «».

--method leaves parts of Eq. (1) out:
    fusionroute    the router's logits plus the picked expert's
    sft_only       the same, with the router as phase 1 left it
    routing_only   the picked expert alone
    router         the router's language model alone
    math | code | instruct    one expert alone
"""

import json
import os
import sys
from dataclasses import dataclass

import torch

from fusionroute import fuse
from model import sample
from toy_experts import run, show, tokenizer
from toy_experts.batch import MAX_NEW, METHODS
from toy_experts.train import load_router


@dataclass
class Settings:
    seed: int = 0                # selects the run, and the random numbers of --temperature
    out: str = "out"             # runs are kept in OUT/seedN/
    device: str = "cpu"          # auto, cuda, mps or cpu; the cpu is fastest for one tiny answer
    method: str = "fusionroute"  # fusionroute, sft_only, routing_only, router, math, code, instruct
    temperature: float = 0.0     # 0: greedy, as in the paper; 1: sample from the fused distribution
    top_p: float = 1.0           # sample from the likeliest tokens with this probability together

    def __post_init__(self):
        run.positive(self, "temperature", or_zero=True)
        if self.method not in METHODS:
            raise run.UserError(f"--method is {self.method!r}, and must be one of "
                                f"{', '.join(METHODS)}")
        if not 0 < self.top_p <= 1:
            raise run.UserError(f"--top_p is {self.top_p}, and must be above 0 and at most 1")


@dataclass
class Step:
    """One token of an answer, and how it came about."""
    token: int
    pick: int            # I*, the expert that was picked
    weights: list        # softmax(w), n numbers
    expert_choice: int   # what the picked expert would have written by itself


def read_on(model, cache, text):
    """Let a model read the tokens of `text` that its cache does not have yet.

    Returns its outputs after the last token: logits (V,), and w (n,) or hidden states (d,).
    """
    new = torch.tensor([text[int(cache.length):]], device=cache.length.device)  # (1, t)
    logits, second = model(new, cache)                                        # (1, t, V), (1, t, .)
    return logits[0, -1], second[0, -1]


@torch.no_grad()
def decode(router, experts, prompt, use_router=True, use_expert=True, only=None,
           temperature=0.0, top_p=1.0, seed=0):
    """Yield the Steps of an answer, the end token's included. prompt: token ids."""
    text, random = list(prompt), torch.Generator().manual_seed(seed)
    router_cache, *caches = [model.new_cache(1) for model in (router.lm, *experts)]
    for _ in range(MAX_NEW):
        router_logits, w = read_on(router, router_cache, text)                  # (V,), (n,)
        pick = int(w.argmax()) if only is None else only                        # I* = argmax_i w_i
        logits = router_logits                                                  # (V,)
        if use_expert:
            logits, _ = read_on(experts[pick], caches[pick], text)              # (V,)
        expert_choice = int(logits.argmax())
        if use_router and use_expert:
            logits = fuse(router_logits, logits)                                # (V,), Eq. (1)
        u = torch.rand(1, generator=random).to(logits.device)                   # (1,)
        token = int(sample(logits[None], temperature, top_p, u))
        yield Step(token, pick, w.softmax(-1).tolist(), expert_choice)
        if token == tokenizer.END:
            break
        text.append(token)


# --- the command ---------------------------------------------------------------------------------


def encode(prompt, max_len):
    """Token ids of a user's prompt. UserError if it is empty or leaves no room for an answer."""
    prompt = prompt.encode(errors="replace").decode().strip(" ")  # bytes that are no character
    if not prompt.strip():
        raise run.UserError('the prompt is empty: write a question, such as "What is 38 mod 5?"')
    ids = tokenizer.encode_prompt(prompt)
    if len(ids) + MAX_NEW > max_len:
        raise run.UserError(f"the prompt has {len(ids)} tokens, and at most {max_len - MAX_NEW} "
                            "fit before an answer")
    return ids


def respond(prompt, router, experts, s, as_json):
    """Answer one prompt on the terminal."""
    ids = encode(prompt, router.lm.config.max_len)
    how = METHODS[s.method] | {"temperature": s.temperature, "top_p": s.top_p, "seed": s.seed}
    steps = list(decode(router, experts, ids, **how))
    tokens = [step.token for step in steps]
    inside = show.in_S(experts, ids, tokens)        # runs all experts, for the display only
    rows = list(show.records(steps, inside, s.method))
    ended = tokens[-1] == tokenizer.END
    if as_json:
        text = tokenizer.encoding.decode(tokens[:-1] if ended else tokens)
        summary = {"answer": text, "prompt": prompt, "method": s.method,
                   "end": rows[-1] if ended else None}
        return print("\n".join(map(json.dumps, rows[:len(rows) - ended] + [summary])))
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(show.coloured(rows) if colour else show.plain(rows))
    print(show.legend(steps, rows, colour) + ("" if ended else f" (stopped: {MAX_NEW} tokens)"))


def main(argv=None):
    p = run.parser(Settings, __doc__)
    p.add_argument("prompt", nargs="?", help="without a prompt, prompts are read line by line")
    p.add_argument("--json", action="store_true", help="one JSON object per token, then the answer")
    args = vars(p.parse_args(argv))
    prompt, as_json = args.pop("prompt"), args.pop("json")
    s = Settings(**args)
    if prompt is not None:
        encode(prompt, float("inf"))                # an empty prompt is refused before any loading
    which, flags = "router_sft" if s.method == "sft_only" else "router", run.flags(s)
    hint = f"run python train_sft.py{flags}, then python train_cdpo.py{flags}"
    folder = run.run_dir(s)
    if not flags and not (folder / f"{which}.pt").exists():
        folder = run.WEIGHTS
        print("(there is no run in out/seed0 yet: this is the one in toy_experts/weights)",
              file=sys.stderr)
    router, experts, _ = load_router(folder, which, run.device(s.device), hint)
    if prompt is not None:
        return respond(prompt, router, experts, s, as_json)
    typed, failed = sys.stdin.isatty(), False
    sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            line = input("prompt> " if typed else "")
        except EOFError:
            break
        if not line.strip():
            if typed:
                break
            continue                                # in a file, a blank line only separates
        if not typed and not as_json:
            print(f"prompt> {line}")
        try:
            respond(line.replace("\\n", "\n"), router, experts, s, as_json)
        except run.UserError as e:                  # one bad prompt does not end the others
            print(f"error: {e}", file=sys.stderr)
            failed = not typed
    if failed:
        sys.stdout.flush()
        sys.exit(2)


if __name__ == "__main__":
    run.run(main)
