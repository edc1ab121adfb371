"""What FusionRoute is compared with: each a limit or a neighbour of one fused decoder, so that a difference has one cause.

    row of the tables                   name in the code       trained by (flags: evaluate.TRAINING)        decodes with
    FusionRoute                         fusionroute            both phases                                  Eq. (1)
    phase 1 only                        sft_only               phase 1                                      Eq. (1)
    routing only                        routing_only           both phases                                  the picked expert alone
    through the fusion, phase 1         fused_sft              train_sft.py --loss fused_own --lr 2e-3      Eq. (1)
    through the fusion, both            fused_full             the same, then phase 2                       Eq. (1)
    Co-LLM-style routing                co_llm                 train_sft.py --loss co_llm                   the picked expert alone
    Co-LLM-style, or the router itself  co_llm_self            train_sft.py --loss co_llm_self              the picked expert or the router
    Fine-tuned Model                    fine_tuned             both phases with --loss plain                the router's language model
    math, code, instruction expert      math_expert, ...       toy_experts/train.py                         that expert
    oracle expert (a bound)             oracle_expert          nothing: it asks the checker                 the best expert for the prompt
    product of experts (no router)      uniform_average        nothing                                      the mean of all log pi_i
    TaskArithmetic, DARE                task_arithmetic, dare  nothing: merge                               one model out of three
    Sequence Selection                  sequence_selection     baselines.py: the reward model               the best of three answers
    Collab                              collab                 baselines.py: the reward model               the best of three tokens

"tuned" rows have the setting that won on validation prompts; task_arithmetic_paper and dare_paper the paper's (scale 1; p 0.9). The
Fine-tuned Model has the same start, data, pairs and budget as FusionRoute.

    python baselines.py --seed 0       trains the reward model: OUT/seedN/reward.pt

The reward model is a small GPT with a scalar head, learned from preference pairs (Bradley-Terry). It starts where the router starts. A
`Router` with one output is such a model: its "routing weight" is the score. No baseline ever sees the checkers at test time.

Departures from the papers of these baselines:
1. Collab scores a proposal after a look ahead of `lookahead` tokens of the proposing expert, greedy, by our reward model. Where all
   experts propose the same token nothing is looked at, since every choice would be the same.
2. Co-LLM lets a trained base model defer to one assistant. Here the router defers to one of the experts at every token (`co_llm`);
   `co_llm_self` adds the router's language model itself as one more choice, which is closer to the original.
3. DARE drops entries of the task vectors by a seeded coin per entry, in every tensor alike.
"""

import time
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from tqdm import tqdm

import common
from decode import load, read_on
from fusionroute import Router, cdpo_loss, fuse, log_pi_agg, mean, sequence_logp, sft_loss, token_logp
from model import generate
from toy_experts import pairs, tokenizer
from toy_experts import train as toy

# --- neighbours of the losses: train_sft.py --loss NAME, train_cdpo.py --loss NAME --------------------------------------------------------

SFT_LOSSES = {
    "paper": "Eq. (2)",
    "plain": "L_LM alone: ordinary SFT",
    "all": "Eq. (2) with L_expert on all positions instead of S",
    "raw": "Eq. (2), log pi_agg with the raw weights",
    "renormalised": "Eq. (2), log pi_agg renormalised over the vocabulary",
    "mixture": "Eq. (2), pi_agg = sum_i w_i pi_i",
    "best": "Eq. (2), instead of log pi_agg the log-weight of the expert that gives y_t the highest probability",
    "co_llm": "log sum_i w_i pi_i(y_t) at all positions",
    "co_llm_self": "the same with the router's language model as one more choice",
    "fused": "Eq. (2) with L_LM of the fused distribution of Eq. (1) instead of the router's own",
    "fused_own": "the same with 0.2 times the router's own L_LM on top",
}
PAIR_LOSSES = {
    "paper": "Eq. (3)",
    "plain": "Eq. (3) without the bias: ordinary DPO of the router's language model",
    "gradient": "Eq. (3) with the gradient through the bias, which is then log pi_agg's, because a pick has none",
    "fused": "ordinary DPO of the normalised fused policy of Eq. (1)",
    "sft": "no preference at all: SFT on y_w for as many steps",
}
READ_EXPERTS = {"renormalised", "fused", "fused_own"}  # losses that need the experts' whole distributions


