"""Answer a prompt with FusionRoute and show who wrote each token: greedy decoding of Eq. (1) with key/value caches.

    python decode.py "Maya has 12 apples. She buys 5 more. Then she doubles the number. How many apples are there now?"
    python decode.py                      asks for prompts; an empty line or Ctrl-D ends it
    python decode.py --json "PROMPT"      one JSON object per token, then one with the answer

Per token only the router and the expert that it picks run. An expert that was not picked falls behind; when it is picked again it
reads the tokens that it missed in one pass. Every method is a limit of the same loop, `fused_decode`:

    fusionroute    router and picked expert, log pi_theta + log pi_expert    Eq. (1)
    routing_only   the picked expert alone, without complementary logits
    sft_only       fusionroute with the router as phase 1 left it
    router         the router's language model alone
    math | code | instruct   one expert alone
"""

import codecs
import json
import os
import sys
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

import common
from fusionroute import fuse
from model import Uniform, sample
from toy_experts import tokenizer
from toy_experts.train import EXPERTS

METHODS = ["fusionroute", "routing_only", "sft_only", "router"] + EXPERTS
MAX_NEW = 96  # longest answer, in tokens


@dataclass
class Settings:
    seed: int = 0                # selects the run
    out: str = "out"             # runs are kept in OUT/seedN/
    device: str = "cpu"          # auto, cuda, mps or cpu; one short answer of a tiny model is fastest on the cpu
    method: str = "fusionroute"  # fusionroute, routing_only, sft_only, router, math, code or instruct


@dataclass
class Trace:
    """One answer and how it came about; the lists have one entry per generated token, the end token's last if it came."""
    tokens: list = field(default_factory=list)         # token ids
    pick: list = field(default_factory=list)           # the expert that was picked
    weights: list = field(default_factory=list)        # softmax(w), n numbers
    expert_choice: list = field(default_factory=list)  # the picked expert's own argmax; the router's own where no expert ran


def read_on(model, cache, rows, text, have):
    """Let `model` read what it has not read yet of each row: the prompt at first, later one token, or all those it missed.

    cache covers all B rows; rows (b,) long: the rows that read now; text (B, T) token ids, have (B,) how many count.
    Returns the model's outputs after each row's last token: logits (b, V) and the second output, (b, ...).
    """
    view = cache if len(rows) == len(have) else cache.select(rows)
    missed = have[rows] - view.length                                                     # (b,), at least one each
    offset = torch.arange(int(missed.max()), device=rows.device)                          # (t,)
    index = view.length[:, None] + torch.minimum(offset, missed[:, None] - 1)             # (b, t)
    logits, second = model(text[rows[:, None], index], view, missed)
    if view is not cache:
        cache.length[rows] = view.length
    return logits[:, -1], second[:, -1]


