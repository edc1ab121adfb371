"""parallel.py: 2 and 4 processes on the CPU train what one process trains; one that is killed ends the job, and it resumes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from extra.real import parallel, train_sft
from tests.real.conftest import ENV, PAIRS, ROOT, SFT, main, make_models, mistake
from toy_experts.run import load

# 20 samples: batches of 6, 6, 6 and 2; of the last, two of four processes have nothing. 8 pairs: 6 and 2.
SAMPLES = [{**r, "prompt": r["prompt"] + " what" * k} for k in range(3) for r in SFT][:20]
CHOICES = [{**r, "prompt": r["prompt"] + " what" * k} for k in range(2) for r in PAIRS][:8]
FLAGS = "--batch 6 --save_every 3 --lr 3e-3 --lr_w 0.03".split()
EPOCHS = {"llama": 4, "gemma": 2}  # a llama's training must not be over before it is killed
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def torchrun(n, what, *args, status=0):
    """what: a file, or ["-m", module]."""
    p = subprocess.run([*TORCHRUN, f"--nproc_per_node={n}", *what, *map(str, args)], cwd=ROOT, env=ENV, text=True, capture_output=True,
                       timeout=240)
    assert p.returncode == status, p.stdout + p.stderr
    return p


def only_error(stderr):
    """The one line in which we say what is wrong. torchrun's report has a traceback of its own."""
    (line,) = [line for line in stderr.replace("\r", "\n").splitlines() if "error: " in line]
    assert stderr.count("Traceback") == stderr.count("ChildFailedError(") == 1
    return line


def weights(path):
    """The weights of a router's directory."""
    from safetensors.torch import load_file
    return load_file(path / "model.safetensors") | {"W": torch.load(path / "fusionroute.pt", weights_only=True)["W"]}


def difference(a, b):
    """The largest difference of weights and of logged numbers of two runs."""
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    logs = [[json.loads(line) for line in Path(f"{p}.log.jsonl").read_text().splitlines()] for p in (a, b)]
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys() and one["step"] == two["step"] and one["kind"] == two["kind"]
    undecided = lambda r: {"accuracy"} if abs(r.get("margin", 1)) < 1e-4 else set()  # nothing learned yet: rounding decides on margin > 0
    logged = max(abs(one[k] - two[k]) for one, two in zip(*logs) for k in one.keys() - {"kind"} - undecided(one))
    return max(float((x[k] - y[k]).abs().max()) for k in x if x[k].numel()), logged