@torch.no_grad()
def read(experts, ids):
    """All experts' log-probabilities of every next token: ids (B, T) -> (B, T, n, V)."""
    return torch.stack([expert(ids)[0].log_softmax(-1) for expert in experts], 2)


def picked(full, w):
    """The distribution of the expert that w picks: full (B, T, n, V), w (B, T, n) -> (B, T, V)."""
    pick = w.argmax(-1)[..., None, None].expand(-1, -1, 1, full.size(-1))  # (B, T, 1, V)
    return full.gather(2, pick)[:, :, 0]                                   # (B, T, V)


def everywhere(choice):
    return torch.ones_like(choice[..., 0], dtype=torch.bool)


def mixture(w, logp):
    """log sum_i softmax(w)_i pi_i(y_t). (..., n), (..., n) -> (...)."""
    return (w.log_softmax(-1) + logp).logsumexp(-1)


def sft_variant(loss, logits, w, targets, mask, logp, choice, lam, full, mean=mean):
    """A neighbour of Eq. (2) by its name in SFT_LOSSES; arguments as in sft_loss, full (B, T, n, V) or None as from `read`."""
    given, eq2 = (targets, mask, logp, choice), partial(sft_loss, mean=mean)
    match loss:
        case "plain":
            return eq2(logits, w, *given, 0.0)
        case "all":
            return eq2(logits, w, *given, lam, positions=everywhere)
        case "raw":
            return eq2(logits, w, *given, lam, agg=lambda w, logp: (w * logp).sum(-1))
        case "renormalised":
            return eq2(logits, w, *given, lam, agg=lambda w, _: token_logp((w.softmax(-1)[..., None] * full).sum(2), targets))
        case "mixture":
            return eq2(logits, w, *given, lam, agg=mixture)
        case "best":
            return eq2(logits, w, *given, lam, agg=lambda w, logp: w.log_softmax(-1).gather(-1, logp.argmax(-1, True))[..., 0])
        case "co_llm":
            return eq2(logits, w, *given, 1.0, positions=everywhere, agg=mixture)
        case "co_llm_self":
            own = token_logp(logits, targets)[..., None]                                              # (B, T, 1)
            return eq2(logits, w, *given, 1.0, positions=everywhere, agg=lambda w, logp: mixture(w, torch.cat([logp, own], -1)))
        case "fused" | "fused_own":
            total, info = eq2(fuse(logits, picked(full, w)), w, *given, lam)                          # the pick is held fixed
            return total - (0.2 if loss == "fused_own" else 0.0) * mean(token_logp(logits, targets)[mask]), info


def pair_variant(loss, logits, w, targets, mask, logp, ref, beta, full, mean=mean):
    """A neighbour of Eq. (3) by its name in PAIR_LOSSES, for rows y_w, y_l in turn. logits (2B, T, V), w and logp (2B, T, n),
    targets and mask (2B, T), ref (2B,): the reference's sequence log-probability, of the fused policy for "fused"."""
    theta, zero = sequence_logp(logits, targets, mask), torch.zeros_like(ref[::2])                    # (2B,), (B,)
    if loss == "fused":
        theta = sequence_logp(fuse(logits, picked(full, w)), targets, mask)                           # (2B,)
    elif loss == "gradient":
        theta = theta + (log_pi_agg(w, logp) * mask).sum(-1)                                          # (2B,)
    elif loss == "sft":
        lm = mean(-token_logp(logits, targets)[::2][mask[::2]])
        return lm, {"loss_lm": lm.detach()}
    return cdpo_loss(theta[::2], theta[1::2], ref[::2], ref[1::2], zero, zero, beta, mean)


