"""Answer a prompt with FusionRoute and show who wrote each token: greedy decoding of Eq. (1) with key/value caches.

    python decode.py "Maya has 12 apples. She buys 5 more. Then she doubles the number. How many apples are there now?"
    python decode.py                      asks for prompts; an empty line or Ctrl-D ends it
    python decode.py < FILE               a prompt a line; blank lines are skipped, and a prompt that fails makes the exit status 2
    python decode.py --json "PROMPT"      one JSON object per token, then one with the answer
    python decode.py "PROMPT" --router DIR --experts math=DIR code=DIR    models of your own: see own.py

Per token only the router and the expert that it picks run. An expert that was not picked falls behind; when it is picked again it
reads the tokens that it missed in one pass. That is `fused_decode`: two passes a token. `block_decode` needs far fewer for the same
tokens (--block 1 switches it off): the router drafts, the experts check a whole block in one pass each. (The same in float32; in
bfloat16, rounding may decide otherwise here and there: docs/speed.md.) Every method is a limit of the same loop:

    fusionroute    router and picked expert, log pi_theta + log pi_expert    Eq. (1)
    routing_only   the picked expert alone, without complementary logits
    sft_only       fusionroute with the router as phase 1 left it
    router         the router's language model alone
    math | code | instruct   one expert alone
"""

import codecs
import functools
import json
import math
import os
import sys
from dataclasses import dataclass, field
from random import Random

import torch
import torch.nn.functional as F

import common
import own
from fusionroute import fuse, wide
from model import Uniform, ended, sample
from toy_experts import tasks, tokenizer
from toy_experts.train import EXPERTS

METHODS = ["fusionroute", "routing_only", "sft_only", "router"] + EXPERTS
MAX_NEW = 96  # longest answer, in tokens


@dataclass
class Settings:
    seed: int = 0                # selects the run
    out: str = "out"             # runs are kept in OUT/seedN/
    device: str = "cpu"          # auto, cuda, mps or cpu; one short answer of a tiny model is fastest on the cpu
    family: str = "llama"        # architecture of the toy's models: llama or gemma (Gemma-2)
    method: str = "fusionroute"  # fusionroute, routing_only, sft_only, router, math, code or instruct
    block: int = 32              # fusionroute, sft_only: tokens drafted at most before the experts check them; 1: token by token

    def __post_init__(self):
        common.positive(self, "block")


@dataclass
class Trace:
    """One answer and how it came about; the lists have one entry per generated token, the end token's last if it came."""
    tokens: list = field(default_factory=list)         # token ids
    pick: list = field(default_factory=list)           # the expert that was picked
    weights: list = field(default_factory=list)        # softmax(w), n numbers
    expert_choice: list = field(default_factory=list)  # the picked expert's own argmax; the router's own where no expert ran
    blocks: int = 0                                    # what block_decode counts: blocks,
    drafted: int = 0                                   # tokens that the router drafted,
    router_passes: int = 0                             # passes of the router,
    expert_passes: int = 0                             # and passes of experts


def read_on(model, cache, rows, text, have):
    """Let `model` read what it has not read yet of each row: the prompt at first, later one token, or all those it missed.

    cache covers all B rows; rows (b,) long: the rows that read now; text (B, T) token ids, have (B,) how many count.
    Returns the model's outputs after each row's last token: logits (b, V) and the second output, (b, ...).
    """
    view = cache if len(rows) == len(have) else cache.select(rows)
    missed = have[rows] - view.length                                                     # (b,), at least one each
    offset = torch.arange(int(missed.max()), device=rows.device)                          # (t,)
    index = view.length[:, None] + torch.minimum(offset, missed[:, None] - 1)             # (b, t)
    logits, second = model(text[rows[:, None], index], view, missed if len(have) > 1 else None)
    if view is not cache:
        cache.length[rows] = view.length
    return logits[:, -1], second[:, -1]


