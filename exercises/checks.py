"""The checkers of the nine steps. Each takes your function, and raises Wrong if it is wrong.

How they know: each runs your function and ours on small inputs. If the results differ, it also runs
the usual mistakes of slips.py. A mistake that gives your results is probably yours, and is named.
"""

import numpy as np
import torch

import fusionroute
from exercises import solutions
from exercises.slips import SLIPS
from model import GPT, GPTConfig


class Wrong(Exception):
    """Says what is wrong with a reader's function, in one or two sentences."""


# --- what all checkers use -----------------------------------------------------------------------


def expect(ok, message):
    if not ok:
        raise Wrong(message)


def call(name, f, *args, shape, hint):
    """Wrong unless f(*args) is a tensor of this shape, and leaves its arguments as they are."""
    kept = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in args]
    got = f(*args)
    expect(got is not None, f"{name}: the function returns None. Is the return statement missing?")
    expect(isinstance(got, torch.Tensor), f"{name}: must be a tensor, not {type(got).__name__}")
    for x, before in zip(args, kept):
        same = not isinstance(x, torch.Tensor) or torch.equal(x, before)
        expect(same, "the arguments are changed in place: make a new tensor")
    wanted, found = tuple(shape), tuple(got.shape)
    expect(found == wanted, f"{name}: the shape must be {wanted}, not {found}. {hint}")
    return got


def close(a, b):
    a, b = torch.as_tensor(a).detach().double(), torch.as_tensor(b).detach().double()
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def show(x):
    x = torch.as_tensor(x).detach()
    return x.tolist() if x.dtype == torch.bool else x.double().mul(1000).round().div(1000).tolist()


def compare(name, f, probes):
    """Wrong unless f and our function give the same under all probes.

    probes: what it is -> a function that calls f and returns what counts. If a slip gives what f
    gives, under this probe and all before it, then f probably has that slip.
    """
    seen = []
    for what, probe in probes.items():
        got, right = probe(f), probe(getattr(solutions, name))
        seen.append((probe, got))
        if close(got, right):
            continue
        for message, slip in SLIPS[name]:
            if all(close(mine, earlier(slip)) for earlier, mine in seen):
                raise Wrong(f"probably: {message}")
        expect(torch.as_tensor(got).isfinite().all(), f"{what}: a value is nan or infinite")
        raise Wrong(f"{what}: on the checker's input yours is {show(got)}, right is {show(right)}")


def gradient(result, x):
    """The gradient of a result's sum for x; zeros if none reaches x."""
    if not result.requires_grad:
        return torch.zeros_like(x)
    g = torch.autograd.grad(result.sum(), x, allow_unused=True, retain_graph=True)[0]
    return torch.zeros_like(x) if g is None else g


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- step 1 --------------------------------------------------------------------------------------


def fuse(f):
    r, e = 2 * random(3, 4, seed=1), 2 * random(3, 4, seed=2)  # (3, V)
    hint = "One number for each token of the vocabulary, no argmax."
    got = call("fuse", f, r, e, shape=(3, 4), hint=hint)
    no_log = "logits may be negative, so take no log of them. log_softmax makes log-probabilities"
    expect(not got.isnan().any(), f"a value is nan: {no_log}")

    def probe(*where):
        return lambda f: f(r[where], e[where]).log_softmax(-1)

    probes = {
        "fuse of two (3, V), after a log_softmax": probe(),
        "fuse of two (V,), after a log_softmax": probe(0),
        "fuse of two (1, 3, V), after a log_softmax": probe(None),
    }
    try:
        compare("fuse", f, probes)
    except (IndexError, RuntimeError) as error:
        raise Wrong(
            "fuse works for (3, V), but not for (V,) or (1, 3, V): name the vocabulary's axis as "
            f"dim=-1 ({error})"
        ) from error


# --- step 2 --------------------------------------------------------------------------------------


def informative(f):
    choice = torch.tensor(
        [[[3, 3, 3], [3, 3, 8], [8, 3, 3], [1, 2, 3]], [[3, 8, 3], [4, 3, 5], [0, 0, 0], [4, 5, 3]]]
    )  # (2, 4, n)
    hint = "The experts' axis, the last one, goes: does any expert differ at this position?"
    got = call("informative", f, choice, shape=(2, 4), hint=hint)
    compare("informative", f, {"informative": lambda f: f(choice)})
    numbers = f"the result must be bool, not {got.dtype}: numbers index, only bool selects"
    expect(got.dtype == torch.bool, numbers)
    try:
        alone = f(torch.tensor([[1], [2]]))
    except IndexError as error:
        raise Wrong(
            "this works for three experts, but not for one: do not name the experts by their "
            f"numbers ({error})"
        ) from error
    expect(not alone.any(), "a single expert never differs: False")


# --- step 3 --------------------------------------------------------------------------------------


