"""The lesson in a classroom: on Windows, in a notebook, with the shipped experts."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import decode
import train_sft
from docs.tools import lesson
from docs.tools.pages import fill, keys
from exercises import grade
from toy_experts import experts, script, tokenizer
from toy_experts.script import EXPERTS, load_router

ROOT = Path(__file__).parent.parent
PROMPT = "Tom has 21 eggs. He loses 3 of them. Then he gives 7 away. How many eggs are there now?"
CHANGED = PROMPT + " Finish with the word done."  # the router changes the line break: a ↵ is shown


def python(*args, cwd=ROOT, status=0, **env):
    """Run Python in a process of its own. Returns its stdout and its stderr, as bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    p = subprocess.run([sys.executable, *args], cwd=cwd, env=environment, capture_output=True)
    assert p.returncode == status, p.stderr.decode()
    return p.stdout, p.stderr


# --- Windows -------------------------------------------------------------------------------------


def test_nothing_depends_on_the_encoding_of_the_system():
    """decode.py names the encoding of every file, and a console with cp1252 shows an answer."""
    here, _ = python("decode.py", CHANGED)
    how = {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONIOENCODING": "cp1252"}
    there, err = python("decode.py", CHANGED, **how)
    assert there.decode("cp1252") == here.decode() and b"\xab" in there  # a « of cp1252
    warned = [x for x in err.splitlines() if b"EncodingWarning" in x and b"site-packages" not in x]
    assert not warned, warned


def test_the_fingerprint_is_of_the_words():
    """It is what every checkpoint so far has stored: the file's bytes with LF, and the pattern."""
    weights = torch.load(script.WEIGHTS / "math.pt", weights_only=True)
    assert tokenizer.FINGERPRINT == weights["vocabulary"] == "b9dbe9bee9b187d1"


def test_text_files_end_lines_with_lf_on_every_machine():
    ask = ["git", "check-attr", "text", "eol", "--", "run.sh", "page/index.html", "docs/a.png"]
    p = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True)
    if p.returncode:
        pytest.skip("this is not a clone")
    assert "run.sh: eol: lf" in p.stdout and "docs/a.png: text: unset" in p.stdout


# --- installing ----------------------------------------------------------------------------------