@torch.inference_mode()
def fused_decode(router, experts, prompts, end, max_new, use_router=True, use_expert=True, only=None, temperature=0.0, seed=0):
    """Decode a batch of prompts (token-id lists of any lengths) with Eq. (1); returns one Trace a prompt.

    end: the token id that ends an answer, or several.
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
                expert_logits[mine] = read_on(experts[i], caches[i], rows[mine], text, have)[0].to(expert_logits.dtype)
        own = expert_logits if use_expert else router_logits                              # (b, V)
        logits = fuse(router_logits, expert_logits) if use_router and use_expert else own  # (b, V), Eq. (1)
        token = sample(logits, temperature, u=uniform(rows.tolist(), device) if temperature else None)  # (b,)

        columns = token.tolist(), pick.tolist(), weights.tolist(), own.argmax(-1).tolist()
        for b, *values in zip(rows.tolist(), *columns):
            for column, value in zip(("tokens", "pick", "weights", "expert_choice"), values):
                getattr(traces[b], column).append(value)
        alive = torch.tensor([not ended([t], end) for t in columns[0]], device=device)    # (b,)
        rows = rows[alive]                                                                # rows that ended leave
        if not len(rows):
            break
        text[rows, have[rows]] = token[alive]
        have[rows] += 1
    return traces


# --- the same tokens in fewer passes ------------------------------------------------------------------------------------------------------

SURE = math.log(0.65)  # a draft ends behind a token that the router finds less likely: what followed would often be drafted in vain
AHEAD = 8              # tokens of a guess at most


class Lookup:
    """Guesses how a text goes on: as known texts last did behind the same tokens (the longest match, of the `lengths` that are tried).

    A guess is no longer than the match that it rests on, as short matches are often wrong; ahead: nor longer than this.

    >>> guess = Lookup([[5, 6, 7, 8], [1, 6, 9]], lengths=(2, 1))
    >>> guess([2, 5, 6], 3), guess([2, 6], 3), guess([4], 3)
    ([7, 8], [9], [])
    """

    def __init__(self, texts, lengths=(12, 8, 5, 3, 2), ahead=AHEAD):
        self.text, self.lengths, self.ahead = "".join(chr(token) for ids in texts for token in ids), lengths, ahead  # str: fast keys
        self.after = {self.text[t - n:t]: t for n in lengths for t in range(n, len(self.text))}

    def __call__(self, ids, k):
        end = "".join(map(chr, ids[-self.lengths[0]:]))
        for n in self.lengths:
            if n <= len(end) and (t := self.after.get(end[-n:])):
                return [ord(c) for c in self.text[t:t + min(k, n, self.ahead)]]
        return []


def read_block(model, cache, text):
    """Let `model` read all that it has not read yet of a text (a list); its outputs behind each of these tokens: (t, V), (t, ...)."""
    new = torch.tensor([text[int(cache.length):]], device=cache.length.device)            # (1, t)
    logits, second = model(new, cache)
    return logits[0], second[0]


def draft(router, cache, text, k, end, lookup=None, temperature=0.0, u=None):
    """The router goes on by itself, k tokens at most. Returns them, its log-probabilities (t, V) and w (t, n) there, and its passes.

    Drafting is itself drafted: `lookup` guesses, and the router reads its next token and the guess in one pass, keeps of it what
    it would have said itself, and adds the token that it says next. No guess, or a bad one: that one token is what the pass gives.
    """
    tokens, parts, passes = [], [], 0
    while True:
        guess = lookup(text + tokens, k - len(tokens) - 1) if lookup else []
        logits, w = read_block(router, cache, text + tokens + guess)
        logp = F.log_softmax(wide(logits[-1 - len(guess):]), -1)                          # (g+1, V)
        sure, own = logp.max(-1)                                                          # (g+1,) twice
        if temperature:
            own = sample(logp, temperature, u=u[len(tokens):, 0][:len(logp)])             # (g+1,)
        sure, own, n = sure.tolist(), own.tolist(), 0
        while n < len(guess) and guess[n] == own[n] and not ended([own[n]], end) and sure[n] >= SURE:
            n += 1
        tokens, passes = tokens + own[:n + 1], passes + 1
        here = len(w) - len(guess) - 1                                                    # the first place with an output of use
        parts.append((logp[:n + 1], w[here:here + n + 1]))
        cache.length.fill_(len(text) + len(tokens) - 1)                                   # what was guessed wrong is taken back
        if len(tokens) == k or ended(tokens, end) or sure[n] < SURE:
            return tokens, *map(torch.cat, zip(*parts)), passes


def accepted(drafted, draft_logp, logp, temperature, u):
    """The rule of speculative sampling: tokens drawn from q become tokens distributed as p, and most of them stay.

    q and p are the softmax of draft_logp and of logp (t, V) over the temperature. drafted: t tokens, u (t, 3) uniform numbers, of
    which the draft has used the first. A token d is kept with probability min(1, p(d) / q(d)); the others give way to tokens
    drawn from max(0, p - q). All in all p is the outcome, and 1 - sum over d of max(0, p - q) the share that is kept, the most
    that any rule can reach. Returns (t,). Source: Leviathan et al. 2023, arXiv 2211.17192, theorem 3.5.
    """
    d = torch.tensor(drafted, device=u.device)[:, None]                                   # (t, 1)
    q, p = ((x / temperature).softmax(-1) for x in (draft_logp, logp))                    # (t, V)
    keep = u[:, 1:2] * q.gather(1, d) < p.gather(1, d)                                    # (t, 1)
    rest = (p - q).clamp(min=0)                                                           # (t, V)
    rest = torch.where(rest.any(-1, keepdim=True), rest, p)                               # where q = p, and no token is given up
    return torch.where(keep[:, 0], d[:, 0], sample(rest.log(), 1.0, u=u[:, 2]))


@torch.inference_mode()
def block_decode(router, experts, prompt, end, max_new, block, lookup=None, temperature=0.0, seed=0):
    """fused_decode for one prompt: the same Trace in fewer passes. block 1 without lookup is its loop, at two passes a token.

    1. The router drafts up to `block` tokens, and its w say which expert each of them needs.
    2. Each needed expert reads the draft in one pass, and Eq. (1) gives a token at every place, from what stands before it.
    3. These tokens count while they equal the draft, and the first that differs, because all before it is as it should be.

    A bad draft costs time, never a token. Sampled answers follow the same distribution (`accepted`), with other random numbers than
    fused_decode's; place t has its own, so that the answer does not depend on `block` or `lookup` either.
    """
    text, trace, device = list(prompt), Trace(), router.W.weight.device
    room = min(len(prompt) + max_new, router.lm.config.max_len)
    router_cache, caches = router.lm.new_cache(1, room), [expert.new_cache(1, room) for expert in experts]
    uniform = Uniform(1, seed) if temperature else None
    noise = torch.cat([uniform([0], device) for _ in range(3 * max_new)]).view(-1, 3) if temperature else None  # (max_new, 3)

    while len(trace.tokens) < max_new and not ended(trace.tokens, end):
        u = noise[len(trace.tokens):] if temperature else None                            # (places left, 3)
        k = min(block, max_new - len(trace.tokens), max(1, room - len(text) + 1))         # no draft past what the models can read
        tokens, logp, w, passes = draft(router, router_cache, text, k, end, lookup, temperature, u)
        pick, fused, choice = w.argmax(-1).tolist(), [None] * len(tokens), [None] * len(tokens)
        for t, i in enumerate(pick):
            if fused[t] is None:                                                          # expert i's first place in this block
                mine = [s for s in range(t, len(tokens)) if pick[s] == i]
                here = slice(t, mine[-1] + 1)                                             # it reads up to its last
                logits, _ = read_block(experts[i], caches[i], text + tokens[:mine[-1]])   # (all that it missed, V)
                logits = logits[t - mine[-1] - 1:]                                        # (places here, V)
                both = logp[here] + F.log_softmax(wide(logits), -1)                       # Eq. (1)
                said = accepted(tokens[here], logp[here], both, temperature, u[here]) if temperature else sample(both)
                said, wanted = said.tolist(), sample(logits).tolist()
                for s in mine:
                    fused[s], choice[s] = said[s - t], wanted[s - t]
                trace.expert_passes += 1
            if fused[t] != tokens[t]:
                break
        n = t + 1
        columns = fused[:n], pick[:n], w[:n].softmax(-1).tolist(), choice[:n]
        for column, values in zip((trace.tokens, trace.pick, trace.weights, trace.expert_choice), columns):
            column += values
        text += fused[:n]
        for cache in [router_cache, *caches]:                                             # what was drafted wrong is taken back
            cache.length.clamp_(max=len(text) - 1)
        trace.blocks, trace.drafted, trace.router_passes = trace.blocks + 1, trace.drafted + len(tokens), trace.router_passes + passes
    return trace


def options(method, names=EXPERTS):
    """fused_decode's options for a method by name; names: of the experts."""
    return {"fusionroute": {}, "sft_only": {}, "routing_only": {"use_router": False}, "router": {"use_expert": False}}.get(
        method) if method not in names else {"use_router": False, "only": names.index(method)}


