"""What FusionRoute is compared with: merging, decoders without a router, and the reward model that two of them need.

Each row of the tables is a limit or a neighbour of one fused decoder, so that a difference has one cause:

    row of the tables                   name in the code       trained by (train.TRAINING)                  decodes with
    FusionRoute                         fusionroute            Sft(), then Cdpo()                           Eq. (1)
    phase 1 only                        sft_only               Sft()                                        Eq. (1)
    routing only                        routing_only           as FusionRoute                               the picked expert alone
    router alone                        router                 as FusionRoute                               the router's language model
    through the fusion, phase 1         fused_sft              Sft(loss="fused_own", lr=2e-3)               Eq. (1)
    through the fusion, both            fused_full             the same, then Cdpo(phase1="fused_sft")      Eq. (1)
    Co-LLM-style routing                co_llm                 Sft(loss="co_llm")                           the picked expert alone
    Co-LLM-style, the router a choice   co_llm_self            Sft(loss="co_llm_self")                      the picked expert or the router
    Fine-tuned Model                    fine_tuned             both phases with loss="plain"                the router's language model
    math, code, instruction expert      math_expert, ...       toy_experts/train.py                         that expert
    with more passes over the data:
    FusionRoute, tuned budget           fusionroute_long       Sft(epochs=16), then Cdpo()                  Eq. (1)
    phase 1 only, tuned budget          sft_long               Sft(epochs=16)                               Eq. (1)
    Fine-tuned Model, tuned budget      fine_tuned_long        both phases with loss="plain"                the router's language model
    its phase 1 only                    fine_tuned_sft_long    Sft(loss="plain", lr=1e-3, epochs=16)        the router's language model
    with the experts' own data:
    generalist (a bound)                generalist             Union(), then Sft() with loss="plain"        the router's language model
    at the cost of two models a token, as FusionRoute:
    one model of twice the size         double                 Double(), then Sft() with loss="plain"       the router's language model
    sum of two models, tuned budget     two_fine_tuned         Sft() with loss="plain", two starts          the sum of both log pi
    what the choice is worth, what the addition is worth:
    router + mean of experts            router_mean            as FusionRoute                               the router and all log pi_i
    router + math expert, ...           router_math, ...       as FusionRoute                               Eq. (1), always that expert
    router + random expert in S         router_random          as FusionRoute                               Eq. (1), in S a random expert
    L_expert everywhere, phase 1        sft_all                Sft(loss="all")                              Eq. (1)
    L_expert everywhere, both           fusionroute_all        the same, then Cdpo(phase1="sft_all")        Eq. (1)

    oracle expert (a bound)             oracle_expert          nothing: it asks the checker                 the best expert for the prompt
    product of experts (no router)      uniform_average        nothing                                      the mean of all log pi_i
    TaskArithmetic, DARE                task_arithmetic, dare  nothing: merge                               one model out of three
    Sequence Selection                  sequence_selection     Reward()                                     the best of three answers
    Collab                              collab                 Reward()                                     the best of three tokens
    Sequence Selection, better judge    selection_lm           as Fine-tuned Model, tuned budget            the answer it finds likeliest
    Collab, better judge                collab_lm              as Fine-tuned Model, tuned budget            the token, likewise

Rows called "tuned" have the setting that won on validation prompts; task_arithmetic_paper and dare_paper have the paper's (scale 1;
p 0.9). The Fine-tuned Model has the same start, data and pairs as FusionRoute, and the same budget or its own best (tune.py). (With the
tuned budget its pairs are still those after four passes. Its DPO moves nothing in either.) The generalist needs the experts' training data,
which the paper's premise denies: it is a bound, not a rival. The better judge is the Fine-tuned Model's likelihood; it was not compared with
others in a file.

    python -m extra.paper.baselines    trains the reward model: OUT/seedN/reward.pt

The reward model is a small GPT with one number as its output, trained on preference pairs (Bradley-Terry). It starts where the router
starts. A `Router` with one output is such a model: its "routing weight" is the score. No baseline sees the checkers at test time.

Departures from the papers of these baselines:
1. Collab scores a proposal after a look-ahead of `lookahead` tokens of the proposing expert, greedy, by our reward model. Where all
   experts propose the same token, nothing is scored, because every choice would be the same.
2. Co-LLM lets a trained base model defer to one assistant. Here the router defers to one of the experts at every token (`co_llm`).
   `co_llm_self` adds the router's language model itself as one more choice, which is closer to the original.
3. DARE drops entries of the task vectors by a seeded coin for each entry, in every tensor alike.
"""

