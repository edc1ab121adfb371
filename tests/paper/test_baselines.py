"""The baselines and the neighbours of both losses: each in a limit where its answer is known, or against a slow and obvious computation."""

import math
from random import Random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from extra.gpt import GPT, GPTConfig
from extra import models
from extra.paper import baselines, delta, variants
from extra.paper.train import Cdpo, Sft, train
from fusionroute import Router, cdpo_loss, fuse, sft_loss
from model import generate
from toy_experts import pairs as toy_pairs
from toy_experts import run, tasks, tokenizer
from toy_experts.data import answer_only, pack

V, END, N = 11, 10, 3
CONFIG = GPTConfig(vocab_size=V, d_model=24, n_layer=1, n_head=1, n_kv_head=1, d_ff=32, max_len=64, tied=False)
PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 1], [2], [3, 8], [9, 9, 4, 4], [5, 1, 7], [8]]


def gpt(seed):
    torch.manual_seed(seed)
    model = GPT(CONFIG).eval().requires_grad_(False)
    return model


@pytest.fixture
def experts():
    return [gpt(i) for i in range(N)]


@pytest.fixture
def reward():
    router = Router(gpt(7), 1).requires_grad_(False)
    router.W.weight.data.normal_()
    return router


def logp_of(model, text):
    """log-probabilities (V,) of the next token, from the whole text."""
    return model(torch.tensor([text]))[0][0, -1].log_softmax(-1)


# --- decoders -----------------------------------------------------------------------------------------------------------------------------


def test_uniform_average_equals_the_sum_written_out(experts):
    got = baselines.all_read(experts, PROMPTS, END, 12, baselines.product)
    assert len({tuple(x) for x in got}) > 1
    for prompt, answer in zip(PROMPTS, got):
        text = list(prompt)
        for _ in range(12):
            token = int(sum(logp_of(e, text) for e in experts).argmax())
            if token == END:
                break
            text.append(token)
        assert text[len(prompt):] == answer
    assert baselines.all_read(experts[:1], PROMPTS, END, 12, baselines.product) == generate(experts[0], PROMPTS, 12, END)


def score_of(reward, text):
    return float(reward(torch.tensor([text]))[1][0, -1, 0])


def test_a_language_model_judges_by_its_likelihood(experts):
    """Of the answer's tokens alone, its end included, summed or per token."""
    prompt, answer, lm = PROMPTS[0], [7, 9, 7], experts[0]
    logp = logp_by_hand = [float(lm(torch.tensor([prompt + answer[:k]]))[0][0, -1].log_softmax(-1)[t]) for k, t in enumerate(answer + [END])]
    for mean, value in ((False, sum(logp)), (True, sum(logp) / 4)):
        got = baselines.score_whole(lm, [prompt, PROMPTS[1]], [answer, []], END, 12, mean)
        assert float(got[0]) == pytest.approx(value, abs=1e-4)
    assert float(baselines.score_whole(lm, [prompt], [answer], END, 3, False)[0]) == pytest.approx(sum(logp_by_hand[:3]), abs=1e-4)  # cut: no end


@pytest.mark.parametrize("mean", [False, True])
def test_collab_with_a_language_model_as_its_judge(experts, mean):
    """Every continuation is judged by the likelihood of what it adds."""
    judge, lookahead, max_new = gpt(7), 3, 8
    got, winners = baselines.collab(experts, judge, PROMPTS, END, max_new, lookahead, mean), set()
    for prompt, answer in zip(PROMPTS, got):
        text = list(prompt)
        for _ in range(max_new):
            trials = [generate(e, [text], lookahead, END)[0] for e in experts]
            trials = [t + [END] * (len(t) < lookahead) for t in trials]
            scores = []
            for t in trials:
                logp = judge(torch.tensor([text + t]))[0][0].log_softmax(-1)
                each = [float(logp[len(text) + k - 1, token]) for k, token in enumerate(t)]
                scores.append(sum(each) / (len(each) if mean else 1))
            best = scores.index(max(scores))
            winners |= {best} if len({t[0] for t in trials}) > 1 else set()
            if trials[best][0] == END:
                break
            text.append(trials[best][0])
        assert text[len(prompt):] == answer
    assert len(winners) > 1


