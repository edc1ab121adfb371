"""The checkers: our functions pass; typical wrong ones are caught, each with its own message."""

import doctest
import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from exercises import checks, solutions
from fusionroute import fuse, informative, log_pi_agg, token_logp

FUNCTIONS = {name: checker for _, functions in checks.STEPS.values() for name, checker in functions.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_our_function_passes(name):
    FUNCTIONS[name](getattr(solutions, name))


@pytest.mark.parametrize("file, name", [(file, name) for file, functions in checks.STEPS.values() for name in functions
                                        if name != "fused_greedy"])  # its example is a table: it needs models
def test_the_worked_example_holds_for_our_function(file, name):
    """The examples (>>>) in the exercise's docstring, run with our function."""
    written = getattr(importlib.import_module(f"exercises.{file}"), name)
    names = {"torch": torch, "np": np, name: getattr(solutions, name)}
    test = doctest.DocTestParser().get_doctest(written.__doc__, names, name, None, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


# --- wrong solutions -------------------------------------------------------------------------------------------------

def sft(nll=lambda n, m, S: n[m].sum() / m.sum(), agg=lambda a, m, S: a[m & S].sum() / m.sum(), w_of=lambda w: w,
        x_of=lambda x: x, y_of=lambda y: y, total=lambda lm, expert, lam: lm + lam * expert, agg_of=log_pi_agg):
    """Eq. (2) with one of its parts replaced. n, a: the two costs (B, T); m: mask; S: where the experts differ."""
    def f(logits, w, targets, mask, logp, choice, lam):
        S = informative(choice)
        return total(nll(-token_logp(x_of(logits), y_of(targets)), mask, S), agg(-agg_of(w_of(w), logp), mask, S), lam)
    return f


def shifted_sft(logits, w, targets, mask, logp, choice, lam):
    lm = -token_logp(logits[:, :-1], targets[:, 1:])[mask[:, 1:]].mean()
    return lm + lam * sft(nll=lambda *_: 0)(logits, w, targets, mask, logp, choice, 1)


def seq(of=lambda x, y: token_logp(x, y), end=lambda t, m: (t * m).sum(-1)):
    return lambda logits, targets, mask: end(of(logits, targets), mask)


def routed(token=lambda w, l: l.gather(-1, w.argmax(-1, keepdim=True))[..., 0], end=lambda t, m: (t * m).sum(-1)):
    return lambda w, logp, mask: end(token(w, logp), mask)


def straight_through(w, logp):
    soft = w.softmax(-1)
    hard = F.one_hot(w.argmax(-1), 3) - soft.detach() + soft
    return (hard * logp).sum(-1)


def cdpo(inner=lambda tw, tl, rw, rl, b: tw - rw - tl + rl, bias=lambda ew, el: ew - el, join=lambda m, b: m + b.detach(),
         end=lambda z: -F.logsigmoid(z).mean(), beta_margin=True, beta_bias=True):
    def f(tw, tl, rw, rl, ew, el, beta):
        m, b = inner(tw, tl, rw, rl, beta), bias(ew, el)
        return end(join(m * (beta if beta_margin else 1), b * (beta if beta_bias else 1)))
    return f


def loop(router_reads="new", expert_reads="new", fused=fuse, pick_of=lambda w: int(w.argmax()), all_run=False, share=False,
         with_end=False, end_pick=True, stop=lambda n, max_new: n >= max_new, with_prompt=False, cached=True, in_place=False, at=(-1, -1, -1),
         appends=True, flat=False):
    """The fused greedy loop with one of its parts replaced."""
    def f(router, experts, prompt, end, max_new):
        text, picks = prompt if in_place else list(prompt), []
        begin = len(prompt)
        models = [router.lm, *experts]
        caches = [m.new_cache(1) for m in models]
        if share:
            caches = [caches[0]] + [caches[1]] * len(experts)

        def read(model, cache, how):
            if not cached:
                return model(torch.tensor([text]))
            if how == "fresh":
                return model(torch.tensor([text]), models[0].new_cache(1))
            had = int(cache.length)
            new = {"new": text[had:], "all": text, "last": text if not had else text[-1:]}[how]
            return model(torch.tensor([new]), cache)

        while not stop(len(picks), max_new):
            r, w = read(router, caches[0], router_reads)
            picks.append(pick_of(w[0, at[1]]))
            if all_run:
                every = [read(e, c, expert_reads)[0][0, -1] for e, c in zip(experts, caches[1:])]
                e = every[picks[-1]]
            else:
                e = read(experts[picks[-1]], caches[1 + picks[-1]], expert_reads)[0][0, at[2]]
            token = int(fused(r[0, at[0]], e).argmax()) + (12 if flat else 0)
            if token == end:
                text += [token] * with_end
                if not end_pick:
                    picks.pop()
                break
            text += [token] * appends
        return (text if with_prompt else text[begin:]), picks
    return f


def routing(rule=lambda r, Q, pi: (pi * Q).sum(-1), best=lambda v: v.max(0), child=lambda V, A: V.reshape(-1, A), start=0.0,
            picks_of=lambda v, r, pi: v.argmax(0), order=lambda picks: picks, result=lambda V, picks: (V[0], picks)):
    """best_routing with one of its parts replaced."""
    def f(rewards, experts):
        A, picks = rewards[0].shape[1], []
        V = np.full(A**len(rewards), start)
        for r, pi in zip(rewards[::-1], experts[::-1]):
            values = rule(r, r + child(V, A), pi)
            V = best(values)
            picks.insert(0, picks_of(values, r, pi))
        return result(V, order(picks))
    return f


def changes_rewards(rewards, experts):
    value = routing()(rewards, experts)
    rewards[0] += 1
    return value


def one_expert(rewards, experts):
    alone = [routing()(rewards, [e[i:i + 1] for e in experts])[0] for i in range(len(experts[0]))]
    return max(alone), [np.full(len(r), int(np.argmax(alone))) for r in rewards]


# --- right solutions that look different from ours -------------------------------------------------------------------

def one_by_one(w, logp, mask):
    return torch.stack([sum(logp[b, t, w[b, t].argmax()] for t in range(w.size(1)) if mask[b, t]) for b in range(len(w))])


# Those built by sft(), loop(), ... below have no part replaced: so each wrong one is wrong by its slip alone.
RIGHT = {
    "sft_loss": [sft()], "fused_greedy": [loop()], "best_routing": [routing()],
    "fuse": [lambda r, e: r + e, lambda r, e: (r + e).log_softmax(-1), lambda r, e: (r.softmax(-1) * e.softmax(-1)).log()],
    "informative": [lambda c: (c[..., 1:] != c[..., :-1]).any(-1), lambda c: c.amax(-1) != c.amin(-1),
                    lambda c: c.double().std(-1, correction=0) > 0],
    "log_pi_agg": [lambda w, l: (F.softmax(w, dim=-1)[..., None, :] @ l[..., None])[..., 0, 0],
                   lambda w, l: torch.einsum("...n,...n->...", w.exp() / w.exp().sum(-1, keepdim=True), l)],
    "routed_logp": [routed(), one_by_one, lambda w, l, m: ((F.one_hot(w.argmax(-1), 3) * l).sum(-1) * m).sum(-1)],
    "sequence_logp": [seq(), lambda x, y, m: (x.log_softmax(-1).gather(-1, y[..., None])[..., 0] * m).sum(-1)],
    "cdpo_loss": [cdpo(), lambda tw, tl, rw, rl, ew, el, beta: F.softplus(-beta * ((tw - rw) - (tl - rl) + (ew - el).detach())).mean()],
}


@pytest.mark.parametrize("name, i", [(name, i) for name, functions in RIGHT.items() for i in range(len(functions))])
def test_another_right_function_passes(name, i):
    FUNCTIONS[name](RIGHT[name][i])


WRONG = {
    "fuse": [
        (lambda r, e: ((r.softmax(-1) + e.softmax(-1)) / 2).log(), "a mixture"),
        (lambda r, e: r.softmax(-1) + e.softmax(-1), "two probabilities are added"),
        (lambda r, e: r.softmax(-1) * e.softmax(-1), "these are probabilities"),
        (lambda r, e: (r + e).softmax(-1), "leave the exponential out"),
        (lambda r, e: r.log_softmax(-1) * e.log_softmax(-1), "log-probabilities are multiplied"),
        (lambda r, e: r * e, "logits are multiplied"),
        (lambda r, e: (r + e) / 2, "half of Eq. (1)"),
        (lambda r, e: r, "only the router speaks"),
        (lambda r, e: e.log_softmax(-1), "only the expert speaks"),
        (lambda r, e: r - e, "subtracted"),
        (lambda r, e: r.log_softmax(0) + e.log_softmax(0), "the wrong axis: the vocabulary"),
        (lambda r, e: r.log_softmax(1) + e.log_softmax(1), "not for (V,)"),
        (lambda r, e: (r + e).argmax(-1), "no argmax"),
        (lambda r, e: r.add_(e), "changed in place"),
        (lambda r, e: None, "returns None"),
        (lambda r, e: (r + e).abs() * float("inf"), "nan or infinite"),
        (lambda r, e: r.log() + e, "take no log of them"),
    ],
    "informative": [
        (lambda c: c[..., 0] != c[..., 1], "only the first two experts"),
        (lambda c: c[..., 0] != c[..., -1], "only the first and the last"),
        (lambda c: c[..., 1] != c[..., 2], "only the last two"),
        (lambda c: (c == c[..., :1]).all(-1), "the opposite"),
        (lambda c: (c[..., 1:] != c[..., :1]).all(-1), "one that differs is enough"),
        (lambda c: (c != c[..., :1]).all(-1), "Use any, not all"),
        (lambda c: (c[..., 0] != c[..., 1]) & (c[..., 1] != c[..., 2]) & (c[..., 0] != c[..., 2]), "a choice of its own"),
        (lambda c: c.float().mean(-1) != c[..., 0], "the mean of token numbers"),
        (lambda c: c != c[..., :1], "the experts' axis is still there"),
        (lambda c: (c != c[:1]).any(0), "the last one, goes"),
        (lambda c: (c != c[..., :1]).any(-1).int(), "must be bool"),
        (lambda c: torch.ones(c.shape[:-1], dtype=torch.bool), "True everywhere"),
        (lambda c: (c != c[:1]).any(-1), "the wrong axis is compared"),
        (lambda c: (c != c[:, :1]).any(-1), "the wrong axis is compared"),
        (lambda c: (c[..., 0] != c[..., 1]) | (c[..., 1] != c[..., 2]), "but not for one"),
    ],
    "log_pi_agg": [
        (lambda w, l: (w * l).sum(-1), "w is used raw"),
        (lambda w, l: (w.log_softmax(-1) + l).logsumexp(-1), "the logarithm of a mean"),
        (lambda w, l: (w.softmax(-1) * l.exp()).sum(-1), "without any logarithm"),
        (lambda w, l: (w.softmax(0) * l).sum(-1), "the softmax runs over the wrong axis"),
        (lambda w, l: (w.softmax(1) * l).sum(-1), "the softmax runs over the wrong axis"),
        (lambda w, l: l.gather(-1, w.argmax(-1, keepdim=True))[..., 0], "only the picked expert counts"),
        (lambda w, l: l.mean(-1), "w is not used"),
        (lambda w, l: (w.softmax(-1) * l).mean(-1), "sum to 1 already"),
        (lambda w, l: (w.log_softmax(-1) * l).sum(-1), "which are negative"),
        (lambda w, l: (w.sigmoid() * l).sum(-1), "sigmoid(w)"),
        (lambda w, l: (w.exp() * l).sum(-1), "over its sum"),
        (lambda w, l: (l.softmax(-1) * l).sum(-1), "come from logp"),
        (lambda w, l: -(w.softmax(-1) * l).sum(-1), "belongs to the loss"),
        (lambda w, l: (w.softmax(-1).detach() * l).sum(-1), "w gets no gradient"),
        (lambda w, l: (w.softmax(-1) * l).sum(-1, keepdim=True), "the shape must be (3, 4)"),
    ],
    "sft_loss": [
        (sft(nll=lambda n, m, S: n.mean()), "counted in L_LM: use mask"),
        (sft(nll=lambda n, m, S: (n * m).mean()), "L_LM is divided by all positions"),
        (sft(nll=lambda n, m, S: n[m].sum()), "L_LM is a sum"),
        (sft(nll=lambda n, m, S: ((n * m).sum(1) / m.sum(1)).mean()), "row by row"),
        (sft(nll=lambda n, m, S: (n * m).sum() / len(m)), "by the number of rows"),
        (shifted_sft, "shifted a second time"),
        (sft(nll=lambda n, m, S: -n[m].mean()), "L_LM has the wrong sign"),
        (sft(nll=lambda n, m, S: n[m & S].mean()), "L_LM is counted on S only"),
        (sft(agg=lambda a, m, S: a[S].sum() / m.sum()), "counted in L_expert: S needs mask"),
        (sft(agg=lambda a, m, S: a[m].sum() / m.sum()), "L_expert is counted on all answer tokens"),
        (sft(agg=lambda a, m, S: a[m & ~S].sum() / m.sum()), "outside S"),
        (sft(agg=lambda a, m, S: a[m & S].mean()), "by the size of S"),
        (sft(agg=lambda a, m, S: a[m & S].sum()), "L_expert is a sum"),
        (sft(agg=lambda a, m, S: (a * (m & S)).mean()), "L_expert is divided by all positions"),
        (sft(agg_of=lambda w, l: (w * l).sum(-1)), "L_expert uses w raw"),
        (sft(agg_of=lambda w, l: -log_pi_agg(w, l)), "L_expert has the wrong sign"),
        (sft(total=lambda lm, expert, lam: lm + expert), "lambda has no effect: Eq. (2)"),
        (sft(total=lambda lm, expert, lam: lm), "L_expert is missing"),
        (sft(total=lambda lm, expert, lam: lam * lm + expert), "lambda stands at L_LM"),
        (sft(total=lambda lm, expert, lam: (1 - lam) * lm + lam * expert), "takes L_LM away"),
        (sft(w_of=lambda w: w.detach()), "W gets no gradient"),
        (sft(x_of=lambda x: x.detach()), "theta_LM gets no gradient"),
        (sft(agg=lambda a, m, S: a[m & S].mean() * (m & S).sum() / m.sum()), "where S is empty the loss is nan"),
        (sft(total=lambda lm, expert, lam: lm + lam**2 * expert), "with lambda = 0.25"),
        (sft(nll=lambda n, m, S: (n * m).sum(1) / m.sum()), "One number for the whole batch"),
        (sft(agg_of=lambda w, l: log_pi_agg(w.softmax(-1), l)), "the softmax is taken twice"),
        (sft(agg_of=lambda w, l: l.gather(-1, w.argmax(-1, keepdim=True))[..., 0]), "only the picked expert counts"),
        (sft(agg=lambda a, m, S: ((a * (m & S)).sum(1) / m.sum(1)).mean()), "L_expert is averaged row by row"),
        (lambda logits, w, targets, mask, logp, choice, lam: sft()(logits, w, targets, mask, logp, torch.where(
            (choice != targets[..., None]).any(-1, True), torch.arange(choice.size(-1)), 0 * choice), lam), "differs from the target"),
        (lambda logits, w, targets, mask, logp, choice, lam: sft()(logits, w, targets.masked_fill_(~mask, 0), mask, logp, choice, lam), "changed in place"),
        (sft(nll=lambda n, m, S: n[:, 1:][m[:, 1:]].sum() / m.sum()), "position 0 is an answer token"),
        (sft(agg=lambda a, m, S: a[:, 1:][(m & S)[:, 1:]].sum() / m.sum()), "position 0 is an answer token"),
    ],
    "sequence_logp": [
        (seq(end=lambda t, m: t.sum(-1)), "the prompt's tokens are counted"),
        (seq(end=lambda t, m: (t * m).sum(-1) / m.sum(-1)), "this is the mean over the answer's tokens"),
        (seq(end=lambda t, m: (t * m).mean(-1)), "a mean over all positions"),
        (seq(end=lambda t, m: (t * m).sum(-1).exp()), "not its logarithm"),
        (seq(end=lambda t, m: (t.exp() * m).sum(-1)), "probabilities are added up"),
        (seq(end=lambda t, m: -(t * m).sum(-1)), "the other sign"),
        (seq(of=lambda x, y: x.gather(-1, y[..., None])[..., 0]), "raw logits"),
        (seq(of=lambda x, y: x.log_softmax(-1).amax(-1)), "favourite token"),
        (lambda x, y, m: (token_logp(x[:, :-1], y[:, 1:]) * m[:, 1:]).sum(-1), "shifted a second time"),
        (seq(end=lambda t, m: (t * ~m).sum(-1)), "the other way round"),
        (seq(end=lambda t, m: (t * m).sum()), "keep the batch"),
        (seq(of=lambda x, y: token_logp(x.detach(), y)), "theta_LM gets no gradient"),
        (seq(of=lambda x, y: x.log_softmax(1).gather(-1, y[..., None])[..., 0]), "the vocabulary is the last one"),
        (seq(end=lambda t, m: (t * m)[:, 1:].sum(-1)), "position 0 is an answer token"),
    ],
    "routed_logp": [
        (routed(lambda w, l: (w.softmax(-1) * l).sum(-1)), "the experts are mixed by their weights"),
        (routed(lambda w, l: (w * l).sum(-1)), "mixed by raw w"),
        (routed(lambda w, l: l.mean(-1)), "the experts' mean"),
        (routed(lambda w, l: l.amax(-1)), "the pick looks at the answer"),
        (routed(lambda w, l: l.gather(-1, w.argmin(-1, keepdim=True))[..., 0]), "smallest w"),
        (routed(lambda w, l: l.gather(-1, w.mean(1, keepdim=True).argmax(-1, keepdim=True).expand(-1, w.size(1), 1))[..., 0]),
         "one expert is picked for the whole answer"),
        (routed(end=lambda t, m: t.sum(-1)), "the prompt's tokens are counted"),
        (routed(end=lambda t, m: (t * m).sum(-1) / m.sum(-1)), "this is a mean"),
        (routed(lambda w, l: (l * w.softmax(-1)).gather(-1, w.argmax(-1, keepdim=True))[..., 0]), "multiplied by its weight"),
        (routed(end=lambda t, m: -(t * m).sum(-1)), "the sign is wrong"),
        (routed(straight_through), "the pick is outside the stop-gradient"),
        (routed(lambda w, l: (w.detach().softmax(-1) * l).sum(-1)), "without a detach a mixture"),
        (routed(end=lambda t, m: (t * m)[:, 1:].sum(-1)), "position 0 is an answer token"),
    ],
    "cdpo_loss": [
        (cdpo(join=lambda m, b: m), "the bias is missing"),
        (cdpo(join=lambda m, b: m + b), "the experts get a gradient"),
        (cdpo(join=lambda m, b: (m + b).detach()), "theta gets no gradient"),
        (cdpo(beta_bias=False), "beta is missing in the bias"),
        (cdpo(beta_margin=False), "beta is missing in the margin"),
        (cdpo(beta_bias=False, beta_margin=False), "beta is missing"),
        (cdpo(inner=lambda tw, tl, rw, rl, b: b * (tw - rw - tl + rl), bias=lambda ew, el: 0.3 * (ew - el)), "multiplied twice"),
        (cdpo(bias=lambda ew, el: el - ew), "the bias has the wrong sign"),
        (cdpo(end=lambda z: -F.logsigmoid(-z).mean()), "chosen and rejected are exchanged: this loss"),
        (cdpo(inner=lambda tw, tl, rw, rl, b: tl - rl - tw + rw), "exchanged in the margin"),
        (cdpo(inner=lambda tw, tl, rw, rl, b: tw - tl), "the reference is missing"),
        (cdpo(inner=lambda tw, tl, rw, rl, b: tw + rw - tl - rl), "the reference has the wrong sign"),
        (lambda tw, tl, rw, rl, ew, el, b: cdpo(join=lambda m, x: m)(tw, tl, rw, rl, ew, el, b) - (b * (ew - el)).detach().mean(),
         "outside the sigmoid"),
        (cdpo(end=lambda z: -F.logsigmoid(z).sum()), "the sum over the pairs"),
        (cdpo(end=lambda z: -F.logsigmoid(z)), "one loss a pair"),
        (cdpo(end=lambda z: -F.logsigmoid(z.mean())), "averaged before the sigmoid"),
        (cdpo(end=lambda z: -z.sigmoid().mean()), "the logarithm is missing: -log sigmoid, not -sigmoid"),
        (cdpo(end=lambda z: F.logsigmoid(z).mean()), "the minus is missing"),
        (cdpo(end=lambda z: -z.mean()), "without -log sigmoid"),
        (cdpo(end=lambda z: -z.sigmoid().log().mean()), "not finite"),
        (cdpo(end=lambda z: -F.logsigmoid(z.clamp(-100, 100)).mean()), "cut off"),
        (cdpo(end=lambda z: (1 + (-z).exp()).log().mean()), "exp is infinite"),
        (cdpo(inner=lambda tw, tl, rw, rl, b: tw - rw - (tl - rl) / 0.3), "at the rejected half of the margin"),
        (cdpo(inner=lambda tw, tl, rw, rl, b: tw - rw), "the rejected half of the margin is missing"),
        (cdpo(bias=lambda ew, el: ew), "the rejected half of the bias is missing"),
        (cdpo(inner=lambda tw, tl, rw, rl, b: tw / rw - tl / rl), "a quotient of log-probabilities"),
        (cdpo(inner=lambda tw, tl, rw, rl, b: tw - rw - (tl.detach() - rl)), "theta_rejected gets no gradient"),
        (lambda tw, tl, rw, rl, ew, el, b: -F.logsigmoid(b * (tw - rw - tl + rl)).mean() - F.logsigmoid((b * (ew - el)).detach()).mean(), "each have a sigmoid"),
    ],
    "fused_greedy": [
        (loop(fused=lambda r, e: e), "only the expert's logits decide"),
        (loop(fused=lambda r, e: r), "only the router's logits decide"),
        (loop(pick_of=lambda w: int(w.argmin())), "smallest w"),
        (loop(expert_reads="last"), "reads the last token only"),
        (loop(router_reads="all"), "the router reads the whole text again"),
        (loop(expert_reads="all"), "reads the whole text again"),
        (loop(expert_reads="fresh"), "gets a new cache"),
        (loop(cached=False), "the router reads without a cache"),
        (loop(all_run=True), "only the picked one may run"),
        (loop(share=True), "share a cache"),
        (loop(with_end=True), "the end token is in the answer"),
        (loop(end_pick=False), "the pick for the end token is missing"),
        (loop(with_prompt=True), "the prompt is in the answer"),
        (loop(stop=lambda n, max_new: False), "the loop does not stop"),
        (loop(stop=lambda n, max_new: n >= max_new + 1), "and max_new is 10"),
        (loop(stop=lambda n, max_new: n >= max_new - 1), "the last token is missing"),
        (loop(in_place=True), "the caller's prompt is changed"),
        (lambda *a: loop()(*a)[0], "return two lists"),
        (loop(at=(0, -1, 0)), "the first position's logits"),
        (loop(at=(0, -1, -1)), "the first position's logits"),
        (loop(at=(-1, -1, 0)), "the first position's logits"),
        (loop(at=(-1, 0, -1)), "the first position's w"),
        (loop(appends=False), "is the new token added to the text"),
        (loop(flat=True), "before the argmax"),
    ],
    "best_routing": [
        (routing(best=lambda v: v.mean(0)), "the experts are averaged"),
        (routing(best=lambda v: v.min(0)), "the worst expert is picked"),
        (routing(rule=lambda r, Q, pi: Q.max(-1)[None]), "the router chooses the token itself"),
        (routing(rule=lambda r, Q, pi: (pi.max(0, keepdims=True) * Q).sum(-1)), "the expert that suits it best"),
        (one_expert, "one expert writes the whole answer"),
        (routing(rule=lambda r, Q, pi: np.where((v := (pi * r).sum(-1)) == v.max(0), (pi * Q).sum(-1), 0)),
         "the pick looks at the next reward only"),
        (routing(rule=lambda r, Q, pi: (pi * r).sum(-1)), "only the first token's reward"),
        (routing(rule=lambda r, Q, pi: np.take_along_axis(Q[None], pi.argmax(-1)[..., None], 2)[..., 0]), "favourite token"),
        (routing(child=lambda V, A: V.reshape(A, -1).T), "prefixes are joined wrongly"),
        (routing(start=1.0), "V after the last token is 0"),
        (routing(rule=lambda r, Q, pi: (pi * (Q - r)).sum(-1)), "the reward is missing in Q"),
        (routing(rule=lambda r, Q, pi: (pi * r).sum(-1) + (Q - r).mean(-1)), "weighted by the expert's"),
        (routing(rule=lambda r, Q, pi: (pi * r).sum(-1) + (Q - r).max(-1)), "weighted by the expert's"),
        (changes_rewards, "changed in place"),
        (routing(picks_of=lambda v, r, pi: (pi * r).sum(-1).argmax(0)), "your picks reach"),
        (routing(order=lambda picks: picks[::-1]), "in reverse order"),
        (routing(picks_of=lambda v, r, pi: v.argmax(0)[0]), "the picks must have the shapes"),
        (routing(result=lambda V, picks: V[0]), "return two things"),
        (routing(result=lambda V, picks: (V, picks)), "must be one number"),
        (routing(child=lambda V, A: V.reshape(-1, 2) if A == 2 else np.zeros((1, A))), "with A = 3, T = 2"),
    ],
}


@pytest.mark.parametrize("name, i", [(name, i) for name, wrong in WRONG.items() for i in range(len(wrong))])
def test_a_wrong_function_is_caught_by_name(name, i):
    function, message = WRONG[name][i]
    with pytest.raises(checks.Wrong) as caught:
        FUNCTIONS[name](function)
    assert message in str(caught.value)


def test_at_least_five_wrong_functions_a_step_each_with_a_message_of_its_own():
    for file, functions in checks.STEPS.values():
        messages = {message for name in functions for _, message in WRONG[name]}
        assert len(messages) >= 5, file


