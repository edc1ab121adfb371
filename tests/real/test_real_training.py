"""Both phases: the lesson's numbers, several processes, resuming, runs that are killed or meet."""

import json
import os
import shutil
import socket
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
import transformers as hf
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from safetensors.torch import load_file, save_file

import train_cdpo as lesson_cdpo
import train_sft as lesson_sft
from extra.real import FusionRoute, data, loading, runs, train_cdpo, train_sft
from fusionroute import Router
from model import GPT, GPTConfig
from tests.real.conftest import PAIRS, lines, main, make, prompts, refused, tokenizer
from toy_experts import script
from toy_experts.data import Data, scored


def weights(path):
    """All tensors of a trained router by name."""
    return load_file(path / "router/model.safetensors") | load_file(path / "W.safetensors")


def same(a, b, atol=0.0):
    assert a.keys() == b.keys()
    return all(torch.allclose(a[k], b[k], rtol=0, atol=atol) for k in a)


def log(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


# --- the lesson's numbers ------------------------------------------------------------------------

NAMES = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    **{f"w{x}": f"self_attn.{x}_proj" for x in "qkvo"},
    **{f"w_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}


def llama(gpt):
    """The same model as model.GPT, of transformers."""
    c = gpt.config
    config = hf.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        num_key_value_heads=c.n_kv_head,
        head_dim=c.head_dim,
        intermediate_size=c.d_ff,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=True,
    )
    state = {}
    for name, p in gpt.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            name = f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"
        else:
            tops = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
            name = f"{tops[parts[0]]}.weight"
        state[name] = p.clone()
    model = hf.LlamaForCausalLM(config)
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    return model


def ours(toy, answers=1):
    """The lesson's Data as ours: datasets of token ids and scores."""
    flat = [x.flatten(0, answers - 1) if answers > 1 else x for x in toy]
    n = flat[2].tolist()
    cut = lambda columns, less=0: [c[: k - less].numpy() for c, k in zip(columns, n)]
    samples = Dataset.from_dict({"ids": cut(flat[0]), "learn": cut(flat[1])})
    found = [
        Dataset.from_dict({"logp": cut(flat[3][..., i], 1), "choice": cut(flat[4][..., i], 1)})
        for i in range(flat[3].size(-1))
    ]
    return data.Data(samples, found, answers)


def test_both_phases_are_the_lesson_s(tmp_path, world, monkeypatch):
    """On one tiny Llama, its own data and scores: the same logs and the same weights."""
    config = GPTConfig(
        vocab_size=50, d_model=16, n_layer=2, n_head=2, n_kv_head=1, head_dim=8, d_ff=24
    )
    lm, *experts = [GPT(config) for _ in range(3)]
    for p in (p for m in (lm, *experts) for p in m.parameters() if p.dim() > 1):
        p.data.mul_(8)  # losses of some size
    g = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(50, (n,), generator=g).tolist()
    samples = [(draw(4 + i % 9), [False] * 3 + [True] * (1 + i % 9)) for i in range(60)]
    sft = scored(samples, experts)
    both = scored(samples[:40], experts)
    pairs = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
    ref = -5 * torch.rand(20, 2, generator=g)

    router = Router(deepcopy(lm), 2)
    s = lesson_sft.Settings(epochs=2, lr=2e-4, lr_w=2e-3)
    expected = lesson_sft.train(s, router, sft)
    s2 = lesson_cdpo.Settings(epochs=2, lr=2e-4, lr_w=2e-3)
    plan = lesson_cdpo.make_plan(s2, sft.lengths, pairs.lengths)
    expected += lesson_cdpo.train(s2, router, sft, pairs, ref, plan)

    monkeypatch.setattr(loading, "load_tokenizer", lambda path: tokenizer())
    monkeypatch.setattr("extra.real.modeling.load_tokenizer", lambda path: tokenizer())
    names = {"math": world / "math", "code": world / "code"}
    model = FusionRoute.start(llama(lm), names, train=True)
    how = {"experts": [f"{n}={p}" for n, p in names.items()], "device": "cpu", "epochs": 2}
    how |= {"lr": 2e-4, "lr_w": 2e-3, "out": str(tmp_path), "data": "d"}
    run = runs.Run(train_sft.Settings(init="i", **how))
    train_sft.train(run, model, ours(sft))
    found = run.log
    run = runs.Run(train_cdpo.Settings(pairs="p", **how))
    train_cdpo.train(run, model, ours(sft), ours(pairs, 2), ref)
    found += run.log

    assert len(expected) == len(found) == 8 + 8 and {r["kind"] for r in found} == {"sft", "pair"}
    for a, b in zip(expected, found):
        a.pop("route_instruct", None)
        assert b | a == pytest.approx(b, abs=2e-5)
    mine, theirs = model.router.state_dict(), llama(router.lm).state_dict()
    assert max((mine[k] - theirs[k]).abs().max() for k in theirs) < 1e-5
    assert torch.allclose(model.W.weight, router.W.weight, atol=1e-5)


def test_scores_are_one_unpadded_pass_of_each_expert(world, trained):
    """From the files: log p of each next token, and what the expert would write itself."""
    tok = tokenizer()
    samples = data.samples(str(world / "train.jsonl"), ("completion",), tok, 266, 64)
    how = {"init": str(world / "start"), "data": str(world / "train.jsonl"), "out": str(trained)}
    how["experts"] = [f"{n}={world / n}" for n in ("math", "code")]
    run = runs.Run(train_sft.Settings(**how, device="cpu", max_len=64))
    before = {p: p.stat().st_mtime_ns for p in (trained / "seed0/scores").iterdir()}
    with run.alone():
        found = data.Data(samples, run.scores([*run.jobs(samples, 266)]))
    assert before == {p: p.stat().st_mtime_ns for p in (trained / "seed0/scores").iterdir()}
    x, mask, logp, choice = found.batch(torch.tensor([3]), "cpu")
    for i, name in enumerate(("math", "code")):
        logits = loading.load(world / name)(x[:, :-1]).logits[..., :266].log_softmax(-1)
        assert torch.allclose(logp[..., i], logits.gather(-1, x[:, 1:, None])[..., 0], atol=1e-4)
        assert torch.equal(choice[..., i].long(), logits.argmax(-1))


def test_pi_ref_is_phase_1_s_router_and_pairs_do_not_move_w(trained, world, flags, tmp_path):
    """With rates of nearly nothing the rewards stay at 0, and only pairs leave W alone."""
    shutil.copytree(trained / "seed0/router_sft", tmp_path / "seed0/router_sft")
    tiny = "--lr 1e-30 --lr_w 1e-30".split()
    main("train_cdpo", *flags["train_cdpo"], "--out", tmp_path, *tiny)
    records = [r for r in log(tmp_path / "seed0/router") if r["kind"] == "pair"]
    assert records and all(abs(r["reward_chosen"]) < 1e-4 for r in records)
    config = tmp_path / "seed0/router_sft/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"ignore": ["id"]}))
    pairs = ["--pairs", lines(tmp_path / "pairs.jsonl", [row | {"id": 7} for row in PAIRS])]
    only_pairs = "--mix 0 --lr 0.01 --lr_w 0.01 --name pairs".split()
    main("train_cdpo", *flags["train_cdpo"], "--out", tmp_path, *only_pairs, *pairs)
    a, b = weights(tmp_path / "seed0/router_sft"), weights(tmp_path / "seed0/pairs")
    assert torch.equal(a["weight"], b["weight"]) and not same(a, b, 1e-3)


# --- LoRA ----------------------------------------------------------------------------------------


def test_lora_experts_and_router_from_the_trainer(tmp_path, world, flags):
    """An expert by --lora_r, a router by --lora_r; both phases; one base in memory."""
    hurry = flags["train_cdpo"][4:]
    file, out = ["--data", world / "train.jsonl"], ["--out", tmp_path]
    base = make(tmp_path / "base", "Qwen2")
    for name, r in (("math", 2), ("code", 3)):
        flags_ = ["--init", base, "--lora_r", r, "--name", name, "--seed", r]
        main("train_sft", *flags_, *file, *hurry, "--out", tmp_path / name, "--lr", "0.01")
    dirs = [f"math={tmp_path}/math/seed2/math", f"code={tmp_path}/code/seed3/code"]
    main("train_sft", "--init", base, "--lora_r", 4, "--experts", *dirs, *file, *hurry, *out)
    main("train_cdpo", *flags["train_cdpo"], *out)
    model = FusionRoute.from_pretrained(tmp_path / "seed0/router")
    assert not (tmp_path / "seed0/router/router/model.safetensors").exists()
    alone = sum(p.numel() for p in loading.load(base).parameters())
    assert alone < sum(p.numel() for p in model.parameters()) < 1.5 * alone
    first = FusionRoute.from_pretrained(tmp_path / "seed0/router_sft")
    ids = prompts()
    assert not torch.allclose(first.router(ids).logits, model.router(ids).logits, atol=1e-4)
    how = ["--init", dirs[0][5:], "--lora_r", 4, *file, *out, "--name", "x"]
    message = refused(main, "train_sft", *how)
    assert "is an adapter; leave out --lora_r" in message


# --- several processes, resuming -----------------------------------------------------------------


def process(rank, jobs, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", ACCELERATE_USE_CPU="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    for name, args in jobs:
        main(name, *args)
    assert PartialState().num_processes == 2


def test_two_processes_make_what_one_makes(trained, flags, tmp_path):
    """Batches of 4, the last of 3, which two processes share as 2 and 1."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    jobs = [(name, [*how, "--out", tmp_path]) for name, how in flags.items()]
    torch.multiprocessing.start_processes(process, (jobs, port), nprocs=2, start_method="fork")
    for name in ("router_sft", "router"):
        a, b = trained / "seed0" / name, tmp_path / "seed0" / name
        assert same(weights(a), weights(b), 2e-5)
        for x, y in zip(log(a), log(b), strict=True):
            assert x["loss"] == pytest.approx(y["loss"], abs=1e-4)


class Killed(BaseException):
    """Not an Exception: no code of ours may catch it, as none can catch a kill -9."""


def killed(monkeypatch, place, name, times, flags, *args):
    """Run a training that ends at the n-th call of a function, without any clean-up of ours."""
    original, calls = getattr(place, name), []

    def dies(*a, **k):
        calls.append(1)
        if len(calls) == times:
            raise Killed
        return original(*a, **k)

    with monkeypatch.context() as m:
        m.setattr(place, name, dies)
        m.setattr(runs.shutil, "rmtree", lambda *a, **k: None)  # the `finally` of a living process
        with pytest.raises(Killed):
            main(*args, *flags)
    m.undo()


STOPS = [  # what is killed, at which call: in scoring, in steps, in saving a state, at the end
    (runs.data, "token_logp", 2),
    (runs.Run, "update", 3),
    (runs.json, "dumps", 30),
    (runs.os, "replace", 3),
    (runs.os, "replace", 5),
    (FusionRoute, "save_router", 1),
    (runs.Run, "save", 1),
]


@pytest.mark.parametrize("place, name, times", STOPS)
def test_a_killed_run_goes_on_to_the_same_result(
    place, name, times, trained, flags, tmp_path, monkeypatch, capsys
):
    how = [*flags["train_sft"], "--out", tmp_path, "--save_every", "1"]
    killed(monkeypatch, place, name, times, how, "train_sft")
    folder = tmp_path / "seed0"
    assert not (folder / "router_sft").exists()
    had = [int(p.name[4:]) for p in (folder / "router_sft.state").glob("step*")]
    capsys.readouterr()
    main("train_sft", *how)
    notes = capsys.readouterr().err
    assert ("going on" in notes) == bool(had)
    assert not had or f"going on after step {max(had)} of" in notes
    assert same(weights(folder / "router_sft"), weights(trained / "seed0/router_sft"))
    assert log(folder / "router_sft") == log(trained / "seed0/router_sft")
    assert {p.name for p in folder.iterdir()} == {".router_sft.lock", "router_sft", "scores"}
    assert len(list((folder / "scores").iterdir())) == 2


def test_a_state_that_a_kill_left_after_the_end_goes_away(trained, flags, tmp_path, capsys):
    shutil.copytree(trained / "seed0", tmp_path / "seed0")
    state = tmp_path / "seed0/router_sft.state/step000000002"
    state.mkdir(parents=True)
    shutil.copy(tmp_path / "seed0/router_sft/recipe.json", state)
    main("train_sft", *flags["train_sft"], "--out", tmp_path)
    assert "is there already" in capsys.readouterr().err and not state.parent.exists()


def test_a_run_with_other_settings_or_models_is_refused(trained, flags, world, tmp_path):
    shutil.copytree(trained / "seed0", tmp_path / "seed0")
    out = ["--out", tmp_path]
    lr = ["--lr", 1]
    assert "made with lr = 0.001" in refused(main, "train_sft", *flags["train_sft"], *out, *lr)
    other = [*flags["train_sft"]]
    other[3] = f"math={world}/start"  # another model under the old name
    assert "was made with experts" in refused(main, "train_sft", *other, *out)
    shutil.copytree(world / "start", tmp_path / "start")
    mended = [*flags["train_sft"]]
    mended[1] = tmp_path / "start"  # the same model, until its chat template is mended
    main("train_sft", *mended, *out)
    (tmp_path / "start/chat_template.jinja").write_text("{{ messages }}")
    assert "was made with init" in refused(main, "train_sft", *mended, *out)
    cdpo = ["train_cdpo", *flags["train_cdpo"], *out, "--experts"]
    main(*cdpo, f"code={world}/code")  # all that has moved
    assert "routes among math, code" in refused(main, *cdpo, "law=x")
    (tmp_path / "seed0/router_sft/recipe.json").unlink()
    assert "no run made it" in refused(main, "train_sft", *flags["train_sft"], *out)
    assert "there is no router" in refused(
        main, "train_cdpo", *flags["train_cdpo"], "--out", tmp_path / "x"
    )


def test_two_runs_on_one_out(trained, flags, tmp_path):
    """The second is refused; a run under another name is not, and leaves the first one's files."""
    s = train_sft.Settings(init="i", data="d", out=str(tmp_path), device="cpu")
    with runs.Run(s).alone():
        half = tmp_path / "seed0/router_sft.work/half"
        half.touch()
        message = refused(main, "train_sft", *flags["train_sft"], "--out", tmp_path)
        assert "another run makes" in message and half.exists()
        main("train_sft", *flags["train_sft"], "--out", tmp_path, "--name", "other")
        assert half.exists() and (tmp_path / "seed0/other/W.safetensors").exists()


def test_an_expert_trained_anew_is_scored_anew(tmp_path, world, flags):
    """`datasets` caches by name: scores of old weights would be served."""
    math = make(tmp_path / "math", seed=1)
    how = [*flags["train_sft"]]
    how[3] = f"math={math}"
    main("train_sft", *how, "--out", tmp_path)
    old = len(list((tmp_path / "seed0/scores").iterdir()))
    file = Path(math) / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"] += 1
    save_file(state, file, {"format": "pt"})
    main("train_sft", *how, "--out", tmp_path, "--name", "again")
    assert len(list((tmp_path / "seed0/scores").iterdir())) == old + 1
    a, b = (log(tmp_path / "seed0" / name)[0] for name in ("router_sft", "again"))
    assert a["loss_lm"] == b["loss_lm"] and a["loss_expert"] != b["loss_expert"]


def test_numbers_that_are_none_end_a_training(tmp_path, world, flags):
    out = ["--out", tmp_path]
    message = refused(main, "train_sft", *flags["train_sft"], *out, "--lr", "1e30", "--epochs", 20)
    assert "no numbers" in message or "diverged" in message
    assert not (tmp_path / "seed0/router_sft").exists()


# --- flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("args, says", [
    (["--experts", "math"], "must be NAME=DIR"), (["--experts", "a=x", "a=y"], "each NAME once"),
    (["--experts", "router=x"], "none router"), (["--epochs", "0"], "--epochs is 0"),
    (["--experts", "qwen2.5=x"], "NAME of letters"), (["--lora_r", "-3"], "--lora_r is -3"),
    (["--name", "../x"], "must be a file name"), (["--dtype", "int8"], "--dtype is 'int8'"),
    (["--init", "/nowhere/x", "--data", "d"], "there is no /nowhere/x"),
    (["--data", "x"], "--init DIR and --data FILE are needed"), (["--nope"], "unrecognized"),
])  # fmt: skip
def test_flags_that_are_refused(args, says, tmp_path):
    assert says in refused(main, "train_sft", "--device", "cpu", "--out", tmp_path, *args)


def test_experts_need_no_word_splitting():
    """zsh hands $experts on as one argument; bash splits it; several flags add up."""
    expected = {"math": "/a b/x", "code": "y"}
    assert runs.named(["math=/a b/x code=y"]) == runs.named(["math=/a b/x", "code=y"]) == expected
    s = script.settings(
        train_sft.Settings, "", "--experts a=x --experts b=y --init i --data d".split()
    )
    assert s.experts == {"a": "x", "b": "y"}
    assert runs.named(["a=~/x"]) == {"a": os.path.expanduser("~/x")}  # zsh leaves the ~


def test_help_says_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main("train_sft", "--help")
    assert "0: none (default: 0)" in " ".join(capsys.readouterr().out.split())