import time
from copy import deepcopy
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from extra.common import add_flags, one_of
from extra import models
from extra.paper import variants
from extra.models import Settings
from fusionroute import Router, fuse, informative, token_logp
from model import generate
from toy_experts import pairs as toy_pairs
from toy_experts import run
from toy_experts import train as toy
from toy_experts.data import answer_only, batches, pack
from toy_experts.batch import read_on

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
def all_read(models, prompts, end, max_new, rule):
    """Greedy decoding in which every model reads every token. prompts: token-id lists; returns answers without the end token.

    rule: from what the models say of the next token, a list of their logits (b, V) and one of their second outputs (of a Router: w
    (b, n)), to the logits (b, V) from which it is taken.
    """
    text, have, rows, caches = buffers(prompts, max_new, models)
    for _ in range(max_new):
        logits, second = zip(*(read_on(m, c, rows, text, have) for m, c in zip(models, caches)))
        rows = extend(text, have, rows, rule(logits, second).argmax(-1), end)
        if not len(rows):
            break
    return written(prompts, text, have)


def product(logits, _):
    """The product of all models: the sum of their log-probabilities, whose greatest token is that of their mean."""
    return sum(x.log_softmax(-1) for x in logits)                                                     # (b, V)


def plus_mean(logits, _):
    """The first model's log-probabilities plus the mean of the others': Eq. (1) without a choice."""
    return logits[0].log_softmax(-1) + product(logits[1:], _) / (len(logits) - 1)                     # (b, V)


def plus_random(seed):
    """A rule: Eq. (1), but in S, where the experts' own tokens differ, with an expert drawn at random instead of the router's pick."""
    coin = torch.Generator().manual_seed(seed)

    def rule(logits, second):
        experts = torch.stack(logits[1:], 1)                                                          # (b, n, V)
        drawn = torch.randint(experts.size(1), second[0][:, 0].shape, generator=coin).to(experts.device)  # (b,)
        pick = torch.where(informative(experts.argmax(-1)), drawn, second[0].argmax(-1))              # (b,)
        return fuse(logits[0], experts[torch.arange(len(pick)), pick])                                # (b, V)
    return rule


def sequence_selection(experts, judge, prompts, end, max_new, mean=False):
    """Every expert writes a whole greedy answer; the judge picks one. Result as in all_read.

    judge: a reward model, or a language model: then what it gives the highest likelihood (with `mean`, per token) is picked.
    """
    answers = [generate(expert, prompts, max_new, end) for expert in experts]                         # n times B
    scores = torch.stack([score_whole(judge, prompts, a, end, max_new, mean) for a in answers])       # (n, B)
    return [answers[i][b] for b, i in enumerate(scores.argmax(0).tolist())]


@torch.no_grad()
def score_whole(judge, prompts, answers, end, max_new, mean):
    """The judge's score of whole answers, (B,). An answer that stopped at max_new has no end token."""
    ids, _, lengths = pack([answer_only(p, a + [end] * (len(a) < max_new)) for p, a in zip(prompts, answers)])
    if not hasattr(judge, "W"):  # a language model
        return likelihood(judge, ids, torch.tensor([len(p) for p in prompts]), lengths, mean)         # (B,)
    r = judge(ids.to(judge.W.weight.device))[1][..., 0].cpu()                                         # (B, T)
    return r.gather(1, lengths[:, None] - 1)[:, 0]                                                    # (B,)