def test_a_random_expert_takes_the_picks_place_in_S_only(experts):
    """Where the experts' own tokens differ, each expert is drawn about equally often; elsewhere the router's pick counts."""
    rule, rows, V = baselines.plus_random(0), 3000, 11
    router, apart = torch.zeros(rows, V), [torch.nn.functional.one_hot(torch.full((rows,), i), V) * 9.0 for i in range(3)]
    w = torch.tensor([[0.0, 5.0, 1.0]]).expand(rows, 3)
    drawn = rule([router, *apart], [w, None, None, None]).argmax(-1)
    assert all(0.28 < (drawn == i).float().mean() < 0.39 for i in range(3))
    agree = [apart[0] + 3 * torch.nn.functional.one_hot(torch.full((rows,), 4 + i), V) for i in range(3)]  # all say 0, and expert i also 4 + i
    assert (rule([router - 9 * torch.eye(V)[0], *agree], [w, None, None, None]).argmax(-1) == 5).all()


def test_the_loss_at_right_tokens_by_hand(experts):
    """delta.losses: 1 - p(y_t) of the best expert at each token, and of Eq. (1) with the picked one; prompts do not count."""
    router = Router(gpt(8), 3).requires_grad_(False)
    torch.nn.init.normal_(router.W.weight, std=3)
    samples = [answer_only(p, a) for p, a in zip(PROMPTS, ([5, 9, END], [7, END], [6, 5, 7, 9, END]))]
    best, fused = delta.losses(router, experts, samples, batch=2)
    for (ids, learn), b, f in zip(samples, best, fused):
        assert len(b) == len(f) == sum(learn)
        for k, t in enumerate(range(len(ids) - sum(learn), len(ids))):
            x = torch.tensor([ids[:t]])
            p = [e(x)[0][0, -1].softmax(-1) for e in experts]
            logits, w = router(x)
            both = (logits[0, -1].log_softmax(-1) + p[int(w[0, -1].argmax())].log()).softmax(-1)
            assert float(b[k]) == pytest.approx(1 - max(float(q[ids[t]]) for q in p), abs=1e-5)
            assert float(f[k]) == pytest.approx(1 - float(both[ids[t]]), abs=1e-5)
    s = delta.summary([torch.tensor([0.1, 0.6]), torch.tensor([0.2])])
    assert s == pytest.approx({"Delta": 0.6, "mean": 0.3, "above_half": 1 / 3, "answers_above_half": 0.5, "sum": 0.45, "tokens": 1.5})


def test_sequence_selection_takes_the_answer_of_the_highest_reward(experts, reward):
    answers = [generate(e, PROMPTS, 12, END) for e in experts]
    chosen = baselines.sequence_selection(experts, reward, PROMPTS, END, 12)
    picks = []
    for b, prompt in enumerate(PROMPTS):
        scores = [score_of(reward, prompt + a[b] + ([END] if len(a[b]) < 12 else [])) for a in answers]
        picks.append(scores.index(max(scores)))
        assert chosen[b] == answers[picks[-1]][b]
    assert len(set(picks)) > 1


@pytest.mark.parametrize("lookahead", [1, 3, 30])
def test_collab_equals_its_definition(experts, reward, lookahead):
    """Every expert proposes, continues alone, is scored; from the text anew each time, one prompt at a time, without any cache."""
    max_new = 10 if lookahead < 10 else 5  # a look-ahead beyond every end is slow
    got, winners = baselines.collab(experts, reward, PROMPTS, END, max_new, lookahead), set()
    for prompt, answer in zip(PROMPTS, got):
        text = list(prompt)
        for _ in range(max_new):
            trials = []
            for e in experts:
                rest = generate(e, [text], lookahead, END)[0]
                trials.append(rest + [END] * (len(rest) < lookahead))
            scores = [score_of(reward, text + t) for t in trials]
            best = scores.index(max(scores))
            if len({t[0] for t in trials}) > 1:
                winners.add(best)
            if trials[best][0] == END:
                break
            text.append(trials[best][0])
        assert text[len(prompt):] == answer
    assert len(winners) > 1


