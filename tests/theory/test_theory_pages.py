"""theory/: the command, the JSON files, the two pages and the pictures."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from theory import __main__ as command
from theory.statements import readme, report

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "theory" / "figures"


def same(a, b, where=""):
    """Equal, numbers within 1e-9 (relative when large)."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            same(a[k], b[k], f"{where}/{k}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{where}/{k}")
    elif isinstance(a, float) or isinstance(b, float):
        assert a == pytest.approx(b, abs=1e-9, rel=1e-9), where
    else:
        assert a == b, where


def test_json_is_what_the_code_computes(rows, stored):
    same(json.loads(report.to_json(rows)), stored)


def test_json_has_the_promised_keys(stored):
    for r in stored:
        assert {"statement", "expected", "measured", "holds", "counter_test"} <= r.keys()


def test_json_of_the_toy_mdp_is_what_the_code_computes(small, stored_small):
    same(json.loads(json.dumps(small)), stored_small)


@pytest.mark.parametrize("page,places", list(zip(command.PAGES, (5, 40))))
def test_numbers_of_the_pages_are_those_of_the_json(page, places, stored, stored_small):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- begin:") + text.count("<!--=") >= places  # the check below must have something to check
    assert readme.fill(text, stored, stored_small, page) == text
    assert not re.search(r"^\s*<!--=", text, re.M)  # a comment at the start of a line would end the paragraph


def test_filling_notices_a_change_and_a_wrong_name(stored, stored_small):
    def fill(text):
        return readme.fill(text, stored, stored_small, "page.md")

    assert fill("x <!--=1c/measured-->9<!--/--> y") == "x <!--=1c/measured-->1.25<!--/--> y"  # the two-step example
    assert fill("<!--=toy/leak-->9<!--/-->") == "<!--=toy/leak-->0.02<!--/-->"
    with pytest.raises(ValueError, match="page.md.*not there"):
        fill("<!--=1c/numbers/nothing-->9<!--/-->")
    with pytest.raises(ValueError, match="page.md.*not made"):
        fill("<!-- begin: nothing -->\n<!-- end: nothing -->")


def test_the_first_page_is_short():
    text = re.sub(r"<!--.*?-->", "", (ROOT / "theory" / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert len(re.findall(r"\w[\w'.%*-]*", text)) <= 720  # 700 words, and the signs of the formulas


@pytest.mark.parametrize("page", command.PAGES)
def test_every_link_leads_somewhere_and_every_picture_says_what_it_shows(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)#]+)", text)
    assert links
    for picture, words, target in links:
        assert "://" in target or (ROOT / page).parent.joinpath(target).exists(), target
        assert not picture or len(words) > 60, target


def test_the_pages_mention_every_picture():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in command.PAGES)
    named = set(re.findall(r"figures/(\w+\.png)", text))
    assert named == {p.name for p in FIGURES.glob("*.png")} and len(named) >= 6
    assert max(p.stat().st_size for p in FIGURES.glob("*.png")) < 200_000


def test_every_item_named_in_the_text_exists(stored):
    items = {r["item"] for r in stored}
    text = (ROOT / command.PAGES[1]).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w.])[1-8][a-i]\b(?!-)", text))  # not the 2e of 4.2e-07
    assert named - items == {"2d", "4b"}  # the two that were taken out, as the page says


def test_theory_imports_nothing_but_itself_and_numpy():
    allowed = {"numpy", *sys.stdlib_module_names}
    for path in (ROOT / "theory").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            extra = {"matplotlib"} if path.name == "figures.py" else set()
            assert {n.split(".")[0] for n in names} <= allowed | extra, path


@pytest.mark.parametrize("arguments", [["--wrong"], ["--no-figures", "extra"]])
def test_wrong_usage_is_one_line_and_status_2(arguments):
    done = subprocess.run([sys.executable, "-m", "theory", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and arguments[-1] in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


def test_readme_without_json_is_one_line_and_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--readme"], root=tmp_path)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: extra/results/toy_mdp.json is missing")


def test_without_matplotlib_tables_and_json_are_still_made(tmp_path, capsys, monkeypatch, rows, small):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)  # what Python puts there to forbid an import
        patch.delitem(sys.modules, "theory.statements.figures", raising=False)
        patch.delattr("theory.statements.figures", raising=False)
        without = {"__name__": "theory.again", "__package__": "theory", "__file__": command.__file__}
        exec(Path(command.__file__).read_text(), without)  # the module anew, beside the one that is there
    assert without["figures"] is None
    monkeypatch.setattr(command, "figures", None)
    monkeypatch.setattr(command, "compute", lambda: rows)
    monkeypatch.setattr(command, "toy", lambda: small)
    assert command.main([], root=tmp_path) == 0
    out = capsys.readouterr().out
    assert "pictures skipped" in out and "pip install matplotlib" in out
    assert 0 <= out.index("toy MDP") < out.index("Lemma 4.1")  # the toy's table comes first
    written = [json.loads((tmp_path / name).read_text()) for name in command.RESULTS]
    same(written[0], json.loads(json.dumps(small)))
    assert len(written[1]) == len(rows)