def likelihood(lm, ids, first, stop, mean):
    """A language model's log-probability of each row's tokens first to stop - 1, their sum or mean: ids (B, T), first, stop (B,) -> (B,)."""
    device = lm.embed.weight.device
    logp = token_logp(lm(ids[:, :-1].to(device))[0], ids[:, 1:].to(device)).to(ids.device)            # (B, T-1)
    place = torch.arange(1, ids.size(1), device=ids.device)                                           # (T-1,)
    inside = (place >= first[:, None]) & (place < stop[:, None])                                      # (B, T-1)
    return (logp * inside).sum(1) / (inside.sum(1) if mean else 1)                                    # (B,)


@torch.no_grad()
def collab(experts, judge, prompts, end, max_new, lookahead, mean=False):
    """At every token each expert proposes its own, goes on by itself up to `lookahead` tokens in all, and the judge scores what it
    would have written; the best proposal stays. judge and mean as in sequence_selection, the result as in all_read."""
    text, have, rows, (*caches, judge_cache) = buffers(prompts, max_new + lookahead, [*experts, judge])
    room = judge_cache.kv[0].size(3)                                                                  # may end before text does
    for _ in range(max_new):
        lookahead = min(lookahead, room - int(have.max()))
        proposal = torch.stack([read_on(e, c, rows, text, have)[0].argmax(-1) for e, c in zip(experts, caches)], 1)  # (b, n)
        token = proposal[:, 0].clone()                                                                # (b,)
        split = (proposal != proposal[:, :1]).any(1)                                                  # (b,): elsewhere nothing to choose
        if split.any():
            scores = [look_ahead(e, c, judge, judge_cache, rows[split], proposal[split, i], text, have, end, lookahead, mean)
                      for i, (e, c) in enumerate(zip(experts, caches))]                               # n times (s,)
            best = torch.stack(scores, 1).argmax(1, keepdim=True)                                     # (s, 1)
            token[split] = proposal[split].gather(1, best)[:, 0]
        rows = extend(text, have, rows, token, end)
        if not len(rows):
            break
    return written(prompts, text, have)


def look_ahead(expert, cache, judge, judge_cache, rows, token, text, have, end, lookahead, mean):
    """The judge's score of each row's text with token (s,) and the expert's greedy continuation, (s,). Leaves text and caches as they were."""
    trial, count, active = text.clone(), have.clone(), rows
    for step in range(lookahead):
        trial[active, count[active]] = token                                                          # here the end token counts too
        count[active] += 1
        active = active[token != end]
        if not len(active) or step + 1 == lookahead:
            break
        token = read_on(expert, cache, active, trial, count)[0].argmax(-1)                            # (a,)
    if hasattr(judge, "W"):  # a reward model
        score = read_on(judge, judge_cache, rows, trial, count)[1][:, 0]                              # (s,)
    else:
        score = likelihood(judge, trial[rows, :int(count[rows].max())], have[rows], count[rows], mean)  # (s,)
    cache.length[rows], judge_cache.length[rows] = have[rows], have[rows]                             # the trial is forgotten
    return score


# --- the reward model ---------------------------------------------------------------------------------------------------------------------

BATCH = 16  # pairs a step


@dataclass(frozen=True)
class Reward:
    rejected: str = "experts"  # whose mistakes the rejected answers are: fused, router, experts or corrupted
    prompts: int = 2000        # prompts from which pairs are made, as in phase 2
    epochs: int = 4            # passes over the pairs
    lr: float = 1e-3           # peak learning rate of the language model
    lr_w: float = 1e-2         # peak learning rate of the output, which starts at zero
    prefixes: int = 1          # 1: train on answers cut short as well, which Collab scores; 0: on whole answers only

    def __post_init__(self):
        run.positive(self, "prompts", "epochs", "lr", "lr_w")
        run.positive(self, "prefixes", or_zero=True)
        one_of(self, "rejected", variants.SOURCES)