@torch.no_grad()
def fused_reference(router, experts, ids, mask, lengths, batch=64):
    """log pi(y | x) of the normalised fused policy as it is now: ids, mask (N, T), lengths (N,) -> (N,)."""
    out = torch.zeros(len(ids))
    for rows in lengths.argsort().split(batch):
        x = ids[rows, :int(lengths[rows].max())].to(router.W.weight.device)                           # (b, t)
        logits, w = router(x[:, :-1])
        logits = fuse(logits, picked(read(experts, x[:, :-1]), w))                                    # (b, t-1, V)
        out[rows] = sequence_logp(logits, x[:, 1:], mask[rows, 1:x.size(1)].to(x.device)).cpu()
    return out


# --- merging: one model from base and experts ---------------------------------------------------------------------------------------------


def merge(base, experts, scale, drop=0.0, seed=0):
    """TaskArithmetic: theta_base + scale * sum_i (theta_i - theta_base), as a new GPT. With drop = p it is DARE: every entry of every
    task vector is dropped with probability p, and the others are divided by 1 - p, so that its expectation stays."""
    merged, coin = deepcopy(base), torch.Generator().manual_seed(seed)
    weights = {name: p.detach().cpu() for name, p in base.named_parameters()}
    for expert in experts:
        for name, p in expert.named_parameters():
            delta = p.detach().cpu() - weights[name]
            keep = torch.rand(delta.shape, generator=coin) >= drop
            merged.get_parameter(name).data += (scale * keep * delta / (1 - drop)).to(p.device)
    return merged


# --- decoding without a router --------------------------------------------------------------------------------------------------------------


def buffers(prompts, room, models):
    """What a decoder starts with: text (B, longest + room), have (B,) tokens in it, rows (B,) all of them, one cache a model."""
    lms = [getattr(model, "lm", model) for model in models]
    device = lms[0].embed.weight.device
    have = torch.tensor([len(p) for p in prompts], device=device)                                     # (B,)
    text = torch.zeros(len(prompts), int(have.max()) + room, dtype=torch.long, device=device)         # (B, T)
    for b, p in enumerate(prompts):
        text[b, :len(p)] = torch.tensor(p)
    caches = [lm.new_cache(len(prompts), min(text.size(1), lm.config.max_len)) for lm in lms]
    return text, have, torch.arange(len(prompts), device=device), caches


def extend(text, have, rows, token, end):
    """Write one token (b,) to each of rows (b,), in place; returns the rows that go on. The end token is not written."""
    rows, token = rows[token != end], token[token != end]
    text[rows, have[rows]] = token
    have[rows] += 1
    return rows


def written(prompts, text, have):
    return [text[b, len(p):have[b]].tolist() for b, p in enumerate(prompts)]


@torch.no_grad()
def uniform_average(experts, prompts, end, max_new):
    """Greedy under the mean of all experts' log-probabilities. prompts: token-id lists; returns answers without the end token."""
    text, have, rows, caches = buffers(prompts, max_new, experts)
    for _ in range(max_new):
        logits = sum(read_on(e, c, rows, text, have)[0].log_softmax(-1) for e, c in zip(experts, caches))  # (b, V)
        rows = extend(text, have, rows, logits.argmax(-1), end)
        if not len(rows):
            break
    return written(prompts, text, have)


def sequence_selection(experts, reward, prompts, end, max_new):
    """Every expert writes a whole greedy answer; the reward model picks one. Arguments and result as in uniform_average."""
    answers = [generate(expert, prompts, max_new, end) for expert in experts]                         # n times B
    scores = torch.stack([score_whole(reward, prompts, a, end, max_new) for a in answers])            # (n, B)
    return [answers[i][b] for b, i in enumerate(scores.argmax(0).tolist())]