def answer_ids(trace, end=tokenizer.END):
    return trace.tokens[:-1] if ended(trace.tokens, end) else trace.tokens


class TOY:
    """What is said below of the models besides their logits. own.World has the same for models of your own."""
    names, ends, max_new, encode_prompt = EXPERTS, tokenizer.END, MAX_NEW, staticmethod(tokenizer.encode_prompt)

    @staticmethod
    def pieces(ids):
        """The text of each token, "" for the first part of a character; the last part brings all of it."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(tokenizer.encoding.decode_single_token_bytes(token), i + 1 == len(ids)) for i, token in enumerate(ids)]


def load(s, which):
    """The router `which` ("router" or "router_sft") of a run, frozen, and its experts. UserError when they don't fit each other."""
    folder, device = common.run_dir(s), common.device(s.device)
    flags = common.flags(s)
    hint = f"run bash run.sh{flags}, or python train_sft.py{flags}" + f", then python train_cdpo.py{flags}" * (which != "router_sft")
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
        raise common.UserError(f"{path} routes among {', '.join(map(str, content['experts']))}, not among {', '.join(EXPERTS)}")
    common.check_same(path, content["experts"], common.fingerprints(EXPERTS, experts))
    return router, experts + [router.lm] * ("router" in content["experts"])  # one that may pick itself (--loss co_llm_self)