class One:
    """A folder with models, and what one process trains there: plain, router_sft, router."""

    def __init__(self, at, family):
        self.flags, self.epochs = make_models(at, family, SAMPLES, CHOICES), str(EPOCHS[family])
        sft, cdpo = self.flags.sft, self.flags.cdpo
        plain = [*sft[:2], *sft[sft.index("--data"):], "--name", "plain"]  # no experts: W has no row
        self.phases = {"plain": ("train_sft", plain), "router_sft": ("train_sft", sft), "router": ("train_cdpo", cdpo)}
        self.out = at / "out/seed0"
        for name in self.phases:
            main(*self.job(name))

    def job(self, name, *more):
        script, flags = self.phases[name]
        return script, *flags, *FLAGS, "--epochs", self.epochs if name == "router_sft" else "2", *more


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A function: the One of a family; tests may add to its folder."""
    made = {}

    def get(family="llama"):
        if family not in made:
            torch.manual_seed(0)
            made[family] = One(tmp_path_factory.mktemp(family), family)
        return made[family]
    return get


def kill(rank, path, command):
    """Start a job, and kill one of its processes as soon as there is a file `path`. Returns what the job said, and its status."""
    if not Path("/proc/self/task").exists():
        pytest.skip("finds the processes in Linux's /proc")
    job = subprocess.Popen(command, cwd=ROOT, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.time() + 120
    while not path.exists() and job.poll() is None and time.time() < deadline:
        time.sleep(0.002)
    assert path.exists() or job.poll() is not None, "waited in vain"
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended by itself
        for child in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
            if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
                os.kill(int(child), signal.SIGKILL)
    _, stderr = job.communicate(timeout=60)
    return stderr, job.returncode


@pytest.fixture(scope="module")
def killed(one, tmp_path_factory):
    """What a training by two processes with --fsdp has left, of which the second was killed; what it said; its exit status."""
    for attempt in range(4):  # where others keep the machine busy, the training may be over before the kill
        at = tmp_path_factory.mktemp("killed") / "out"
        script, *flags = one().job("router_sft", "--out", str(at), "--name", "again", "--fsdp")
        at.mkdir()
        (at / "jobs.json").write_text(json.dumps([[script, flags]]))
        said = kill(1, at / "seed0/again.state.pt", [*TORCHRUN, "--nproc_per_node=2", str(ROOT / "tests/real/parallel_job.py"), str(at)])
        if not (at / "seed0/again/fusionroute.pt").exists():
            break
    return at, *said


def test_a_killed_process_ends_the_job_with_one_line_and_one_process_goes_on(killed, one, tmp_path, capsys):
    at, stderr, status = killed
    assert status == 1 and only_error(stderr) == "error: " + parallel.GONE
    left = at / "seed0/again.state.pt"
    assert left.exists() and not (at / "seed0/again/fusionroute.pt").exists(), "the kill came too late to show anything"
    shutil.copytree(at, tmp_path / "copy")
    main(*one().job("router_sft", "--out", str(tmp_path / "copy"), "--name", "again"))
    assert "resuming from step" in capsys.readouterr().out
    weight, logged = difference(one().out / "router_sft", tmp_path / "copy/seed0/again")
    assert weight < 5e-6 and logged < 2.5e-5, (weight, logged)


def test_who_waits_for_a_killed_process_says_so(tmp_path):
    begun = time.time()
    command = [*TORCHRUN, "--nproc_per_node=2", str(ROOT / "tests/real/parallel_job.py"), str(tmp_path), "wait"]
    stderr, status = kill(0, tmp_path / "busy", command)
    assert status == 1 and only_error(stderr) == "error: " + parallel.GONE and (tmp_path / "busy").exists()
    assert time.time() - begun < 50


@pytest.mark.parametrize("n, family", [(2, "llama"), (4, "gemma")])
def test_several_processes_train_what_one_does(n, family, one, killed, tmp_path):
    """Both phases and plain fine-tuning, replicated and with --fsdp, from nothing and from a state of other processes."""
    this, pairs, jobs = one(family), [], []
    shutil.rmtree(this.out / "scores")
    for name in this.phases:
        for how in ([], ["--fsdp"]):
            jobs.append(this.job(name, *how, "--name", f"{name}{len(how)}"))
            pairs.append((this.out / name, this.out / f"{name}{len(how)}"))
    shutil.copytree(killed[0], tmp_path / "resumed")
    jobs.append(one().job("router_sft", "--out", str(tmp_path / "resumed"), "--name", "again", *["--fsdp"] * (n == 2)))
    pairs.append((one().out / "router_sft", tmp_path / "resumed/seed0/again"))
    (tmp_path / "jobs.json").write_text(json.dumps([[script, flags] for script, *flags in jobs]))
    stdout = torchrun(n, [str(ROOT / "tests/real/parallel_job.py")], tmp_path).stdout

    for alone, several in pairs:
        weight, logged = difference(alone, several)
        print(n, several.name, weight, logged)
        assert weight < 5e-6 and logged < 2.5e-5, (several, weight, logged)
        a, b = (load(path / "fusionroute.pt", (), "") for path in (alone, several))
        measured = ("W", "seconds", "memory", "cpu")
        assert {k: v for k, v in a.items() if k not in measured} == {k: v for k, v in b.items() if k not in measured}
    assert "lm_head.weight" not in weights(pairs[3][1])  # tied, in the file too
    assert not [p for at in (this.out, tmp_path) for p in [*at.rglob("*.state.pt"), *at.rglob("*.tmp")]]
    assert stdout.count("resuming from step") == 1 and stdout.count("saved") == len(pairs)  # process 0 speaks
    if n == 2:  # the same processes resume from a state with the same result, to the bit
        assert difference(this.out / "router_sft1", tmp_path / "resumed/seed0/again") == (0, 0)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(n)]
    for held in zip(*(t["held"] for t in told), strict=True):
        fsdp, whole, _ = held[0]
        assert sum(part for _, _, part in held) == (whole if fsdp else n * whole)
        assert max(part for _, _, part in held) < (1.5 * whole / n if fsdp else whole + 1)
    scored = [t["scored"] for t in told]  # all have scored, each file once; those of the resumed run were there
    assert min(scored) > 0 and sum(scored) == len(list((this.out / "scores").iterdir()))


@pytest.mark.parametrize("flags, says", [
    (["--batch", "0"], "--batch is 0"), (["--lr", "1e30"], "the loss is nan: the training has diverged")])
def test_a_mistake_is_told_once(one, flags, says):
    """The first, while the others wait for process 0; the second, by all at the same step."""
    script, *args = one().job("router_sft", "--name", "diverged", *flags)
    p = torchrun(2, ["-m", f"extra.real.{script}"], *args, status=1)
    assert only_error(p.stderr).startswith(f"error: {says}")


def test_one_process_knows_nothing_of_it(one, monkeypatch):
    assert "torchrun --nproc_per_node=N" in mistake("train_sft", "--fsdp") and "torchrun" in mistake("train_cdpo", "--fsdp")
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **k: pytest.fail("there is nobody to talk to"))
    monkeypatch.setattr(parallel, "rendezvous", dist.init_process_group)
    script, *args = one().job("router_sft", "--name", "once")
    monkeypatch.setattr(sys, "argv", ["train_sft.py", *args])
    parallel.run(train_sft.main)
    assert difference(one().out / "router_sft", one().out / "once") == (0, 0) and not dist.is_initialized()
    rows = torch.tensor([3, 1])
    assert parallel.share(rows)[0] is rows and parallel.first() and parallel.alone()
    loss, terms = torch.ones(()), {"loss_lm": 1}
    assert parallel.of_whole_batch(loss, terms, 3) == (loss, loss, terms)
