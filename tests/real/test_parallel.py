"""parallel.py: 2 and 4 processes on the CPU train what one process trains; one that is killed ends the job, and it goes on."""

import importlib
import importlib.util
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

import common
import parallel
import train_cdpo
import train_sft
from tests.conftest import ROOT, mistake
from tests.test_own import dirs  # noqa: F401 (a fixture)
from tests.test_pretrained_tokenizer import folder  # noqa: F401 (a fixture of dirs)

# Batches of 6, 6, 6 and 2: of the last, two of four processes have nothing.
SFT = "--samples 20 --epochs 6 --batch 6 --save_every 3 --device cpu".split()
CDPO = "--prompts 36 --tries 1 --epochs 2 --batch 6 --save_every 3 --device cpu".split()
OWN = "--epochs 3 --lr 3e-3 --lr_w 0.03 --batch 4 --save_every 3".split()  # 7 samples: 4 and 3
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def torchrun(n, script, *args, status=0):
    p = subprocess.run([*TORCHRUN, f"--nproc_per_node={n}", str(ROOT / script), *map(str, args)], cwd=ROOT, env=ENV, text=True,
                       capture_output=True, timeout=240)
    assert p.returncode == status, p.stdout + p.stderr
    return p


def only_error(stderr):
    """The one line in which we say what is wrong. torchrun's report has a traceback of its own."""
    (line,) = [line for line in stderr.replace("\r", "\n").splitlines() if "error: " in line]
    assert stderr.count("Traceback") == stderr.count("ChildFailedError(") == 1
    return line


def weights(path):
    """The weights of a router, of the toy (a .pt) or of own.py (a directory)."""
    if path.with_suffix(".pt").exists():
        return torch.load(path.with_suffix(".pt"), weights_only=True)["model"]
    from safetensors.torch import load_file
    return load_file(path / "model.safetensors") | {"W": torch.load(path / "fusionroute.pt", weights_only=True)["W"]}


def difference(a, b):
    """The largest difference of weights and of logged numbers of two runs."""
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    logs = [[json.loads(line) for line in Path(f"{p}.log.jsonl").read_text().splitlines()] for p in (a, b)]
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys() and one["step"] == two["step"] and one.get("kind") == two.get("kind")
    undecided = lambda r: {"accuracy"} if abs(r.get("margin", 1)) < 1e-4 else set()  # nothing learned yet: rounding decides on margin > 0
    logged = max(abs(one[k] - two[k]) for one, two in zip(*logs) for k in one.keys() - {"kind"} - undecided(one))
    return max(float((x[k] - y[k]).abs().max()) for k in x if x[k].numel()), logged


@pytest.fixture(scope="module")
def toy(world, tmp_path_factory):
    """The tiny world with two more routers, sft and cdpo, trained by one process. Later tests add to it."""
    at = tmp_path_factory.mktemp("parallel") / "out"
    shutil.copytree(world, at)
    train_sft.main([*SFT, "--out", str(at), "--name", "sft"])
    train_cdpo.main([*CDPO, "--out", str(at), "--name", "cdpo"])
    return at


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
def killed(toy, tmp_path_factory):
    """What a training by two processes with --fsdp has left, of which the second was killed; what it said; its exit status."""
    for attempt in range(4):  # where others keep the machine busy, the training may be over before the kill
        at = tmp_path_factory.mktemp("killed") / "out"
        shutil.copytree(toy, at)
        command = [*TORCHRUN, "--nproc_per_node=2", str(ROOT / "train_sft.py"), *SFT, "--out", str(at), "--name", "again", "--fsdp"]
        said = kill(1, at / "seed0/again.state.pt", command)
        if not (at / "seed0/again.pt").exists():
            break
    return at, *said


def test_a_killed_process_ends_the_job_with_one_line_and_one_process_goes_on(killed, toy, tmp_path, capsys):
    at, stderr, status = killed
    assert status == 1 and only_error(stderr) == "error: " + parallel.GONE
    assert (at / "seed0/again.state.pt").exists() and not (at / "seed0/again.pt").exists(), "the kill came too late to show anything"
    shutil.copytree(at, tmp_path / "out")
    train_sft.main([*SFT, "--out", str(tmp_path / "out"), "--name", "again"])
    assert "going on from step" in capsys.readouterr().out
    weight, logged = difference(toy / "seed0/sft", tmp_path / "out/seed0/again")
    assert weight < 5e-6 and logged < 2.5e-5, (weight, logged)


def test_who_waits_for_a_killed_process_says_so(tmp_path):
    begun = time.time()
    command = [*TORCHRUN, "--nproc_per_node=2", str(ROOT / "tests/parallel_job.py"), str(tmp_path), "wait"]
    stderr, status = kill(0, tmp_path / "busy", command)
    assert status == 1 and only_error(stderr) == "error: " + parallel.GONE and (tmp_path / "busy").exists()
    assert time.time() - begun < 50