def reward_loss(r_chosen, r_rejected):
    """Bradley-Terry: -log sigmoid(r_chosen - r_rejected), mean over pairs; both (B,)."""
    return -F.logsigmoid(r_chosen - r_rejected).mean()


def train_reward(s, name="reward", spec=Reward()):
    """Train the reward model of a run and write NAME.pt, unless it is there."""
    begun, (router, experts, _) = time.time(), models.load_router(s, "router_sft")
    directory, device = run.prepare(models.place(s))
    path, recipe = directory / f"{name}.pt", {"seed": s.seed} | asdict(spec) | {"router_sft": run.fingerprint(router)}
    if path.exists():
        run.check_same(path, models.load_model(path, "start again", router=True)[1]["recipe"], recipe)
        return print(f"{path} is there already")
    found = variants.sample_pairs(router, experts, s.seed, spec.prompts, spec.rejected)
    ids, mask, lengths = pack(toy_pairs.samples(found))                            # rows 2i and 2i + 1: chosen and rejected of pair i
    first, size, last = mask.int().argmax(1), mask.sum(1), lengths - 1             # (2P,): where an answer begins, its tokens, its end
    order = torch.randperm(len(ids) // 2, generator=torch.Generator().manual_seed(s.seed))  # (P,): the pairs are sorted by length
    held, rest = order.tensor_split([max(1, len(order) // 10)])                    # a tenth of the pairs only measures
    plan = [rest[rows] for e in range(spec.epochs) for rows in batches(lengths[::2][rest], BATCH, s.seed * 1000 + e)]
    model = Router(deepcopy(experts[toy.EXPERTS.index("instruct")]), 1).to(device).requires_grad_(True)
    optimizer = torch.optim.AdamW([{"params": model.lm.parameters(), "lr": spec.lr}, {"params": model.W.parameters(), "lr": spec.lr_w}],
                                  betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: toy.schedule(step, len(plan), warmup=20))
    coin, log = torch.Generator().manual_seed(s.seed), run.Log([])

    def scores(pair, offset=None):
        """Of chosen and rejected, (B,) each: whole, or cut after the token `offset` (B,) of the answer. pair (B,)."""
        rows = torch.stack([2 * pair, 2 * pair + 1], 1).flatten()                  # (2B,): chosen, rejected in turn
        at = last[rows] if offset is None else first[rows] + offset.repeat_interleave(2)  # (2B,)
        r = model(ids[rows, :int(at.max()) + 1].to(device))[1][..., 0]             # (2B, T): a score at every prefix
        return r.gather(1, at[:, None].to(device)).view(-1, 2).unbind(1)           # (B,), (B,)

    for pair in tqdm(plan, desc="reward model", mininterval=1.0):
        loss = reward_loss(*scores(pair))
        if spec.prefixes:
            shorter = torch.minimum(size[2 * pair], size[2 * pair + 1])            # (B,)
            loss = (loss + reward_loss(*scores(pair, (torch.rand(len(pair), generator=coin) * shorter).long()))) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        log.add(loss, {}, "pair")
    with torch.no_grad():
        r_chosen, r_rejected = scores(held)
    log.append({"pairs": len(ids) // 2, "held_out_accuracy": round(float((r_chosen > r_rejected).float().mean()), 4)})
    print(f"the reward model prefers the chosen answer in {log[-1]['held_out_accuracy']:.0%} of {len(held)} held-out pairs")
    log.save(directory / f"{name}.log.jsonl")
    run.save_model(path, model, recipe, time.time() - begun, {"reward": ""})


def main(argv=None):
    p = run.parser(Settings, __doc__)
    add_flags(p, Reward, vars(Reward()))
    args = vars(p.parse_args(argv))
    spec = Reward(**{name: args.pop(name) for name in vars(Reward())})
    train_reward(Settings(**args), spec=spec)


if __name__ == "__main__":
    run.run(main)