def test_figures_are_drawn_whole(tmp_path, stored):
    pytest.importorskip("matplotlib")
    from theory.statements import figures

    paths = figures.draw_all(stored, tmp_path)
    assert {p.name for p in paths} == {p.name for p in FIGURES.glob("*.png")}
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in paths)
    assert list(tmp_path.glob("*.tmp")) == []


def test_status_1_when_a_statement_fails(tmp_path, monkeypatch, rows, small):
    monkeypatch.setattr(command, "toy", lambda: small)
    broken = [dict(rows[0], holds=False)] + rows[1:]
    monkeypatch.setattr(command, "compute", lambda: broken)
    assert command.main(["--no-figures"], root=tmp_path) == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    report.write_whole(target, "old")
    with monkeypatch.context() as m:
        m.setattr(report.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError):
            report.write_whole(target, "new and longer")
    assert target.read_text() == "old"


# --- what the README says in words ----------------------------------------------------------------------------------


def test_the_words_of_the_readme_agree_with_the_numbers(stored):
    n = {r["item"]: r["numbers"] for r in stored}
    assert n["2c"]["vacuous"]["mean"][1] > 1  # a tenth uncovered: "it says nothing"
    assert (
        n["4e"]["sparse"]["mean"][-1] < n["4e"]["sparse"]["mean"][0]
    )  # with one reward at the end the gap does not grow
    kl = {way: np.array(b["mean"]) for way, b in n["7d"]["kl"].items()}
    assert (kl["no_expert"] < np.minimum(kl["through"], kl["alone"])).all()  # "has the lowest KL of all"
    good = n["7d"]["good_experts_greedy"]  # "not distinguishable": within one standard error
    assert abs(good["through"]["mean"] - good["no_expert"]["mean"]) < good["through"]["sd"] / 20**0.5
    u = {k: b["mean"] for k, b in n["7f"]["kl"].items()}
    assert n["7f"]["marks"][9] == 100
    assert 50 <= n["7f"]["marks"][int(np.argmin(u["exact, beta 0.1"]))] <= 100
    assert min(u["exact, beta 0.1"]) < min(u["16 pairs a prompt"]) < min(u["4 pairs a prompt"])  # "shallower"
    assert n["8f"]["seen"][1] > 0 == n["8f"]["seen"][0]  # a slip of 0.01 is enough to see p
    # "smaller without them in every one of the 40 trees" is 4h; "the fuller it must be":
    assert (np.diff(n["4h"]["worth_from"]) >= 0).all()
    assert np.round(n["4h"]["worth_from"], 2).tolist()[:4] == [0, 0.5, 0.86, 0.96]  # the text beside the picture
    assert 0 < n["4h"]["bounds"].index(1.0) < n["4h"]["bounds"].index(3.0) == 3
    assert n["4f"]["no_expert"]["mean"][3] < n["4f"]["fused"]["mean"][3]  # "from B = 1 on", the picture's title


def test_the_words_of_the_first_page_agree_with_the_numbers(stored_small):
    n, T = stored_small, stored_small["length"]
    covers, bounds = n["coverages"], n["bounds"]
    assert n["leak"] == 0.02  # "98%"
    assert 0.45 < n["choosing"][covers.index(0.5)] / T < 0.5  # "nearly half of the tokens are wrong"
    assert n["choosing"][covers.index(1.0)] == pytest.approx(T * n["leak"])  # "only the experts' own 2%"
    assert max(x[bounds.index(None)] for x in n["with_experts"]) < 1e-12  # "without a bound nothing is lost"
    better = np.array(n["with_experts"])[:, :3] < n["no_expert"][:3]  # (4, 3): are experts worth having?
    assert better.any() and not better.all()
    assert (np.diff(better.astype(int), axis=0) <= 0).all()  # where coverage is nearly full
    assert (np.diff(better.astype(int), axis=1) <= 0).all()  # where logits are small