def log_pi_agg(f):
    w = random(3, 4, 3, seed=3).requires_grad_()  # (3, 4, n)
    logp = 2 * random(3, 4, 3, seed=4).log_softmax(-1)  # (3, 4, n)
    hint = "Sum over the experts, the last axis."
    call("log_pi_agg", f, w, logp, shape=(3, 4), hint=hint)
    probes = {
        "log_pi_agg": lambda f: f(w, logp),
        "the gradient for w": lambda f: gradient(f(w, logp), w),
    }
    compare("log_pi_agg", f, probes)


# --- step 4 --------------------------------------------------------------------------------------


def sft_inputs():
    """A batch of two rows of five positions: prompts, answers of two lengths, padding; n = 3."""
    choice = [
        [[1, 2, 2], [3, 3, 3], [4, 4, 1], [5, 5, 5], [0, 1, 0]],
        [[2, 2, 2], [5, 1, 1], [3, 0, 3], [1, 1, 1], [4, 4, 4]],
    ]
    return {
        "logits": (2 * random(2, 5, 6, seed=5)).requires_grad_(),  # (B, T, V)
        "w": random(2, 5, 3, seed=6).requires_grad_(),  # (B, T, n)
        "targets": torch.tensor([[1, 3, 4, 2, 0], [2, 5, 3, 1, 4]]),  # (B, T)
        "mask": torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 0]]).bool(),  # (B, T)
        "logp": 3 * random(2, 5, 3, seed=7).log_softmax(-1),  # (B, T, n)
        "choice": torch.tensor(choice),  # (B, T, n)
    }


def sft_loss(f):
    x = sft_inputs()
    call("sft_loss", f, *x.values(), 0.0, shape=(), hint="One number for the whole batch.")

    def probe(lam, **other):
        return lambda f: f(*(x | other).values(), lam)

    def grown(f):
        return probe(1.0)(f) - probe(0.0)(f)

    probes = {
        "sft_loss with lambda = 0 (it is L_LM)": probe(0.0),
        "the part of sft_loss that lambda multiplies (L_expert)": grown,
        "sft_loss with lambda = 0.25": probe(0.25),
        "the gradient for the logits": lambda f: gradient(probe(0.25)(f), x["logits"]),
        "the gradient for w": lambda f: gradient(probe(0.25)(f), x["w"]),
        "sft_loss with an empty S": probe(1.0, choice=torch.ones_like(x["choice"])),
        "sft_loss without a prompt": probe(1.0, mask=torch.ones_like(x["mask"])),
    }
    compare("sft_loss", f, probes)


# --- step 5 --------------------------------------------------------------------------------------

ROWS = "One number for each row: sum over the tokens, keep the batch."


def sequence_logp(f):
    x = sft_inputs()
    logits, targets, mask = x["logits"], x["targets"], x["mask"]
    call("sequence_logp", f, logits, targets, mask, shape=(2,), hint=ROWS)

    probes = {
        "sequence_logp": lambda f: f(logits, targets, mask),
        "sequence_logp without a prompt": lambda f: f(logits, targets, torch.ones_like(mask)),
        "the gradient for the logits": lambda f: gradient(f(logits, targets, mask), logits),
    }
    compare("sequence_logp", f, probes)


def routed_logp(f):
    x = sft_inputs()
    w, logp, mask = x["w"], x["logp"], x["mask"]
    got = call("routed_logp", f, w, logp, mask, shape=(2,), hint=ROWS)
    probes = {
        "routed_logp": lambda f: f(w, logp, mask),
        "routed_logp without a prompt": lambda f: f(w, logp, torch.ones_like(mask)),
    }
    compare("routed_logp", f, probes)
    expect(
        not gradient(got, w).any(),
        "W gets a gradient, though the values are right: the pick is outside the stop-gradient. "
        "No pair may move W: index with the argmax, or detach w",
    )


# --- step 6 --------------------------------------------------------------------------------------


def cdpo_loss(f):
    beta, six = 0.3, [(-12 + 3 * random(4, seed=10 + i)).requires_grad_() for i in range(6)]
    hint = "Return the mean of the pairs' losses, one number."
    got = call("cdpo_loss", f, *six, beta, shape=(), hint=hint)
    far = [torch.tensor([x]) for x in (-9000.0, 0.0, 0.0, 0.0, 0.0, 0.0)]

    def for_theta(f):
        return torch.stack([gradient(f(*six, beta), x) for x in six[:2]])  # (2, B)

    probes = {
        "cdpo_loss": lambda f: f(*six, beta),
        "the gradient for theta": for_theta,
        "where margin + bias is -2700 (cut off, it would give no gradient)": lambda f: f(
            *far, beta
        ),
    }
    compare("cdpo_loss", f, probes)
    expect(
        not any(gradient(got, x).any() for x in six[4:]),
        "the experts get a gradient: Eq. (3) has a stop-gradient around the bias, .detach(). (Our "
        "training would not notice, as it hands in stored numbers. The function itself is meant.)",
    )


