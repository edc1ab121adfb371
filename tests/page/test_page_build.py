"""python -m page: the file that it builds, and what it says of a missing or damaged run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from page import __main__ as page
from toy_experts import script

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "page"
SOURCES = [PAGE / n for n in ("template.html", "style.css", *(f"{n}.js" for n in page.SCRIPTS))]
LOADS = """fetch( XMLHttpRequest import( importScripts @import url( WebSocket sendBeacon EventSource
    eval( animation: innerHTML""".split()


def test_the_built_file_is_current(data):
    built = page.build(data)
    assert len(built.encode()) < 5.2e6
    assert (PAGE / "index.html").read_text(encoding="utf-8") == built, "run: python -m page"


def test_nothing_is_fetched_and_lines_are_short():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert [word for word in LOADS if word in text] == [], path.name
        links = re.findall(r'(?:src|(?<!<a )href)="([^"]*)"', text)  # <a href: only if pressed
        assert all(link.startswith("data:") for link in links), f"{path.name}: {links}"
        lines = [line for line in text.splitlines() if "data:image" not in line]
        assert max(map(len, lines)) <= 100, path.name
    assert "default-src 'none'" in SOURCES[0].read_text()  # the browser would refuse it, too
    assert sum(len(p.read_text().splitlines()) for p in SOURCES[2:]) <= 2700
    moving = SOURCES[1].read_text().split("@media (prefers-reduced-motion: no-preference)")
    assert "transition" not in moving[0] and "transition" in moving[1]


def test_text_in_the_data_cannot_end_the_script(data):
    evil = [{"prompt": "</script><script>alert(1)</script><!--"}]
    built = page.build(data | {"examples": evil, "models": {}})
    harmless = page.build(data | {"examples": [], "models": {}})
    assert built.count("</script>") == harmless.count("</script>")
    found = re.search(r'id="data">(.*?)</script>', built, re.S)[1]
    assert json.loads(found)["examples"] == evil


@pytest.fixture()
def a_run(tmp_path):
    """A run of one's own: the shipped files in DIR/seed3."""
    folder = tmp_path / "seed3"
    shutil.copytree(script.WEIGHTS, folder)
    shutil.copy(PAGE / "pairs.jsonl", folder / "pairs.jsonl")
    return folder


def test_a_run_of_ones_own(a_run, capsys):
    before = (PAGE / "index.html").stat().st_mtime_ns
    page.main(["--seed", "3", "--out", str(a_run.parent)])
    assert "page.html" in capsys.readouterr().out
    built = (a_run / "page.html").read_text(encoding="utf-8")
    assert built.rstrip().endswith("</html>") and not list(a_run.glob("*.tmp"))
    assert (PAGE / "index.html").stat().st_mtime_ns == before


FILES = "math.pt router.pt router_sft.pt router.log.jsonl router_sft.log.jsonl pairs.jsonl".split()


@pytest.mark.parametrize("name", FILES)
def test_missing_and_damaged_files(a_run, name):
    path, whole = a_run / name, (a_run / name).read_bytes()
    for content in (None, whole[: len(whole) // 2 + 7]):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(script.UserError, match=re.escape(name)) as caught:
            page.main(["--seed", "3", "--out", str(a_run.parent)])
        assert "python train_sft.py --seed 3" in str(caught.value)
        assert not (a_run / "page.html").exists()


def test_the_command_has_one_line_for_a_mistake(tmp_path):
    command = [sys.executable, "-m", "page", "--seed", "7", "--out", str(tmp_path)]
    p = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 2 and p.stderr.startswith("error: there is no ") and not p.stdout
    assert p.stderr.count("\n") == 1 and "python train_sft.py --seed 7" in p.stderr
    for args in ("--seed x", "--seed -1", "more"):
        with pytest.raises(script.UserError, match="--seed|more"):
            page.main(args.split())