def test_merging_in_its_limits(experts):
    base, flat = gpt(9), lambda m: torch.cat([p.flatten() for p in m.parameters()])
    assert torch.equal(flat(baselines.merge(base, experts, 0.0)), flat(base))
    assert torch.allclose(flat(baselines.merge(base, experts[:1], 1.0)), flat(experts[0]), atol=1e-6)
    by_hand = flat(base) + 0.3 * sum(flat(e) - flat(base) for e in experts)
    assert torch.allclose(flat(baselines.merge(base, experts, 0.3)), by_hand, atol=1e-5)
    dropped = flat(baselines.merge(base, experts[:1], 1.0, drop=0.9)) - flat(base)
    delta, kept = flat(experts[0]) - flat(base), dropped != 0
    differs = delta != 0
    assert kept[differs].float().mean() == pytest.approx(0.1, abs=0.02)  # some 5000 coins: 0.02 is over four standard deviations
    assert torch.allclose(dropped[kept], 10 * delta[kept], atol=1e-3)
    assert torch.equal(flat(base), flat(gpt(9)))  # the base itself is as it was


# --- neighbours of Eq. (2) ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def batch():
    """Two rows of four positions: logits, w (with gradients), targets, mask, logp, choice, lam, and the experts' whole distributions."""
    torch.manual_seed(3)
    logits, w = torch.randn(2, 4, V, requires_grad=True), torch.randn(2, 4, N, requires_grad=True)
    full = (2 * torch.randn(2, 4, N, V)).log_softmax(-1)
    full[0, 0] = full[0, 0, :1]  # here all experts agree: not in S
    targets, mask = torch.randint(V, (2, 4)), torch.tensor([[True, True, True, True], [False, True, True, False]])
    logp = full.gather(-1, targets[..., None, None].expand(2, 4, N, 1))[..., 0]
    return logits, w, targets, mask, logp, full.argmax(-1), 0.5, full


@pytest.fixture
def values(batch):
    """The same without gradients."""
    return tuple(x.detach() if torch.is_tensor(x) else x for x in batch)


def by_hand(batch, term, positions="S", lam=0.5, lm=None):
    """(sum over answer tokens of -log p, plus lam times that of term(b, t) over the positions) / number of answer tokens."""
    logits, w, targets, mask, logp, choice, _, full = batch
    total, count = 0.0, int(mask.sum())
    for b, t in mask.nonzero().tolist():
        p = logits[b, t].softmax(-1) if lm is None else lm(b, t)
        total -= math.log(p[targets[b, t]].item())
        if positions == "all" or len(set(choice[b, t].tolist())) > 1:
            total -= lam * term(b, t)
    return total / count


def sft_variant(name, batch):
    """The loss and what is logged, as train_sft.train gets them; the experts' whole distributions are the last of the batch."""
    *given, full = batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "read", lambda experts, ids: full)
        return variants.sft_loss_for(name, None)(*given)


def test_every_neighbour_of_eq_2_by_hand(values):
    batch = logits, w, targets, mask, logp, choice, lam, full = values
    q = w.softmax(-1)

    def agg(b, t):
        return float((q[b, t] * logp[b, t]).sum())

    def mix(b, t):
        return math.log(float((q[b, t] * logp[b, t].exp()).sum()))

    def renormalised(b, t):
        p = (q[b, t][:, None] * full[b, t]).sum(0).exp()
        return math.log(float(p[targets[b, t]] / p.sum()))

    def best(b, t):
        return math.log(float(q[b, t, logp[b, t].argmax()]))

    def fused(b, t):
        p = logits[b, t].softmax(-1) * full[b, t, w[b, t].argmax()].exp()
        return p / p.sum()

    expected = {
        "plain": by_hand(batch, agg, lam=0), "all": by_hand(batch, agg, "all"), "mixture": by_hand(batch, mix), "best": by_hand(batch, best),
        "raw": by_hand(batch, lambda b, t: float((w[b, t] * logp[b, t]).sum())), "renormalised": by_hand(batch, renormalised),
        "co_llm": by_hand(batch, mix, "all", lam=1.0), "fused": by_hand(batch, agg, lm=fused),
        "fused_own": by_hand(batch, agg, lm=fused) + 0.2 * by_hand(batch, agg, lam=0),
    }
    ours = {name: float(sft_variant(name, batch)[0]) for name in expected}
    assert ours == pytest.approx(expected, rel=1e-4)
    assert len({round(v, 4) for v in ours.values()}) == len(ours)  # no two are the same thing
    assert set(expected) | {"paper", "co_llm_self"} == set(variants.SFT_LOSSES)
    assert variants.SFT_LOSSES["paper"] is sft_loss