# --- showing the routing ------------------------------------------------------------------------------------------------------------------

COLOURS = [34, 32, 33, 36, 31, 94, 92, 93]  # ANSI, for the experts in turn: blue, green, yellow, ...
MAGENTA = 35                                # the router's


def records(trace, method, of=TOY):
    """One dict per generated token: what --json prints."""
    texts = of.pieces(answer_ids(trace, of.ends)) + [""]  # the end token has no text
    for i, token in enumerate(trace.tokens):
        weights = {} if method == "router" else dict(zip(of.names, (round(w, 4) for w in trace.weights[i])))
        wanted, = of.pieces([trace.expert_choice[i]])
        yield {"token": texts[i], "id": token, "expert": "router" if method == "router" else of.names[trace.pick[i]],
               "weights": weights, "expert_choice": wanted, "changed": token != trace.expert_choice[i]}


def show(trace, method, colour, of=TOY):
    """Print an answer: each token in its expert's colour, underlined where the router changed the expert's own choice.

    Without colour, each stretch of one expert's tokens stands behind its name, and a changed token stands in «».
    """
    said, steps = [], list(records(trace, method, of))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(of.names)} | {"router": MAGENTA}
    for r in steps:
        text = r["token"]
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
    changed = [f"{r['expert_choice']!r} -> {r['token'] or '<|end|>'!r}" for r in steps if r["changed"]]
    print(f"({len(steps)} tokens with the end: {legend}; changed by the router: {', '.join(changed) or 'none'})")
    if trace.drafted:
        print(f"({len(steps) / trace.drafted:.0%} of the drafted tokens kept; passes a token: router "
              f"{trace.router_passes / len(steps):.2f}, experts {trace.expert_passes / len(steps):.2f}; --block 1: 1.00 and 1.00)")
    if not ended(trace.tokens, of.ends):
        print(f"(stopped after {of.max_new} tokens)")