# --- step 7 --------------------------------------------------------------------------------------


class Watched(GPT):
    """A tiny GPT that complains when it reads in a wrong way, and writes down what it has read."""

    def __init__(self, name, diary):
        sizes = {"d_model": 16, "n_layer": 1, "n_head": 2, "n_kv_head": 1, "head_dim": 8}
        super().__init__(GPTConfig(vocab_size=12, d_ff=16, max_len=64, **sizes))
        self.name, self.diary = name, diary
        for block in self.blocks:  # so that the text matters, not its last token only
            block.wo.weight.data *= 8
            block.w_down.weight.data *= 8

    def forward(self, ids, cache=None, pos=None):
        if self.diary.watching:
            self.diary.note(self.name, ids, cache)
        return super().forward(ids, cache, pos)


class Diary:
    """Who has read what, and how often each model ran."""

    def __init__(self):
        self.watching = False

    def begin(self, max_new):
        self.watching, self.max_new = True, max_new
        self.read, self.runs, self.owners = {}, {}, {}

    def note(self, name, ids, cache):
        expect(
            isinstance(ids, torch.Tensor) and ids.dim() == 2,
            f"{name} must be given its new tokens as a tensor (1, t)",
        )
        expect(ids.size(1) > 0, f"{name} is given no token: is the new token added to the text?")
        expect(
            int(ids.max()) < 12,
            f"{name} is given the token {int(ids.max())}, of 12: take the last position's logits, "
            "logits[0, -1], before the argmax",
        )
        expect(cache is not None, f"{name} reads without a cache: give it one, and new tokens only")
        owner = self.owners.setdefault(id(cache), (name, cache))[0]
        expect(owner == name, f"{owner} and {name} share a cache: each needs its own")
        before, ids, had = self.read.get(name, []), ids[0].tolist(), int(cache.length[0])
        expect(
            had == len(before),
            f"{name} gets a new cache, and reads the text again: keep one cache for the whole "
            "answer",
        )
        expect(
            not before or ids[:had] != before,
            f"{name} reads the whole text again, though its cache remembers it: give it the tokens "
            "after cache.length only",
        )
        self.read[name], self.runs[name] = before + ids, self.runs.get(name, 0) + 1
        expect(
            self.runs.get("the router", 0) <= self.max_new + 1,
            "the loop does not stop: it must, after max_new tokens",
        )