@torch.no_grad()
def fused_decode(router, experts, prompts, end, max_new, use_router=True, use_expert=True, only=None, temperature=0.0, seed=0):
    """Decode a batch of prompts (token-id lists of any lengths) with Eq. (1); returns one Trace a prompt.

    use_router=False leaves out the router's logits (routing only), use_expert=False the expert's, only=i always takes expert i
    instead of argmax w. Temperature 0 is greedy; else row b draws from a random stream seeded seed + b. A row's tokens do not
    depend on the others in the batch.
    """
    device, B = router.W.weight.device, len(prompts)
    have = torch.tensor([len(p) for p in prompts], device=device)                        # (B,)
    text = torch.zeros(B, int(have.max()) + max_new, dtype=torch.long, device=device)    # (B, T)
    for b, p in enumerate(prompts):
        text[b, :len(p)] = torch.tensor(p)
    room = min(text.size(1), router.lm.config.max_len)
    router_cache = router.lm.new_cache(B, room)
    caches = [expert.new_cache(B, room) for expert in experts]
    uniform, traces = Uniform(B, seed), [Trace() for _ in prompts]
    rows = torch.arange(B, device=device)                                                # (b,): the rows still being written

    for _ in range(max_new):
        if use_router or only is None:
            router_logits, w = read_on(router, router_cache, rows, text, have)            # (b, V), (b, n)
        if only is None:
            weights, pick = w.softmax(-1), w.argmax(-1)                                   # I* = argmax_i w_i
        else:
            pick = torch.full_like(rows, only)                                            # (b,): no routing
            weights = F.one_hot(pick, len(experts)).float()                               # (b, n)
        if use_expert:
            expert_logits = torch.empty(len(rows), router.lm.config.vocab_size, device=device, dtype=router.W.weight.dtype)
            for i in pick.unique().tolist():                                              # an expert nobody picked is not run
                mine = (pick == i).nonzero()[:, 0]
                expert_logits[mine], _ = read_on(experts[i], caches[i], rows[mine], text, have)
        own = expert_logits if use_expert else router_logits                              # (b, V)
        logits = fuse(router_logits, expert_logits) if use_router and use_expert else own  # (b, V), Eq. (1)
        token = sample(logits, temperature, u=uniform(rows.tolist(), device) if temperature else None)  # (b,)

        columns = token.tolist(), pick.tolist(), weights.tolist(), own.argmax(-1).tolist()
        for b, *values in zip(rows.tolist(), *columns):
            for column, value in zip(("tokens", "pick", "weights", "expert_choice"), values):
                getattr(traces[b], column).append(value)
        alive = token != end
        rows = rows[alive]                                                                # rows that ended leave
        if not len(rows):
            break
        text[rows, have[rows]] = token[alive]
        have[rows] += 1
    return traces


def options(method):
    """fused_decode's options for a method by name."""
    return {"fusionroute": {}, "sft_only": {}, "routing_only": {"use_router": False}, "router": {"use_expert": False}}.get(
        method) if method not in EXPERTS else {"use_router": False, "only": EXPERTS.index(method)}


def answer_ids(trace):
    return trace.tokens[:-1] if trace.tokens[-1:] == [tokenizer.END] else trace.tokens


def load(s, which):
    """The router `which` ("router" or "router_sft") of a run, frozen, and its experts. UserError when they don't fit each other."""
    folder, device = common.run_dir(s), common.device(s.device)
    hint = "run bash run.sh, or python train_sft.py" + ("" if which == "router_sft" else ", then python train_cdpo.py")
    experts = [common.load_model(folder / f"{name}.pt", tokenizer.FINGERPRINT, hint, device)[0] for name in EXPERTS]
    path = folder / f"{which}.pt"
    router, content = common.load_model(path, tokenizer.FINGERPRINT, hint, device, router=True)
    for name, expert in zip(EXPERTS, experts):
        if expert.config.vocab_size != router.lm.config.vocab_size:
            raise common.UserError(f"the vocabulary of {name}.pt ({expert.config.vocab_size} tokens) is not that of {which}.pt "
                                   f"({router.lm.config.vocab_size}): their logits cannot be added")
        if expert.config.max_len != router.lm.config.max_len:
            raise common.UserError(f"{name}.pt reads {expert.config.max_len} tokens and {which}.pt {router.lm.config.max_len}: they "
                                   "must be equal")
    if [name for name in content["experts"] if name != "router"] != EXPERTS:  # the order of W's rows
        raise common.UserError(f"{path} routes among {', '.join(content['experts'])}, not among {', '.join(EXPERTS)}")
    common.check_same(path, content["experts"], common.fingerprints(EXPERTS, experts))
    return router, experts + [router.lm] * ("router" in content["experts"])  # one trained to pick itself too (train_sft.py --loss co_llm_self)


# --- showing the routing ------------------------------------------------------------------------------------------------------------------

COLOURS = {"math": 34, "code": 32, "instruct": 33, "router": 35}  # ANSI: blue, green, yellow, magenta


