"""Every script as a user runs it, on a tiny run: the whole of it, again, and every mistake."""

import contextlib
import importlib
import io
import json
import os
import pickle
import shutil
from dataclasses import fields

import pytest
import torch

import decode
from tests.conftest import ROOT, TINY, make_tiny, mistake, run_script, train_tiny
from toy_experts import experts, script
from toy_experts.script import UserError

PROMPT = "Maya has 12 eggs. She buys 5 more. Then she finds 3 more. How many eggs are there now?"


@pytest.fixture
def copy(world, tmp_path):
    """A tiny run of one's own, to be damaged: its folder OUT/seed0."""
    shutil.copytree(world, tmp_path / "out")
    return tmp_path / "out" / "seed0"


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def weights(path):
    return torch.load(path, weights_only=True)["model"]


# --- a whole run --------------------------------------------------------------------------------


def test_a_whole_run(world):
    seed, names = world / "seed0", ["base", "math", "code", "instruct", "router_sft", "router"]
    logs = ["router_sft.log.jsonl", "router.log.jsonl", "pairs.jsonl"]
    assert [p.name for p in world.iterdir()] == ["seed0"]
    assert {p.name for p in seed.iterdir()} == {*logs, *(f"{name}.pt" for name in names)}
    sft, cdpo, pairs = (
        [json.loads(x) for x in (seed / name).read_text().splitlines()] for name in logs
    )
    assert len(sft) == 16 and sft[-1]["loss"] < sft[0]["loss"]  # 60 samples: 4 batches, 4 passes
    assert [r["kind"] for r in cdpo].count("pair") == len(cdpo) / 2 > 2
    assert {frozenset(p) for p in pairs} == {frozenset(("prompt", "chosen", "rejected"))}
    w0, w1, instruct = (weights(seed / f"{n}.pt") for n in ("router_sft", "router", "instruct"))
    assert set(w0) == {f"lm.{k}" for k in instruct} | {"W.weight"}
    assert not torch.equal(w0["W.weight"], w1["W.weight"])  # phase 2's SFT batches go on with W


def test_run_again_skips_and_changes_nothing(world, capsys):
    stat = lambda: {
        p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in (world / "seed0").iterdir()
    }
    before = stat()
    for name in TINY:
        importlib.import_module(name).main(["--out", str(world), *TINY[name].split()])
        assert "is there already" in capsys.readouterr().out
    assert stat() == before


def test_the_same_run_to_the_bit(copy, world):
    """One router is trained again; another is not, as it is there."""
    for name in ("router_sft.pt", "router_sft.log.jsonl"):
        (copy / name).unlink()
    train_tiny(copy.parent, "train_sft")
    a, b = weights(copy / "router_sft.pt"), weights(world / "seed0" / "router_sft.pt")
    assert all(torch.equal(a[k], b[k]) for k in b)
    log = "router_sft.log.jsonl"
    assert (copy / log).read_bytes() == (world / "seed0" / log).read_bytes()