def test_decode_without_torch_says_what_to_install(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    _, err = python("decode.py", PROMPT, status=2, PYTHONPATH=str(tmp_path))
    assert len(err.splitlines()) == 1 and b"pip install -r requirements.txt" in err


def test_help_without_docstrings():
    """`python -OO` leaves them out."""
    assert "--method" in script.parser(decode.Settings, None).format_help()


# --- paths ---------------------------------------------------------------------------------------


def test_a_tilde_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    s = script.settings(train_sft.Settings, None, ["--out=~/runs"])
    assert script.run_dir(s) == tmp_path / "runs/seed0"


@pytest.mark.parametrize("out", ["-x", "a b", "$HOME", "it's", 'say "yes"'])
def test_a_hint_survives_pasting(out):
    flags = script.flags(train_sft.Settings(out=out))
    echo = subprocess.run(["bash", "-c", f"printf '%s\\n' {flags}"], capture_output=True, text=True)
    assert script.settings(train_sft.Settings, None, echo.stdout.splitlines()).out == out


def test_leftovers_of_a_killed_run_go(tmp_path):
    folder = tmp_path / "seed0"
    folder.mkdir()
    for name in ("router.pt.1.tmp", "math.pt.2.tmp"):
        (folder / name).touch()
    os.utime(folder / "router.pt.1.tmp", (0, 0))  # the other one may be written just now
    script.prepare(train_sft.Settings(out=str(tmp_path), device="cpu"))
    assert [path.name for path in folder.iterdir()] == ["math.pt.2.tmp"]


# --- the notebook --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source():
    return (ROOT / "docs/lesson.py").read_text(encoding="utf-8")


def test_the_notebook_is_what_its_source_says(source):
    book = json.loads((ROOT / "docs/lesson.ipynb").read_text(encoding="utf-8"))
    made = [(c["cell_type"], c["source"]) for c in lesson.cells(source)]
    assert made == [(c["cell_type"], c["source"]) for c in book["cells"]] and len(made) > 15
    assert all(c["outputs"] for c in book["cells"] if "print(" in c["source"])


def test_the_notebook_runs(source):
    """Its cells hold the loops by hand equal to fusionroute's functions; a false assert raises."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    outputs = [
        o for c in lesson.execute(lesson.notebook(source)).cells for o in c.get("outputs", [])
    ]
    said = "".join(o.get("text", "") for o in outputs)
    assert "The answer is 11.\ndone" in said and "L_CDPO 0.3717" in said
    assert any("image/png" in o.get("data", {}) for o in outputs)


def test_the_first_cell_fetches_the_code_where_it_is_missing(source, tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a clone")
    first = next(c["source"] for c in lesson.cells(source) if c["cell_type"] == "code")
    run = (
        "def run(command, check):\n    print(command)\n    if command[0] == 'git': real(command)\n"
    )
    local = f"import subprocess\nreal = subprocess.run\n{run}subprocess.run = run\n{first}"
    local, replaced = re.subn(r"https://github\.com/[\w-]+/fusionroute", ROOT.as_uri(), local)
    assert replaced == 1
    out, _ = python("-c", local + "\nimport fusionroute\nprint(fusionroute.__file__)", cwd=tmp_path)
    assert out.decode().splitlines()[-1] == str(tmp_path / "fusionroute/fusionroute.py")
    assert b"tiktoken" in out and b"'torch" not in out  # what it would install


# --- a class -------------------------------------------------------------------------------------


def test_the_shipped_experts_are_copied_and_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(experts, "train", None)  # a training would fail
    s = train_sft.Settings(out=str(tmp_path), device="cpu", experts="shipped")
    found = experts.ensure(s, shipped=True)
    theirs = load_router(script.WEIGHTS, "router", "cpu", "")[1]
    assert list(map(script.fingerprint, found)) == list(map(script.fingerprint, theirs))
    assert {p.name for p in (tmp_path / "seed0").iterdir()} == {f"{e}.pt" for e in EXPERTS}
    own = train_sft.Settings(out=str(tmp_path), device="cpu")
    assert len(experts.ensure(own)) == 3  # what is there is used; no base is trained for nothing
    assert script.recipe(own) == script.recipe(s)  # so this is the same run
    with pytest.raises(script.UserError, match="trained with --seed 0"):
        experts.ensure(train_sft.Settings(seed=1, out=str(tmp_path), device="cpu"), shipped=True)
    (tmp_path / "seed0/math.pt").write_bytes((tmp_path / "seed0/code.pt").read_bytes())
    with pytest.raises(script.UserError, match="math.pt is another expert"):
        experts.ensure(s, shipped=True)
    assert not list((tmp_path / "seed1").iterdir())


HANDED_IN = {
    "step1_fuse": "raise KeyboardInterrupt\n",
    "step2_informative": """
print("step 4 passes")
def informative(choice): return (choice != choice[..., :1]).any(-1)
""",
    "step3_log_pi_agg": """
import fusionroute
def log_pi_agg(w, logp): return fusionroute.log_pi_agg(w, logp)
""",
    "step4_sft_loss": "def sft_loss(*args): return args[0].sum()\n",
}


def test_grading_a_class(tmp_path, capfd):
    """One that ends the process, a right one that prints, one that calls ours, a wrong one."""
    (tmp_path / "Ada/exercises").mkdir(parents=True)
    for name, source in HANDED_IN.items():
        (tmp_path / f"Ada/exercises/{name}.py").write_text(source)
    grade.main([str(tmp_path)])
    out, err = capfd.readouterr()
    assert out.splitlines()[1] == "Ada,0,1,0,0,0,0,0,0,0"
    assert "Ada, step 1: it ends the process" in err and "step 8: there is no such" in err
    assert "Ada, step 3: line 2: imports fusionroute" in err


@pytest.mark.parametrize(
    "source, says",
    [
        ("from exercises.solutions import fuse", "imports exercises.solutions.fuse"),
        ("from exercises import solutions", "imports exercises.solutions"),
        ("import torch, train_cdpo", "imports train_cdpo"),
        ("__import__('fusionroute')", "uses __import__"),
        ("import torch\ntorch.sys", "line 2: uses sys"),
        ("exec('import fusionroute')", "uses exec"),
        ("from exercises.step1_fuse import fuse\nimport torch.nn.functional as F", None),
        ("model.eval()", None),
    ],
)
def test_what_a_students_file_may_use(source, says):
    found = grade.foreign(source)
    assert found is None if says is None else says in found


def test_the_lab_sheet_has_measured_seconds():
    seconds = json.loads((ROOT / "extra/results/quickstart.json").read_text())["meta"]["seconds"]
    page = (ROOT / "docs/lab.md").read_text(encoding="utf-8")
    assert fill(page, lambda key: str(seconds[key])) == page and len(keys(page)) == 3


# --- pages ---------------------------------------------------------------------------------------


def figures(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return sorted(re.findall("<!--=([^>]+?)-->(.*?)<!--/-->", text, re.S))


def test_the_chinese_page_has_the_same_figures():
    assert figures("docs/README.zh.md") == figures("README.md") and len(figures("README.md")) > 10


def test_one_owner_in_all_addresses():
    """Whoever hosts the repository replaces OWNER; in one file alone it would be forgotten."""
    pages = (
        "README.md",
        "docs/README.zh.md",
        "docs/lesson.py",
        "CITATION.cff",
        "page/template.html",
    )
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in pages]
    address = r"https://(?:github\.com/)?([\w-]+)(?:\.github\.io)?/fusionroute\b"
    owners = [re.findall(address, text) for text in texts]
    assert all(owners) and len({owner for found in owners for owner in found}) == 1


MAKERS = ["docs.tools." + p.stem for p in (ROOT / "docs/tools").glob("*.py") if p.stem != "pages"]
TRAINERS = ["train_sft", "train_cdpo", "toy_experts.experts", "toy_experts.evaluate"]


@pytest.mark.parametrize("name", [*MAKERS, *TRAINERS, "exercises.grade"])
def test_help_writes_nothing(name, monkeypatch, capsys):
    monkeypatch.setattr(script, "write", None)
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(["--help"])
    assert stop.value.code == 0 and "usage: python" in capsys.readouterr().out