def watched(seed):
    """A router, three experts, and the diary in which all of them write."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        diary = Diary()
        experts = [Watched(f"expert {i}", diary) for i in range(3)]
        router = fusionroute.Router(Watched("the router", diary), 3)
        torch.nn.init.normal_(router.W.weight)
    return router.requires_grad_(False), [e.requires_grad_(False) for e in experts], diary


# Texts on which the picks change often: seed of the models, prompt, end token, max_new. The first
# one ends, the second one does not.
TEXTS = [(199, [5, 3], 3, 12), (155, [7, 8, 2], 0, 10)]


def fused_greedy(f):
    for seed, prompt, end, max_new in TEXTS:
        router, experts, diary = watched(seed)
        models = router, experts, prompt, end, max_new
        tokens, picks = fusionroute.naive_fused_greedy(*models)
        slips = [(message, slip(*models)[0]) for message, slip in SLIPS["fused_greedy"]]
        given = list(prompt)
        diary.begin(max_new)
        got = f(router, experts, given, end, max_new)
        two = isinstance(got, tuple) and len(got) == 2
        expect(two, "return two lists: the tokens, and the picks")
        mine, picked = ([int(x) for x in part] for part in got)
        expect(given == prompt, "the caller's prompt is changed: work on a copy, list(prompt)")
        for wrong, message in [
            (prompt + tokens, "the prompt is in the answer: return the new tokens only"),
            (tokens + [end], "the end token is in the answer: leave it out"),
            *((tokens_of_slip, message) for message, tokens_of_slip in slips),
            (tokens[:-1], "the last token is missing: the loop stops too early"),
        ]:
            expect(mine != wrong or mine == tokens, message)  # some slips do no harm here
        expect(len(mine) <= max_new, f"{len(mine)} tokens are written, and max_new is {max_new}")
        for name, read in diary.read.items():
            expect(
                read == (prompt + mine)[: len(read)],
                f"{name} has read {read}, and the text is {prompt + mine}: it must read all tokens "
                "in order, each one once, also those that it missed",
            )
        expect(
            mine == tokens,
            f"with the prompt {prompt} and the end token {end} the tokens must be {tokens}; yours "
            f"are {mine}",
        )
        no_end = "the pick for the end token is missing: the pick comes before the token"
        expect(len(picks) == len(tokens) or picked != picks[:-1], no_end)
        expect(picked == picks, f"the picks must be {picks}; yours are {picked}")
        runs = sum(n for name, n in diary.runs.items() if name != "the router")
        n = len(picks)
        only = f"experts ran {runs} times for {n} tokens: only the picked one may run"
        expect(runs <= n, only)
        expect(diary.runs["the router"] <= n, f"the router ran more than {n} times for {n} tokens")


# --- step 8 --------------------------------------------------------------------------------------


def world(seed, A, T, n):
    """Random rewards [(A^t, A)] and experts [(n, A^t, A)]."""
    g = np.random.default_rng(seed)
    experts = [g.random((n, A**t, A)) ** 3 for t in range(T)]
    rewards = [g.random((A**t, A)).round(2) for t in range(T)]
    return rewards, [pi / pi.sum(-1, keepdims=True) for pi in experts]


def routing_value(rewards, experts, picks):
    """The value of a routing: the sum of what it earns, forward from the empty prefix."""
    reach, value = np.ones(1), 0.0  # (A^t,)
    for r, pi, pick in zip(rewards, experts, picks):
        p = pi[np.asarray(pick), np.arange(len(r))]  # (A^t, A)
        value += (reach[:, None] * p * r).sum()
        reach = (reach[:, None] * p).reshape(-1)  # (A^(t+1),)
    return value


def best_routing(f):
    rewards, experts = world(66, A=2, T=3, n=2)
    sizes = [(len(r),) for r in rewards]  # of the picks: 1, 2, 4
    given = [r.copy() for r in rewards], [e.copy() for e in experts]
    got = f(*given)
    kept = all(map(np.array_equal, given[0] + given[1], rewards + experts))
    expect(kept, "the arguments are changed in place: make a new array for Q")
    two = isinstance(got, tuple) and len(got) == 2
    expect(two, "return two things: the value, and the list of picks")
    value, picks = got
    number = f"the value must be one number, V of the empty prefix, not {np.shape(value)}"
    expect(np.ndim(value) == 0, number)
    other = world(9, A=3, T=2, n=4)  # other sizes: nothing may be fixed to 2
    probes = {
        "the value of the best routing": lambda f: float(f(rewards, experts)[0]),
        "the value with A = 3, T = 2 and n = 4": lambda f: float(f(*other)[0]),
    }
    compare("best_routing", f, probes)
    each = f"picks must be a list of T = {len(rewards)} arrays, one for each length of prefix"
    expect(isinstance(picks, list) and len(picks) == len(rewards), each)
    shapes = [np.shape(p) for p in picks]
    order = "the picks are in reverse order: those of the empty prefix come first"
    expect(shapes != sizes[::-1], order)
    expect(shapes == sizes, f"the picks must have the shapes {sizes}, not {shapes}")
    numbers = all(np.isin(p, [0, 1]).all() for p in picks)
    expect(numbers, "a pick is an expert's number, 0 to n - 1")
    reached = routing_value(rewards, experts, [np.asarray(p).astype(int) for p in picks])
    expect(
        np.isclose(reached, value),
        f"the value is right, {value:.4f}, but your picks reach only {reached:.4f}: the pick at s "
        "is the argmax over experts of the expected Q",
    )


# --- step 9 --------------------------------------------------------------------------------------


def text_probability(f):
    words = {0: b"a", 1: b"b", 2: b"ab", 3: b"ba", 4: b"aab"}

    def p(tokens):
        seed = sum((token + 1) * 6**i for i, token in enumerate(tokens))
        return random(6, seed=seed).softmax(-1).tolist()

    got = f(b"a", words, p)
    expect(isinstance(got, float), f"P(text) must be a float, not {type(got).__name__}")
    texts = (b"b", b"a", b"ab", b"aab", b"abab")
    probes = {f"P({text})": lambda f, text=text: f(text, words, p) for text in texts}
    compare("text_probability", f, probes)


# --- the steps -----------------------------------------------------------------------------------

# number -> (file, its functions with their checkers)
STEPS = {
    1: ("step1_fuse", {"fuse": fuse}),
    2: ("step2_informative", {"informative": informative}),
    3: ("step3_log_pi_agg", {"log_pi_agg": log_pi_agg}),
    4: ("step4_sft_loss", {"sft_loss": sft_loss}),
    5: ("step5_sequence_logp", {"sequence_logp": sequence_logp, "routed_logp": routed_logp}),
    6: ("step6_cdpo_loss", {"cdpo_loss": cdpo_loss}),
    7: ("step7_greedy_loop", {"fused_greedy": fused_greedy}),
    8: ("step8_routing_dp", {"best_routing": best_routing}),
    9: ("step9_bytes", {"text_probability": text_probability}),
}