def test_one_thread_unless_asked(world, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for asked in (True, False):
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        if not asked:
            monkeypatch.delenv("OMP_NUM_THREADS")
        script.prepare(experts.Settings(out=str(world), device="cpu"))
        script.load_router(world / "seed0", "router", "cpu", "")
        assert chosen == ([] if asked else [1, 1])


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_is_a_run_of_its_own(copy, monkeypatch, seed):
    """All random numbers follow from it: trained elsewhere, equal to the bit, or another run."""
    before, out = contents(copy), copy.parent if seed else copy / "again"
    make_tiny(monkeypatch)
    torch.manual_seed(5)
    experts.main(["--out", str(out), "--seed", str(seed), "--device", "cpu"])
    for name in ("base", "math", "code", "instruct"):
        a, b = weights(copy / f"{name}.pt"), weights(out / f"seed{seed}" / f"{name}.pt")
        assert all(torch.equal(a[k], b[k]) == (seed == 0) for k in a if "wq" in k or "emb" in k)
    assert seed == 0 or contents(copy) == before


# --- decode.py ----------------------------------------------------------------------------------


def typed(monkeypatch, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_prompts_from_a_file(world, monkeypatch, capsys):
    """Blank lines, a prompt that fails, bytes that are no text: the rest is answered.

    The status tells of a failure.
    """
    typed(monkeypatch, f"\n{PROMPT}\n{'word ' * 300}\n \nWhat is 38 mod 5?\n".encode())
    with pytest.raises(SystemExit) as stop:
        decode.main(["--out", str(world)])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.err.count("error: ") == 1
    assert said.out.count("the experts disagree at") == 2
    assert said.out.index(f"prompt> {PROMPT}\n") < said.out.index("prompt> What is 38 mod 5?\n")
    typed(monkeypatch, b"\xef\xbb\xbfWhat is \xff?\r\n\r\nWhat is 38 mod 5?\r\n")  # made on Windows
    decode.main(["--out", str(world), "--json"])
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["prompt"] for r in said if "answer" in r] == ["What is \ufffd?", "What is 38 mod 5?"]
    typed(monkeypatch, f"{PROMPT}\n{PROMPT}\n".encode())  # asked twice, other random numbers
    decode.main(["--out", str(world), "--json", "--temperature", "2"])
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({r["answer"] for r in said if "answer" in r}) == 2


def test_a_conversation_in_a_terminal(world, monkeypatch, capsys):
    """A bad prompt does not end it; an empty line does."""
    lines = iter([PROMPT, "word " * 300, "What is 38 mod 5?", "", "never read"])
    terminal = type("", (), {"isatty": lambda self: True, "reconfigure": lambda self, errors: None})
    monkeypatch.setattr("sys.stdin", terminal())
    monkeypatch.setattr("builtins.input", lambda asked: next(lines))
    decode.main(["--out", str(world)])
    said = capsys.readouterr()
    assert said.out.count("the experts disagree at") == 2 and said.err.count("error: ") == 1
    assert "prompt> " not in said.out and next(lines) == "never read"


def test_the_longest_prompt_and_one_that_is_no_text(world, capsys):
    n = len(decode.encode(PROMPT, 999)) + decode.MAX_NEW
    assert len(decode.encode(PROMPT, n)) == n - decode.MAX_NEW
    with pytest.raises(UserError, match="must have at most"):
        decode.encode(PROMPT, n - 1)
    decode.main(["--out", str(world), "--json", "What is \udcff?"])  # an odd byte, in Python
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["prompt"] == "What is ??"


@pytest.mark.parametrize("as_argument", [True, False])
def test_a_line_break_in_a_prompt(world, monkeypatch, capsys, as_argument):
    r"""The two characters \n stand for a line break, as an argument and in a file."""
    prompt = r'Complete this function.\ndef f(a, b):\n    """Return a."""\n'
    typed(monkeypatch, prompt.encode())
    decode.main(["--out", str(world), "--json", *[prompt] * as_argument])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["prompt"] == prompt.replace(r"\n", "\n")


def test_what_the_toy_has_never_seen(world, capsys):
    decode.main(["--out", str(world), "What is 140 modulo 5?"])
    assert capsys.readouterr().err.startswith("(the toy has never seen: 140, modulo;")
    decode.main(["--out", str(world), PROMPT])
    assert capsys.readouterr().err == ""


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy_experts.experts", *TINY, "decode", "toy_experts.evaluate"])
def test_help_explains_every_flag(name):
    module = importlib.import_module(name)
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    for f in fields(module.Settings):
        line = out.getvalue().split("options:")[1].split(f"\n  --{f.name} ")[1].split("\n  --")[0]
        assert "(default:" in line and len(line.split()) > 5


MISTAKES = [
    line.split(" | ")
    for line in rf"""
decode |  | empty
decode |   \n | empty
decode | {"word " * 300} | at most
decode | --method chemistry P | chemistry
decode | --temperature -1 P | --temperature
decode | --top_p 0 P | --top_p
decode | --top_p 1.5 P | --top_p
decode | --seed x P | --seed
decode | --seed -1 P | --seed
decode | --device abacus P | abacus
decode | --seed 5 P | train_cdpo.py --seed 5
decode | P is mod | unrecognized arguments: is mod (put the prompt in quotes) (see
decode | P --top 5 | unrecognized arguments: --top 5 (see
train_sft | two | unrecognized arguments: two (see
train_sft | --lr -1 | --lr is -1.0, and must be a finite number above zero
train_sft | --lr nan | --lr is nan, and must be a finite number above zero
train_sft | --lr_w inf | --lr_w is inf, and must be a finite number above zero
train_sft | --epochs 0 | --epochs is 0, and must be from 1 to 2147483647
train_sft | --lam -1 | --lam is -1.0, and must be a finite number of zero or more
train_sft | --learning_rate 1 | --learning_rate
train_sft | --samples 61 --epochs 4 | samples = 60, but 61 is asked
train_sft | --gap 0.5 | gap = 0.25, but 0.5 is asked: use another --out, or remove the folder
train_sft | --samples 99999999999 | --samples is 99999999999, and must be from 1 to 2147483647
train_cdpo | --prompts -1 | --prompts is -1, and must be from 1 to 2147483647
train_cdpo | --beta 0 | --beta
train_cdpo | --seed 5 | run python train_sft.py --seed 5
train_cdpo | --prompts 37 | prompts = 36, but 37 is asked
toy_experts.experts | --gap 2 | --gap
toy_experts.evaluate | --split train | --split is 'train', and must be one of test, validation
toy_experts.evaluate | --prompts 0 | --prompts""".splitlines()[1:]
]


@pytest.mark.parametrize("name, args, says", MISTAKES)
def test_bad_arguments(world, name, args, says):
    before = sorted(p for p in world.rglob("*") if p.is_file())
    words = [PROMPT if word == "P" else word for word in args.split()]
    if name == "decode" and not words or len(words) > 99:
        words = [args.replace(r"\n", "\n")]
    said = mistake(name, "--out", world, *words)
    assert says in said.replace(f" --out={world}", "")
    assert sorted(p for p in world.rglob("*") if p.is_file()) == before


def test_a_hint_can_be_obeyed(tmp_path):
    """What a message says to run is for the run that was asked for."""
    asked, flags = ["--seed", "9", "--out", f"{tmp_path}/a b"], f" --seed 9 '--out={tmp_path}/a b'"
    both = f"run python train_sft.py{flags}, then python train_cdpo.py{flags}"
    assert mistake("decode", *asked, PROMPT).endswith(both)
    assert mistake("train_cdpo", *asked).endswith(f"run python train_sft.py{flags}")
    assert mistake("toy_experts.evaluate", *asked).endswith(f"run bash run.sh{flags}")


def test_another_phase_1_is_another_phase_2(copy):
    """router.pt belongs to the router of phase 1 that it was trained from."""
    content = torch.load(copy / "router_sft.pt", weights_only=True)
    content["model"]["W.weight"][0, 0] += 1e-3
    torch.save(content, copy / "router_sft.pt")
    flags, says = ["--out", copy.parent], "router.pt was made with phase1 = "
    assert says in mistake("train_cdpo", *flags, *TINY["train_cdpo"].split())
    assert says in mistake("toy_experts.evaluate", *flags)


def test_an_interrupted_script_says_so(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises((SystemExit, KeyboardInterrupt)) as stop:
        script.run(interrupted)
    assert stop.type is SystemExit and stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_mistake_is_one_line_and_status_2():
    p = run_script("decode", "--out", "x" * 300, PROMPT, status=2)
    assert p.stdout == "" and p.stderr.startswith("error: ") and p.stderr.count("\n") == 1


@pytest.mark.parametrize("redirect, status", [("> /dev/full", 2), ("<&- | true", 0)])
def test_closed_and_full_streams(world, redirect, status):
    shell = ["bash", "-c", f'"$@" {redirect}', "bash"]
    p = run_script("decode", "--out", world, PROMPT, prefix=shell, status=status)
    assert len(p.stderr.splitlines()) == (status > 0)


def test_a_diverged_run_is_not_saved(copy):
    (copy / "router_sft.pt").unlink()
    flags = ["--out", copy.parent, "--device", "cpu", *TINY["train_sft"].split(), "--lr", "1e30"]
    assert "diverged" in mistake("train_sft", *flags)
    assert not (copy / "router_sft.pt").exists()


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch bomb-went-off",))


def change(path, config=None, rows=None, **values):
    """Change a checkpoint: its config, the number of its tokens, other values."""
    content = torch.load(path, weights_only=True)
    content["config"] |= config or {}
    for name in ("embed.weight", "head.weight") if rows else ():
        content["model"][name] = content["model"][name][:rows].clone()
    torch.save(content | values, path)


def cut(path, n):
    path.write_bytes(path.read_bytes()[:n])


FOREIGN = {"vocabulary": "0123456789abcdef"}
DAMAGES = {
    "router is missing": (lambda d: (d / "router.pt").unlink(), "train_cdpo.py"),
    "code is missing": (lambda d: (d / "code.pt").unlink(), "code.pt"),
    **{
        f"cut to {n}": (lambda d, n=n: cut(d / "router.pt", n), "truncated")
        for n in (0, 10, 700, 20_000, -20_000, -700, -1)
    },
    "text": (lambda d: (d / "math.pt").write_bytes(b"\x00not this" * 50), "not a checkpoint"),
    "pickle": (lambda d: (d / "router.pt").write_bytes(pickle.dumps(Bomb())), "not a checkpoint"),
    "torch pickle": (lambda d: torch.save(Bomb(), d / "router.pt"), "not a checkpoint"),
    "dict": (lambda d: torch.save({"weights": torch.ones(3)}, d / "router.pt"), "of this project"),
    "list": (lambda d: torch.save([1, 2], d / "router.pt"), "of this project"),
    "vocabulary": (lambda d: change(d / "math.pt", **FOREIGN), "another vocabulary"),
    "width": (lambda d: change(d / "router.pt", config={"d_model": 48}), "do not fit"),
    "no number": (lambda d: change(d / "router.pt", config={"n_layer": "two"}), "do not fit"),
    "unknown": (lambda d: change(d / "math.pt", config={"unknown": 1}), "do not fit"),
    "length": (lambda d: change(d / "math.pt", config={"max_len": 20}), "different sizes"),
    "tokens": (lambda d: change(d / "math.pt", {"vocab_size": 99}, 99), "different sizes"),
    "experts": (lambda d: change(d / "router.pt", experts={"code": "", "math": ""}), "do not fit"),
    "order": (
        lambda d: change(d / "router.pt", experts=dict.fromkeys(["code", "math", "instruct"])),
        "routes among code, math, instruct, not among math, code, instruct",
    ),
    "other expert": (lambda d: shutil.copy(d / "code.pt", d / "math.pt"), "was made with math ="),
    "no router": (lambda d: shutil.copy(d / "math.pt", d / "router.pt"), "is not a router"),
    "a router": (lambda d: shutil.copy(d / "router.pt", d / "math.pt"), "is a router"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_checkpoints(copy, damage):
    act, says = DAMAGES[damage]
    act(copy)
    before = contents(copy)
    assert says in mistake("decode", "--out", copy.parent, PROMPT)
    assert contents(copy) == before and not (ROOT / "bomb-went-off").exists()


def test_a_full_disk_keeps_what_was_there(copy):
    """Files may grow to 32 KiB only: the weights cannot be saved, and no half file is left."""
    resource = pytest.importorskip("resource")  # not on Windows
    (copy / "router_sft.pt").unlink()
    before, limits = contents(copy), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .* the old file is unchanged"):
            train_tiny(copy.parent, "train_sft")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(copy) == before


def test_write_is_whole_or_nothing(tmp_path, monkeypatch):
    script.write(tmp_path / "a", "old")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match="No space left"):
        script.write(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": b"old"}
    assert "cannot write" in mistake("train_sft", "--out", tmp_path / "a")
    assert contents(tmp_path) == {"a": b"old"}
