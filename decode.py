"""Answer a prompt with FusionRoute, and show which expert wrote what: greedy decoding of Eq. (1).

    python decode.py "Maya has 12 apples. She buys 5 more. Then she doubles the number. How many \
apples are there now?"
    python decode.py                    asks for prompts; an empty line ends it
    python decode.py < FILE             one prompt a line
    python decode.py --json "PROMPT"    one JSON object per token, then one with the answer

The two characters \\n in a prompt stand for a line break.

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
import sys
from dataclasses import dataclass
from itertools import count

try:
    import torch
except ImportError as e:
    print(f"error: {e}: run bash run.sh, or pip install -r requirements.txt", file=sys.stderr)
    sys.exit(2)

from fusionroute import fuse
from model import sample
from toy_experts import script, show, tokenizer

MAX_NEW = 96  # longest answer, in tokens
# Every method is a special case of one decoder: what each leaves out of Eq. (1).
METHODS = {
    "fusionroute": {},
    "sft_only": {},
    "routing_only": {"use_router": False},
    "router": {"use_expert": False},
    "math": {"use_router": False, "only": 0},
    "code": {"use_router": False, "only": 1},
    "instruct": {"use_router": False, "only": 2},
}


@dataclass
class Step:
    """One token of an answer, and how it came about."""

    token: int
    pick: int  # I*, the expert that was picked
    weights: list  # softmax(w), n numbers; none for the method of one expert
    expert_choice: int  # what the picked expert (method router: the router) alone would write


def read_on(model, cache, ids):
    """Let a model read what its cache does not have yet of ids, the prompt and the answer so far.

    Returns what it gives after the last token: logits (V,), and w (n,) of a router or the hidden
    state (d,) of an expert.
    """
    new = torch.tensor([ids[int(cache.length) :]], device=cache.length.device)  # (1, t)
    logits, w_or_hidden = model(new, cache)  # (1, t, V), (1, t, n or d)
    return logits[0, -1], w_or_hidden[0, -1]


@torch.inference_mode()
def decode(
    router,
    experts,
    prompt,
    use_router=True,
    use_expert=True,
    only=None,
    temperature=0.0,
    top_p=1.0,
    seed=0,
):
    """Yield the Steps of an answer, the end token's included. prompt: token ids."""
    ids, generator = list(prompt), torch.Generator().manual_seed(seed)
    router_cache, *caches = [model.new_cache(1) for model in (router.lm, *experts)]
    for _ in range(MAX_NEW):
        if use_router or only is None:
            router_logits, w = read_on(router, router_cache, ids)  # (V,), (n,)
        pick = int(w.argmax()) if only is None else only  # I* = argmax_i w_i
        if use_expert:
            logits, _ = read_on(experts[pick], caches[pick], ids)  # (V,)
        else:
            logits = router_logits  # (V,)
        expert_choice = int(logits.argmax())
        if use_router and use_expert:
            logits = fuse(router_logits, logits)  # (V,), Eq. (1)
        u = torch.rand(1, generator=generator).to(logits.device) if temperature else None  # (1,)
        token = int(sample(logits[None], temperature, top_p, u))
        yield Step(token, pick, w.softmax(-1).tolist() if only is None else [], expert_choice)
        if token == tokenizer.END:
            break
        ids.append(token)


# --- the command ---------------------------------------------------------------------------------


@dataclass
class Settings:
    seed: int = 0  # selects the run, and the random numbers of --temperature
    out: str = "out"  # runs are kept in OUT/seedN/
    device: str = "cpu"  # auto, cuda, mps or cpu; the cpu is fastest for one tiny answer
    method: str = "fusionroute"  # fusionroute, sft_only, routing_only, router, math, code, instruct
    temperature: float = 0.0  # 0: greedy, as in the paper; 1: sample from the fused distribution
    top_p: float = 1.0  # sample from the likeliest tokens with this probability together

    def __post_init__(self):
        script.positive(self, "temperature", or_zero=True)
        script.one_of(self, "method", METHODS)
        if 0 < self.temperature < 1e-3:
            raise script.UserError(f"--temperature is {self.temperature}; it must be 0 or 0.001 up")
        if not 1e-3 <= self.top_p <= 1:
            raise script.UserError(f"--top_p is {self.top_p}, and must be from 0.001 to 1")


def encode(prompt, max_len):
    """Token ids of a user's prompt. UserError if it is empty or leaves no room for an answer."""
    if not prompt.strip():
        raise script.UserError('the prompt is empty: write a question, such as "What is 38 mod 5?"')
    ids = tokenizer.encode_prompt(prompt.strip(" "))
    if len(ids) + MAX_NEW > max_len:
        most = max_len - MAX_NEW
        raise script.UserError(f"the prompt has {len(ids)} tokens, and must have at most {most}")
    return ids


def respond(prompt, router, experts, s, as_json, seed):
    """Answer one prompt on the terminal. seed: of the random numbers of --temperature."""
    prompt = prompt.encode(errors="replace").decode().replace("\\n", "\n")
    ids = encode(prompt, router.lm.config.max_len)
    how = {"temperature": s.temperature, "top_p": s.top_p, "seed": seed}
    steps = list(decode(router, experts, ids, **METHODS[s.method], **how))
    rows = show.records(experts, ids, steps, s.method)  # runs all experts, for the display only
    if unseen := tokenizer.unseen(prompt):
        note = "(the toy has never seen: " + ", ".join(unseen) + "; the answer may be nonsense)"
        print(note, file=sys.stderr)
    if as_json:
        print("\n".join(json.dumps(row) for row in show.as_json(rows, prompt, s.method)))
    else:
        print(show.answer(rows))
        if steps[-1].token != tokenizer.END:
            print(f"(stopped: {MAX_NEW} tokens)")


def main(argv=None):
    parser = script.parser(Settings, __doc__)
    parser.add_argument("prompt", nargs="?", help="if left out, prompts are read line by line")
    parser.add_argument("--json", action="store_true", help="one JSON object per token")
    args = vars(parser.parse_args(argv))
    prompt, as_json = args.pop("prompt"), args.pop("json")
    s = Settings(**args)
    which = "router_sft" if s.method == "sft_only" else "router"
    router, experts, _ = script.load_router_or_shipped(s, which)
    seeds = count(s.seed)  # each prompt of a session draws other random numbers
    say = lambda line: respond(line, router, experts, s, as_json, next(seeds))
    if prompt is not None:
        say(prompt)
    else:
        script.each_line(say, echo=not as_json)


if __name__ == "__main__":
    script.run(main)
