"""theory/: the command, the JSON files, the two pages and the picture."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from docs.tools.pages import fill
from theory import __main__ as command
from theory import pages

ROOT = Path(__file__).resolve().parents[2]


def leaves(x, where=""):
    """Nested dicts and lists as one dict: {path: number or word}."""
    if not isinstance(x, (dict, list)):
        return {where: x}
    items = x.items() if isinstance(x, dict) else enumerate(x)
    return {path: v for k, y in items for path, v in leaves(y, f"{where}/{k}").items()}


def test_the_json_files_are_what_the_code_computes(rows, toy, stored):
    computed, written = leaves([rows, toy]), leaves(list(stored))
    assert computed.keys() == written.keys()
    for path, x in computed.items():
        assert x == (
            pytest.approx(written[path], abs=1e-9) if isinstance(x, float) else written[path]
        )


@pytest.mark.parametrize("page,places", list(zip(command.PAGES, (6, 16), strict=True)))
def test_the_numbers_of_the_pages_are_those_of_the_json(page, places, stored):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- begin:") + text.count("<!--=") >= places  # there is something to check
    assert fill(text, pages.values(*stored)) == text


def test_filling_notices_a_change_and_a_wrong_name(stored):
    value = pages.values(*stored)
    assert fill("<!--=toy/leak-->9<!--/-->", value) == "<!--=toy/leak-->0.02<!--/-->"
    for key in ("lemma/nothing", "nothing", "collab/numbers/horizons/9", "lemma"):
        with pytest.raises(KeyError, match=key):
            value(key)


def test_numbers_for_people():
    shown = [pages.number(x) for x in (16384, 0.05, 8.0541, 1e-15, 0.000491, -1.0)]
    assert shown == ["16384", "0.05", "8.05", "~0", "0.000491", "-1"]


def test_the_words_of_the_pages_agree_with_the_numbers(stored):
    rows, toy = stored
    numbers = {key: row["numbers"] for key, row in rows.items()}
    half, full = toy["coverages"].index(0.5), toy["coverages"].index(1.0)
    assert 0.45 < toy["choosing"][half] / toy["length"] < 0.5  # "nearly half of the tokens"
    assert toy["choosing"][full] == pytest.approx(0.02 * toy["length"])  # "the experts' own 2%"
    assert max(x[-1] for x in toy["with_experts"]) < 1e-12  # "without a limit nothing is lost"
    better = np.array(toy["with_experts"])[:, :3] < toy["no_expert"][:3]  # (4, 3)
    assert better.any() and not better.all()  # "where logits are small or coverage nearly full":
    assert (np.diff(better.astype(int), axis=0) <= 0).all()
    assert (np.diff(better.astype(int), axis=1) <= 0).all()
    kl = {way: np.array(x["mean"]) for way, x in numbers["counted_twice"]["kl"].items()}
    assert all((kl["no_expert"] < x).all() for way, x in kl.items() if way != "no_expert")
    assert kl["alone"][-1] == pytest.approx(numbers["counted_twice"]["limit"], rel=0.01)
    eq_5 = numbers["eq_5"]["bound_over_the_most_one_can_lose"]
    assert eq_5["mean"][1] - eq_5["sd"][1] > 1  # "in most of these worlds"
    assert numbers["theorem_4_3"]["error_of_the_formula"] < 1e-11  # "we checked by brute force"
    assert numbers["collab"]["horizons"][-1] == 48  # "from 3 to 48"
    assert numbers["collab"]["regret"] == numbers["collab"]["mismatch"]  # "the rule loses H/3, too"


def test_numpy_is_enough():
    files = [path for path in (ROOT / "theory").rglob("*.py") if path.name != "simplex.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    found = re.findall(r"^\s*(?:import|from) (\w+)", text, re.M)
    assert set(found) <= {"numpy", "docs", *sys.stdlib_module_names}


def test_the_command_survives_an_old_console_and_changes_no_file(rows, monkeypatch):
    watched = [ROOT / name for name in (*command.JSON, *command.PAGES, command.PICTURE)]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in watched]
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(command, "compute", lambda: rows)
    assert command.main([]) == 0
    console.flush()
    lines = console.buffer.getvalue().decode("ascii").splitlines()
    assert lines[0].startswith("mean loss")
    for line, row in zip(lines[-len(rows) - 2 : -2], rows.values(), strict=True):
        assert line.startswith(row["whose"]) and row["says"] in line and len(line) < 180
        assert pages.number(row["then"]) + ", fails" in line and " holds " in line
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in watched] == before


def test_wrong_usage_is_one_line_and_status_2():
    command_line = [sys.executable, "-m", "theory", "--wrong"]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*--wrong.*\n", done.stderr)


def test_status_1_and_a_shout_when_a_statement_fails(monkeypatch, capsys, stored):
    first = next(iter(stored[0].values()))
    monkeypatch.setattr(command.toy_mdp, "main", lambda: None)
    monkeypatch.setattr(command, "compute", lambda: {"lemma": first | {"holds": False}})
    assert command.main([]) == 1 and "FAILS" in capsys.readouterr().out
    monkeypatch.setattr(command, "compute", lambda: {"lemma": first | {"fails": False}})
    assert command.main([]) == 1 and "STILL HOLDS" in capsys.readouterr().out


@pytest.mark.parametrize("matplotlib", [True, False])
def test_write_makes_all_files(matplotlib, tmp_path, monkeypatch, capsys, stored):
    if matplotlib:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    for name in command.PAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("<!--=toy/leak-->9<!--/--> ±", encoding="utf-8")
    monkeypatch.setattr(command, "compute", lambda: stored[0])
    monkeypatch.setattr(command, "toy", lambda: stored[1])
    monkeypatch.setattr(command.toy_mdp, "main", lambda: None)
    assert command.main(["--write"], root=tmp_path) == 0
    for name in command.JSON:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()
    assert "0.02<!--/--> ±" in (tmp_path / command.PAGES[0]).read_text(encoding="utf-8")
    assert (tmp_path / command.PICTURE).exists() == matplotlib
    assert ("needs matplotlib" in capsys.readouterr().err) != matplotlib
    assert not list(tmp_path.rglob("*.tmp"))