@torch.no_grad()
def score_whole(reward, prompts, answers, end, max_new):
    """The reward of whole answers, (B,). An answer that stopped at max_new has no end token."""
    ids, _, lengths = common.pack([common.answer_only(p, a + [end] * (len(a) < max_new)) for p, a in zip(prompts, answers)])
    r = reward(ids.to(reward.W.weight.device))[1][..., 0].cpu()                                       # (B, T)
    return r.gather(1, lengths[:, None] - 1)[:, 0]                                                    # (B,)


@torch.no_grad()
def collab(experts, reward, prompts, end, max_new, lookahead):
    """At every token each expert proposes its own, goes on by itself up to `lookahead` tokens in all, and the reward model scores what
    it would have written; the best proposal stays. Arguments and result as in uniform_average."""
    text, have, rows, (*caches, reward_cache) = buffers(prompts, max_new + lookahead, [*experts, reward])
    room = reward_cache.kv[0].size(3)                                                                 # may end before text does
    for _ in range(max_new):
        lookahead = min(lookahead, room - int(have.max()))
        proposal = torch.stack([read_on(e, c, rows, text, have)[0].argmax(-1) for e, c in zip(experts, caches)], 1)  # (b, n)
        token = proposal[:, 0].clone()                                                                # (b,)
        split = (proposal != proposal[:, :1]).any(1)                                                  # (b,): elsewhere nothing to choose
        if split.any():
            scores = [look_ahead(e, c, reward, reward_cache, rows[split], proposal[split, i], text, have, end, lookahead)
                      for i, (e, c) in enumerate(zip(experts, caches))]                               # n times (s,)
            best = torch.stack(scores, 1).argmax(1, keepdim=True)                                     # (s, 1)
            token[split] = proposal[split].gather(1, best)[:, 0]
        rows = extend(text, have, rows, token, end)
        if not len(rows):
            break
    return written(prompts, text, have)


def look_ahead(expert, cache, reward, reward_cache, rows, token, text, have, end, lookahead):
    """The reward of each row's text with token (s,) and the expert's greedy continuation, (s,). Leaves text and caches as they were."""
    trial, count, active = text.clone(), have.clone(), rows
    for step in range(lookahead):
        trial[active, count[active]] = token                                                          # here the end token counts too
        count[active] += 1
        active = active[token != end]
        if not len(active) or step + 1 == lookahead:
            break
        token = read_on(expert, cache, active, trial, count)[0].argmax(-1)                            # (a,)
    score = read_on(reward, reward_cache, rows, trial, count)[1][:, 0]                                # (s,)
    cache.length[rows], reward_cache.length[rows] = have[rows], have[rows]                            # the trial is forgotten
    return score


# --- the reward model -------------------------------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    seed: int = 0              # selects the run: all data and weights follow from it
    out: str = "out"           # runs are kept in OUT/seedN/
    device: str = "auto"       # auto, cuda, mps or cpu
    family: str = "llama"      # architecture of the toy's models: llama or gemma (Gemma-2)
    name: str = "reward"       # the checkpoint is OUT/seedN/NAME.pt
    prompts: int = 2000        # prompts of the preference split to make pairs from, as in phase 2
    tries: int = 2             # answers sampled for each prompt
    temperature: float = 1.0   # temperature of these samples
    rejected: str = "fused"    # whose mistakes y_l are: fused (phase 2's own pairs), router, experts or corrupted
    epochs: int = 4            # passes over the pairs
    batch: int = 16            # pairs a step
    lr: float = 1e-3           # peak learning rate of the language model
    lr_w: float = 1e-2         # peak learning rate of the scalar head, which starts at zero
    prefixes: int = 1          # 1: learn from answers cut short as well, which Collab has scored; 0: whole answers only

    def __post_init__(self):
        common.positive(self, "prompts", "tries", "temperature", "epochs", "batch", "lr", "lr_w")
        common.positive(self, "prefixes", or_zero=True)
        common.one_of(self, "rejected", pairs.SOURCES)
        common.file_stem(self, "name")