@pytest.mark.parametrize("n, family", [(2, "llama"), (4, "gemma")])
def test_several_processes_train_what_one_does(n, family, toy, killed, tmp_path, request):
    """Both phases, replicated and with --fsdp, from nothing and from a state of other processes: losses, logs, weights, files."""
    out = tmp_path / "toy"  # "out" is where the fixture dirs has its own
    shutil.copytree(toy, out)
    for path in out.glob("seed0/[ps]*[0-9a-f].*"):
        if path.name.startswith(("pairs-", "scores-")):
            path.unlink()  # process 0 makes them again
    shutil.copytree(killed[0], tmp_path / "resumed")
    at, resumed = ["--out", str(out)], ["--out", str(tmp_path / "resumed"), "--name", "again"]
    jobs = [("train_sft", [*SFT, *at, "--name", "sft_ddp"]), ("train_sft", [*SFT, *at, "--name", "sft_fsdp", "--fsdp"]),
            ("train_cdpo", [*CDPO, *at, "--name", "cdpo_ddp"]), ("train_cdpo", [*CDPO, *at, "--name", "cdpo_fsdp", "--fsdp"]),
            ("train_sft", [*SFT, *resumed, *["--fsdp"] * (n == 2)])]
    pairs = [(toy / "seed0" / name[:-4].rstrip("_"), out / "seed0" / name) for name in ("sft_ddp", "sft_fsdp", "cdpo_ddp", "cdpo_fsdp")]
    pairs += [(toy / "seed0/sft", tmp_path / "resumed/seed0/again")]
    extras = importlib.util.find_spec("safetensors") is not None
    if extras:
        flags = request.getfixturevalue("dirs")(family)
        plain = [*flags.sft[:2], *flags.sft[flags.sft.index("--data"):], "--name", "plain"]  # no experts: W has no row
        for name, phase, made in ("train_sft", plain, "plain"), ("train_sft", flags.sft, "router_sft"), ("train_cdpo", flags.cdpo, "router"):
            importlib.import_module(name).main([*phase, *OWN])
            for how in ([], ["--fsdp"]):
                into = f"{made}{len(how)}"
                jobs.append((name, [*phase, *OWN, *how, "--name", into]))
                pairs.append((flags.at / "out/seed0" / made, flags.at / "out/seed0" / into))
        shutil.rmtree(flags.at / "out/seed0/scores")
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    stdout = torchrun(n, "tests/parallel_job.py", tmp_path).stdout

    for one, several in pairs:
        weight, logged = difference(one, several)
        print(n, several.name, weight, logged)
        assert weight < 5e-6 and logged < 2.5e-5, (several, weight, logged)
    a, b = (common.load(out / f"seed0/{name}.pt", (), "") for name in ("sft", "sft_fsdp"))
    assert {k: v for k, v in a.items() if k not in ("model", "seconds")} == {k: v for k, v in b.items() if k not in ("model", "seconds")}
    assert b["model"]["lm.embed.weight"].data_ptr() == b["model"]["lm.head.weight"].data_ptr()  # tied, in the file too
    assert not list(tmp_path.rglob("*.state.pt")) and not list(tmp_path.rglob("*.tmp"))
    assert stdout.count("going on from step") == 1 and stdout.count("saved") == len(pairs) + 1  # process 0 speaks; the pairs are made again
    if n == 2:  # the same processes go on from a state with the same result, to the bit
        assert difference(out / "seed0/sft_fsdp", tmp_path / "resumed/seed0/again") == (0, 0)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(n)]
    for held in zip(*(t["held"] for t in told), strict=True):
        fsdp, whole, _ = held[0]
        assert sum(part for _, _, part in held) == (whole if fsdp else n * whole)
        assert max(part for _, _, part in held) < (1.5 * whole / n if fsdp else whole + 1)
    scored = [t["scored"] for t in told]
    if extras:  # all have scored, each file once
        assert min(scored) > 0 and sum(scored) == len(list((flags.at / "out/seed0/scores").iterdir()))


@pytest.mark.parametrize("flags, says", [(["--batch", "0"], "--batch is 0"), (["--lr", "1e30"], "the loss is nan: training has diverged")])
def test_a_mistake_is_told_once(toy, tmp_path, flags, says):
    """The first, while the others wait for process 0; the second, by all at the same step."""
    p = torchrun(2, "train_sft.py", *SFT, "--out", toy, "--name", "diverged", *flags, status=1)
    assert only_error(p.stderr).startswith(f"error: {says}")


def test_one_process_knows_nothing_of_it(toy, monkeypatch):
    assert "torchrun --nproc_per_node=N" in mistake("train_sft", "--fsdp") and "torchrun" in mistake("train_cdpo", "--fsdp")
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **k: pytest.fail("there is nobody to talk to"))
    monkeypatch.setattr(parallel, "rendezvous", dist.init_process_group)
    (toy / "seed0/once.pt").unlink(missing_ok=True)
    monkeypatch.setattr(sys, "argv", ["train_sft.py", *SFT, "--out", str(toy), "--name", "once"])
    parallel.run(train_sft.main)
    assert difference(toy / "seed0/sft", toy / "seed0/once") == (0, 0) and not dist.is_initialized()
    rows = torch.tensor([3, 1])
    assert parallel.share(rows)[0] is rows and parallel.first() and parallel.alone()
