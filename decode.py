"""Answer a prompt with FusionRoute, and show which expert wrote what: greedy decoding of Eq. (1).

    python decode.py "Maya has 12 apples. She buys 5 more. Then she doubles the number. How many \
apples are there now?"
    python decode.py                    asks for prompts; an empty line ends it
    python decode.py < FILE             one prompt a line
    python decode.py --json "PROMPT"    one JSON object per token, then one with the answer

For each token only the router and one expert run. Each model has a cache of what it has read. An
expert that was not picked falls behind; when it is picked again, it first reads the tokens it missed.

--method leaves parts of Eq. (1) out:
    fusionroute    the router's logits plus the picked expert's
    sft_only       the same, with the router as phase 1 left it
    routing_only   the picked expert alone
    router         the router's language model alone
    math | code | instruct    one expert alone
"""

import codecs
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fusionroute import fuse, informative, score
from model import sample
from toy_experts import run, tokenizer
from toy_experts.evaluate import MAX_NEW, METHODS
from toy_experts.train import EXPERTS, load_router

WEIGHTS = Path(__file__).parent / "toy_experts" / "weights"  # a trained run that comes with the code


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
    logits, second = model(new, cache)                                          # (1, t, V), (1, t, ..)
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


def in_S(experts, prompt, tokens):
    """For each token of an answer, whether the experts disagreed there: the set S. Runs all experts.

    Only the display needs this: the decoder runs the router and one expert per token.
    """
    ids = torch.tensor([prompt + tokens])                                       # (1, T)
    _, choice = score(experts, ids, torch.tensor([ids.size(1)]))                # (1, T-1, n)
    return informative(choice)[0, len(prompt) - 1:].tolist()


# --- showing an answer ---------------------------------------------------------------------------

COLOURS = {"math": 34, "code": 32, "instruct": 33, "router": 35}  # blue, green, yellow, magenta


def pieces(tokens):
    """The text of each token; "" for a part of a character, whose last part brings all of it."""
    decoder, out = codecs.getincrementaldecoder("utf-8")("replace"), []
    for i, token in enumerate(tokens):
        part = tokenizer.encoding.decode_single_token_bytes(token) if token != tokenizer.END else b""
        out.append(decoder.decode(part, i + 1 == len(tokens)))
    return out


def name(token):
    """A token shown alone: its text with its leading space, its bytes if it is no whole character."""
    raw = tokenizer.encoding.decode_single_token_bytes(token)
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return "byte " + raw.hex(" ")


def records(steps, S, method):
    """One dict per token: what --json prints."""
    for step, inside, text in zip(steps, S, pieces([s.token for s in steps])):
        alone = method == "router"
        expert = "router" if alone else EXPERTS[step.pick]
        weights = {} if alone else dict(zip(EXPERTS, (round(w, 4) for w in step.weights)))
        yield {"token": text, "id": step.token, "expert": expert, "weights": weights,
               "expert_choice": tokenizer.encoding.decode([step.expert_choice]),
               "changed": step.token != step.expert_choice, "in_S": inside}


def show(steps, S, method, colour):
    """Print an answer. Tokens in S have their expert's colour, what the router changed a line below.

    Outside S all experts agree, so the pick means nothing: these tokens are plain. Without colour,
    tokens in S are in brackets with the expert's name, and what the router changed is in «».
    """
    rows = list(records(steps, S, method))
    out, last = "", None
    for r in rows:
        shown = r["expert"] if r["in_S"] else None
        text = r["token"]
        if not text:                                    # the end, or the first part of a character
            continue
        if colour:
            codes = [COLOURS[shown]] * bool(shown) + [4] * r["changed"]
            text = f"\033[{';'.join(map(str, codes))}m{text}\033[0m" if codes else text
        else:
            text = f"«{text}»" if r["changed"] else text
            if shown != last:
                text = "]" * bool(last) + f"[{shown}:" * bool(shown) + text
            last = shown
        out += text
    print(out + "]" * bool(last))
    picked = [r["expert"] for r in rows if r["in_S"]]
    counts = ", ".join((f"\033[{COLOURS[e]}m{e}\033[0m" if colour else e) + f" {picked.count(e)}"
                       for e in dict.fromkeys(picked))
    changed = ", ".join(f"{name(s.expert_choice)} -> {name(s.token)}" for s in steps
                        if s.token != s.expert_choice)
    print(f"({len(steps)} tokens with the end; the experts disagree at {sum(S)}: {counts or '-'}; "
          f"changed by the router: {changed or 'none'})")
    if steps[-1].token != tokenizer.END:
        print(f"(stopped after {MAX_NEW} tokens)")


# --- the command ---------------------------------------------------------------------------------


def encode(prompt, max_len):
    """Token ids of a user's prompt. UserError if it is empty or leaves no room for an answer."""
    prompt = prompt.encode(errors="replace").decode().strip(" ")  # bytes that are no character
    if not prompt.strip():
        raise run.UserError('the prompt is empty: write a question, for example "What is 38 mod 5?"')
    ids = tokenizer.encode_prompt(prompt)
    if len(ids) + MAX_NEW > max_len:
        raise run.UserError(f"the prompt has {len(ids)} tokens, and at most {max_len - MAX_NEW} fit "
                            "before an answer")
    return ids


def respond(prompt, router, experts, s, as_json):
    ids = encode(prompt, router.lm.config.max_len)
    how = METHODS[s.method] | {"temperature": s.temperature, "top_p": s.top_p, "seed": s.seed}
    steps = list(decode(router, experts, ids, **how))
    tokens = [step.token for step in steps]
    S = in_S(experts, ids, tokens)
    if not as_json:
        return show(steps, S, s.method, sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    rows, ended = list(records(steps, S, s.method)), tokens[-1] == tokenizer.END
    for r in rows[:-1] if ended else rows:
        print(json.dumps(r))
    text = tokenizer.encoding.decode(tokens[:-1] if ended else tokens)
    print(json.dumps({"answer": text, "prompt": prompt, "method": s.method,
                      "end": rows[-1] if ended else None}))


def main(argv=None):
    p = run.parser(Settings, __doc__)
    p.add_argument("prompt", nargs="?", help="the prompt; without one, prompts are read line by line")
    p.add_argument("--json", action="store_true", help="one JSON object per token, then the answer")
    args = vars(p.parse_args(argv))
    prompt, as_json = args.pop("prompt"), args.pop("json")
    s, folder = Settings(**args), None
    if prompt is not None:
        encode(prompt, float("inf"))                # an empty prompt is refused before any loading
    folder = run.run_dir(s)
    if not folder.exists() and (s.seed, s.out) == (0, "out") and WEIGHTS.exists():
        print("(no run of your own yet: these are the weights in toy_experts/weights)",
              file=sys.stderr)
        folder = WEIGHTS
    which, flags = "router_sft" if s.method == "sft_only" else "router", run.flags(s)
    hint = f"run python train_sft.py{flags}, then python train_cdpo.py{flags}"
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