def reward_loss(r_w, r_l):
    """Bradley-Terry: -log sigmoid(r_w - r_l), mean over pairs; the scores of chosen and rejected, (B,) each."""
    return -F.logsigmoid(r_w - r_l).mean()


def train_reward(s):
    """Train the reward model of a run and write OUT/seedN/NAME.pt, unless it is there."""
    begun, (router, experts) = time.time(), load(s, "router_sft")
    folder, device = common.prepare(s)
    path, made_from = folder / f"{s.name}.pt", common.fingerprints(["router_sft"], [router])
    recipe = common.recipe(s) | made_from
    if path.exists():
        common.check_same(path, common.load_model(path, tokenizer.FINGERPRINT, "start again", router=True)[1]["recipe"], recipe)
        return print(f"{path} is there already")
    ids, mask, lengths = common.pack(pairs.read(pairs.sample(s, folder, router, experts, made_from["router_sft"]), router.lm.config.max_len))
    first, size, last = mask.int().argmax(1), mask.sum(1), lengths - 1             # (2P,): where an answer begins, its tokens, its end
    order = torch.randperm(len(ids) // 2, generator=torch.Generator().manual_seed(s.seed))  # (P,): the file is sorted by length
    held, train = order.tensor_split([max(1, len(order) // 10)])                   # a tenth of the pairs only measures
    plan = [train[rows] for e in range(s.epochs) for rows in common.batches(lengths[::2][train], s.batch, s.seed * 1000 + e)]
    model = Router(deepcopy(experts[toy.EXPERTS.index("instruct")]), 1).to(device).requires_grad_(True)
    optimizer = torch.optim.AdamW([{"params": model.lm.parameters(), "peak": s.lr}, {"params": model.W.parameters(), "peak": s.lr_w}],
                                  lr=s.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    coin, log = torch.Generator().manual_seed(s.seed), []

    def scores(pair, offset=None):
        """Of chosen and rejected, (B,) each: whole, or cut behind the token `offset` (B,) of the answer. pair (B,)."""
        rows = torch.stack([2 * pair, 2 * pair + 1], 1).flatten()                  # (2B,): y_w, y_l in turn
        at = last[rows] if offset is None else first[rows] + offset.repeat_interleave(2)  # (2B,)
        r = model(ids[rows, :int(at.max()) + 1].to(device))[1][..., 0]             # (2B, T): a score at every prefix
        r = r.gather(1, at[:, None].to(device))[:, 0]                              # (2B,)
        return r[::2], r[1::2]

    bar = tqdm(plan, desc="reward model", mininterval=1.0)
    for step, pair in enumerate(bar):
        loss = reward_loss(*scores(pair))
        if s.prefixes:
            shorter = torch.minimum(size[2 * pair], size[2 * pair + 1])            # (B,)
            loss = (loss + reward_loss(*scores(pair, (torch.rand(len(pair), generator=coin) * shorter).long()))) / 2
        common.update(loss, model, optimizer, common.schedule(step, len(plan), warmup=20))
        log.append({"step": step, "loss": round(loss.item(), 5)})
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    with torch.no_grad():
        r_w, r_l = scores(held)
    log.append({"pairs": len(ids) // 2, "held_out_accuracy": round(float((r_w > r_l).float().mean()), 4)})
    print(f"the reward model prefers y_w in {log[-1]['held_out_accuracy']:.0%} of {len(held)} held-out pairs")
    common.write_log(folder / f"{s.name}.log.jsonl", log)
    common.save_model(path, model, tokenizer.FINGERPRINT, recipe, time.time() - begun, {"reward": ""})


def main(argv=None):
    train_reward(common.settings(Settings, __doc__, argv))


if __name__ == "__main__":
    common.run(main)