def test_co_llm_self_has_the_router_as_one_more_choice(values):
    logits, _, targets, mask, logp, choice, lam, full = values
    w = torch.randn(2, 4, N + 1)
    loss, info = sft_variant("co_llm_self", (logits, w, targets, mask, logp, choice, lam, full))
    q, total = w.softmax(-1), 0.0
    for b, t in mask.nonzero().tolist():
        p = torch.cat([logp[b, t].exp(), logits[b, t].softmax(-1)[targets[b, t]].view(1)])
        total -= math.log(float((q[b, t] * p).sum())) + math.log(float(p[-1]))
    assert float(loss) == pytest.approx(total / int(mask.sum()), rel=1e-4) and len(info["routing"]) == N + 1
    assert info["route_router"] == info["routing"][-1]


def test_training_through_the_fusion_leaves_the_router_what_the_expert_lacks(batch):
    """The gradient of the fused loss on the router's logits is p_fused - onehot: none where the expert already says the answer."""
    logits, w, targets, mask, logp, choice, _, full = batch
    sure = torch.full_like(full, -20.0).scatter(-1, targets[..., None, None].expand(2, 4, N, 1), 0.0)
    loss, _ = sft_variant("fused", (logits, w, targets, mask, logp, choice, 0.0, sure))
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-4
    loss, _ = sft_loss(logits, w, targets, mask, logp, choice, 0.0)  # the router's own loss knows nothing of the expert
    assert torch.autograd.grad(loss, logits)[0].abs().max() > 0.05


# --- neighbours of Eq. (3) ------------------------------------------------------------------------------------------------------------------


def sequences(logits, targets, mask):
    return (logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0] * mask).sum(-1)


def pair_loss(name, batch, ref, full=None):
    logits, w, targets, mask, logp, _, _, own_full = batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "read", lambda experts, ids: own_full if full is None else full)
        return variants.pair_loss_for(name, None)(logits, w, targets, mask, logp, ref, 0.1)[0]


def test_every_neighbour_of_eq_3_by_hand(batch):
    logits, w, targets, mask, logp, _, _, full = batch
    ref, theta = torch.tensor([[-3.0, -5.0]]), sequences(logits, targets, mask)  # (1, 2): one pair
    margin = lambda x: F.softplus(-0.1 * ((x[0] - ref[0, 0]) - (x[1] - ref[0, 1])))
    assert torch.isclose(pair_loss("plain", batch, ref), margin(theta))
    soft = ((w.softmax(-1) * logp).sum(-1) * mask).sum(-1)
    assert torch.isclose(pair_loss("gradient", batch, ref), margin(theta + soft))
    picked = torch.stack([torch.stack([full[b, t, w[b, t].argmax()] for t in range(4)]) for b in range(2)])
    assert torch.isclose(pair_loss("fused", batch, ref), margin(sequences(fuse(logits, picked), targets, mask)))
    lm = -logits[0].log_softmax(-1)[range(4), targets[0]].mean()
    assert torch.isclose(pair_loss("sft", batch, ref), lm)
    z = torch.zeros(1)
    assert torch.isclose(pair_loss("plain", batch, ref), cdpo_loss(theta[:1], theta[1:], ref[:, 0], ref[:, 1], z, z, 0.1)[0])
    routed = (logp.gather(-1, w.argmax(-1, keepdim=True))[..., 0] * mask).sum(-1)  # the paper's loss, which all others leave out a part of
    with_bias = cdpo_loss(theta[:1], theta[1:], ref[:, 0], ref[:, 1], routed[:1], routed[1:], 0.1)[0]
    assert torch.isclose(pair_loss("paper", batch, ref), with_bias) and not torch.isclose(with_bias, pair_loss("plain", batch, ref))