def encode(prompt, max_len, of=TOY):
    """Token ids of a user's prompt. UserError when it is empty or leaves no room for an answer."""
    if not prompt.strip():
        raise common.UserError("the prompt is empty: write a question, for example \"What is 38 mod 5?\"")
    ids = of.encode_prompt(prompt.strip(" "))
    if len(ids) + of.max_new > max_len:
        raise common.UserError(f"the prompt has {len(ids)} tokens, and at most {max_len - of.max_new} fit before an answer")
    return ids


@functools.cache
def known_texts(ahead=AHEAD):
    """What guesses are made from: texts of the train split."""
    items = tasks.mixed("train", 9600, Random("lookup"))
    return Lookup([tokenizer.encode_prompt(i.prompt)[-12:] + tokenizer.encode_answer(i.answer) for i in items], ahead=ahead)  # answers only


def respond(prompt, router, experts, method, as_json, block=Settings.block, of=TOY):
    ids = encode(prompt, router.lm.config.max_len, of)
    if block > 1 and method in ("fusionroute", "sft_only"):
        lookup = known_texts() if of is TOY else Lookup([ids])
        trace = block_decode(router, experts, ids, of.ends, of.max_new, block, lookup)
    else:
        trace = fused_decode(router, experts, [ids], of.ends, of.max_new, **options(method, of.names))[0]
    if not as_json:
        return show(trace, method, sys.stdout.isatty() and "NO_COLOR" not in os.environ, of)
    steps = list(records(trace, method, of))
    stopped = ended(trace.tokens, of.ends)
    for r in steps[:-1] if stopped else steps:
        print(json.dumps(r))
    text = "".join(of.pieces(answer_ids(trace, of.ends)))
    counts = ("blocks", "drafted", "router_passes", "expert_passes") if trace.drafted else ()
    print(json.dumps({"answer": text, "prompt": prompt, "method": method, "end": steps[-1] if stopped else None,
                      **{name: getattr(trace, name) for name in counts}}))


def main(argv=None):
    parser = common.parser(Settings, __doc__)
    parser.add_argument("prompt", nargs="?", help="the prompt; without one, prompts are read line by line")
    parser.add_argument("--json", action="store_true", help="print one JSON object per token, then one with the answer")
    prompt, as_json, s, flags = own.parse(parser, Settings, argv, ["router", "experts", "dtype", "max_new"], "prompt", "json")
    of = own.World(s, flags) if flags else TOY
    methods = ["fusionroute", "routing_only", "router", *of.names] if flags else METHODS
    if s.method not in methods:
        raise common.UserError(f"--method is {s.method!r}, and must be one of {', '.join(methods)}")
    if prompt is not None:
        prompt = prompt.encode(errors="replace").decode()  # bytes of the command line that are no character
        encode(prompt, float("inf"), of)  # an empty prompt is refused before anything is loaded
    router, experts = of.models() if flags else load(s, "router_sft" if s.method == "sft_only" else "router")
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
        except common.UserError as e:  # a bad prompt does not end the conversation
            print(f"error: {e}", file=sys.stderr)
            failed = not typed  # nobody sees the line in a script: the status says it again
    if failed:
        sys.stdout.flush()
        sys.exit(2)


if __name__ == "__main__":
    common.run(main)