def records(trace, method):
    """One dict per generated token: what --json prints."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may hold part of a character; it shows once complete
    for i, token in enumerate(trace.tokens):
        weights = {} if method == "router" else dict(zip(EXPERTS, (round(w, 4) for w in trace.weights[i])))
        final = i + 1 == len(trace.tokens) - (trace.tokens[-1] == tokenizer.END)  # the answer may end inside a character
        text = "" if token == tokenizer.END else decoder.decode(tokenizer.encoding.decode_single_token_bytes(token), final)
        wanted = tokenizer.encoding.decode_bytes([trace.expert_choice[i]]).decode("utf-8", "replace")
        yield {"token": text, "id": token, "expert": "router" if method == "router" else EXPERTS[trace.pick[i]],
               "weights": weights, "expert_choice": wanted, "changed": token != trace.expert_choice[i]}


def show(trace, method, colour):
    """Print an answer: each token in its expert's colour, underlined where the router changed the expert's own choice.

    Without colour, each stretch of one expert's tokens stands behind its name, and a changed token stands in «».
    """
    said, steps = [], list(records(trace, method))
    for r in steps:
        text = r["token"]
        if not text:  # the end token, or the first part of a character
            continue
        if colour:
            said.append(f"\033[{COLOURS[r['expert']]}{';4' if r['changed'] else ''}m{text}\033[0m")
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
    used = {name: sum(r["expert"] == name for r in steps) for name in COLOURS}
    legend = ", ".join((f"\033[{COLOURS[n]}m{n}\033[0m" if colour else n) + f" {k}" for n, k in used.items() if k)
    changed = [f"{r['expert_choice']!r} -> {r['token'] or '<|end|>'!r}" for r in steps if r["changed"]]
    print(f"({len(steps)} tokens with the end: {legend}; changed by the router: {', '.join(changed) or 'none'})")
    if steps[-1]["id"] != tokenizer.END:
        print(f"(stopped after {MAX_NEW} tokens)")


def encode(prompt, max_len):
    """Token ids of a user's prompt. UserError when it is empty or leaves no room for an answer."""
    if not prompt.strip():
        raise common.UserError("the prompt is empty: write a question, for example \"What is 38 mod 5?\"")
    ids = tokenizer.encode_prompt(prompt.strip(" "))
    if len(ids) + MAX_NEW > max_len:
        raise common.UserError(f"the prompt has {len(ids)} tokens, and at most {max_len - MAX_NEW} fit before an answer")
    return ids


def respond(prompt, router, experts, method, as_json):
    ids = encode(prompt, router.lm.config.max_len)
    trace = fused_decode(router, experts, [ids], tokenizer.END, MAX_NEW, **options(method))[0]
    if not as_json:
        return show(trace, method, sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    steps = list(records(trace, method))
    ended = steps[-1]["id"] == tokenizer.END
    for r in steps[:-1] if ended else steps:
        print(json.dumps(r))
    text = tokenizer.encoding.decode(answer_ids(trace))
    print(json.dumps({"answer": text, "prompt": prompt, "method": method, "end": steps[-1] if ended else None}))


def main(argv=None):
    parser = common.parser(Settings, __doc__)
    parser.add_argument("prompt", nargs="?", help="the prompt; without one, prompts are read line by line")
    parser.add_argument("--json", action="store_true", help="print one JSON object per token, then one with the answer")
    args = vars(parser.parse_args(argv))
    prompt, as_json = args.pop("prompt"), args.pop("json")
    s = Settings(**args)
    if s.method not in METHODS:
        raise common.UserError(f"--method is {s.method!r}, and must be one of {', '.join(METHODS)}")
    if prompt is not None:
        encode(prompt, float("inf"))  # an empty prompt is refused before anything is loaded
    router, experts = load(s, "router_sft" if s.method == "sft_only" else "router")
    if prompt is not None:
        return respond(prompt, router, experts, s.method, as_json)
    while True:
        try:
            line = input("prompt> " if sys.stdin.isatty() else "")
        except EOFError:  # Ctrl-D
            return
        if not line.strip():
            return
        if not sys.stdin.isatty() and not as_json:
            print(f"prompt> {line}")
        try:
            respond(line.replace("\\n", "\n"), router, experts, s.method, as_json)
        except common.UserError as e:  # a bad prompt does not end the conversation
            print(f"error: {e}", file=sys.stderr)


if __name__ == "__main__":
    common.run(main)