def test_who_gets_a_gradient_from_a_pair(batch):
    logits, w, ref = batch[0], batch[1], torch.zeros(1, 2)
    for name in ("plain", "fused", "sft"):
        assert torch.autograd.grad(pair_loss(name, batch, ref), [logits, w], allow_unused=True)[1] is None
    assert torch.autograd.grad(pair_loss("gradient", batch, ref), w)[0].abs().sum() > 0


def test_uniform_experts_make_the_fused_policy_the_router(batch):
    uniform = torch.full_like(batch[-1], -math.log(V))
    ref = torch.tensor([[-3.0, -5.0]])
    assert torch.isclose(pair_loss("fused", batch, ref, uniform), pair_loss("plain", batch, ref))


def test_fused_reference_equals_the_policy_before_training(experts):
    """At the start policy and reference are the same model: DPO of the fused policy begins at log 2, padding or not."""
    router = Router(gpt(5), N).requires_grad_(False)
    router.W.weight.data.normal_()
    ids = torch.tensor([[1, 2, 3, 4, 10, 0], [1, 2, 5, 6, 7, 10], [3, 3, 1, 10, 0, 0], [3, 3, 2, 2, 2, 10]])
    lengths, mask = torch.tensor([5, 6, 4, 6]), torch.zeros(4, 6, dtype=torch.bool)
    for b, n in enumerate(lengths.tolist()):
        mask[b, 2:n] = True
    ref = variants.fused_reference(router, experts, ids, mask, lengths, batch=3)
    logits, w = router(ids[:, :-1])
    full = variants.read(experts, ids[:, :-1])
    loss, info = variants.fused_dpo(logits, w, ids[:, 1:], mask[:, 1:], None, ref.view(-1, 2), 0.1, full=full)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-5) and float(info["reward_chosen"]) == pytest.approx(0, abs=1e-5)


def test_the_models_inputs_are_known_from_the_targets():
    """Every sample begins with <|user|>, so the losses that read the experts again read what the router has read."""
    items = tasks.mixed("train", 12, Random(0))
    ids, _, _ = pack(toy_pairs.samples([{"prompt": i.prompt, "chosen": i.answer, "rejected": "no"} for i in items]))
    assert torch.equal(variants.inputs(ids[:, 1:]), ids[:, :-1])


def test_bradley_terry():
    assert float(baselines.reward_loss(torch.tensor([1.0]), torch.tensor([1.0]))) == pytest.approx(math.log(2))
    assert float(baselines.reward_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]))) == pytest.approx(
        (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2)


# --- pairs and the reward model -------------------------------------------------------------------------------------------------------------


def test_where_rejected_answers_come_from(monkeypatch):
    """Each source decodes as it says, checks its answers, and asks for the temperature and the streams of the ground floor's."""
    asked = []

    def decode_batch(router, experts, prompts, max_new, **how):
        asked.append(how)
        return [SimpleNamespace(text=lambda: "nonsense") for _ in prompts]

    monkeypatch.setattr(variants, "decode_batch", decode_batch)
    monkeypatch.setattr(toy_pairs, "decode_batch", decode_batch)
    items = {i.prompt: i for i in tasks.mixed("preference", 300, Random("preference 2"))}
    for source in variants.SOURCES:
        found = variants.sample_pairs("router", ["a", "b", "c"], 2, 300, source)
        assert all(p["chosen"] == items[p["prompt"]].answer and not tasks.check(items[p["prompt"]], p["rejected"]) for p in found)
        assert len(found) > 200 and [len(p["prompt"]) for p in found] == sorted(len(p["prompt"]) for p in found)
    shared = [{"temperature": 1.0, "seed": 2_000_000 + 2 * i} for i in (0, 128, 256)]
    experts_alone = [x | {"use_router": False, "only": i} for i, x in enumerate(shared)]
    assert asked == shared + [x | {"use_expert": False} for x in shared] + experts_alone  # "corrupted" decodes nothing


def test_corruption_changes_one_token():
    rng = Random(0)
    for answer in ("The answer is 34.", "green, lamp, river"):
        text, ids = variants.corrupt(answer, rng), tokenizer.encode_answer(answer)[:-1]
        parts = [[tokenizer.encoding.decode(part) for part in (ids[:i], ids[i + 1:])] for i in range(len(ids))]
        assert text != answer and any(text.startswith(a) and text.endswith(b) and len(text) > len(a) + len(b) for a, b in parts)


def test_the_reward_model_learns_to_prefer_the_chosen_answer(tmp_path, monkeypatch):
    """Rejected answers that are easy to tell from right ones: after training, nearly every pair is ordered, also cut short."""
    torch.manual_seed(0)
    expert = models.new_gpt("llama", (24, 1)).eval().requires_grad_(False)
    items = tasks.mixed("preference", 48, Random(0), ["toy-ifeval", "toy-mbpp"])
    pairs = [{"prompt": i.prompt, "chosen": i.answer, "rejected": "12 apples 12 apples 12 apples"} for i in items]
    monkeypatch.setattr(models, "load_router", lambda s, name: (Router(expert, N), [expert] * N, {}))
    monkeypatch.setattr(variants, "sample_pairs", lambda *asked: pairs)
    s = models.Settings(out=str(tmp_path), device="cpu")
    baselines.train_reward(s, spec=baselines.Reward(epochs=4, lr=1e-2))
    reward, _ = models.load_model(models.folder(s) / "reward.pt", "", router=True)
    ids, mask, lengths = pack(toy_pairs.samples(pairs))
    r = reward(ids)[1][..., 0].gather(1, lengths[:, None] - 1).view(-1, 2)                              # (pairs, 2)
    assert (r[:, 0] > r[:, 1]).float().mean() > 0.9
    r = reward(ids)[1][..., 0].gather(1, mask.int().argmax(1, keepdim=True) + 1).view(-1, 2)            # after two tokens
    assert (r[:, 0] > r[:, 1]).float().mean() > 0.9


# --- settings -------------------------------------------------------------------------------------------------------------------------------


def test_unknown_neighbours_and_names_are_refused(mistake, tmp_path):
    def refused(make, *said):
        with pytest.raises(run.UserError) as caught:
            make()
        assert all(x in str(caught.value) for x in said)

    s = models.Settings(out=str(tmp_path), device="cpu")
    refused(lambda: Sft(loss="hinge"), "--loss", "one of paper")
    refused(lambda: Cdpo(loss="no such loss"), "--loss", "one of paper")
    refused(lambda: Cdpo(rejected="you"), "--rejected", "one of fused")
    refused(lambda: Cdpo(mix=2), "--mix", "0, 1")
    for name in ("../x", "", ".hidden"):
        refused(lambda: train(s, name, Sft()), "--name")
    refused(lambda: Cdpo(phase1="../x"), "--phase1")
    refused(lambda: train(models.Settings(out=str(tmp_path), family="bert"), "x", Sft()), "--family", "llama, gemma")
    assert "one of fused" in mistake("extra.paper.baselines", "--out", tmp_path, "--rejected", "you")
    assert "nobody" in mistake("extra.paper.train", "nobody", "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_recipes_know_every_neighbour():
    for name in variants.SFT_LOSSES:
        assert Sft(loss=name).loss == name
    for name in variants.PAIR_LOSSES:
        assert Cdpo(loss=name).loss == name
    for name in variants.SOURCES:
        assert Cdpo(rejected=name).rejected == baselines.Reward(rejected=name).rejected == name
