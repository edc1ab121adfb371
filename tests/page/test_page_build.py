"""python -m page: the file that it builds, and what it says of a run that is missing or damaged."""

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
SOURCES = [ROOT / "page" / name for name in ["template.html", "style.css"]] + [
    ROOT / "page" / f"{name}.js" for name in page.SCRIPTS]


def test_the_built_file_is_current(data):
    built = page.build(data)
    assert len(built.encode()) < 6e6
    assert (ROOT / "page" / "index.html").read_text(encoding="utf-8") == built, "run: python -m page"


def test_nothing_is_fetched_and_nothing_moves():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for word in ("fetch(", "XMLHttpRequest", "import(", "importScripts", "@import", "url(", "WebSocket",
                     "sendBeacon", "EventSource", "eval(", "transition:", "animation:", "innerHTML"):
            assert word not in text, f"{path.name}: {word}"
        links = re.findall(r'(?:src|href)="([^"]*)"', text)
        assert links in ([], ["data:,"]), f"{path.name}: {links}"
    assert "default-src 'none'" in SOURCES[0].read_text()  # the browser would refuse it, too


def test_lines_are_short():
    for path in [*SOURCES, ROOT / "page" / "__main__.py"]:
        long = [i for i, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 100]
        assert not long, f"{path.name}: lines {long}"


def test_text_in_the_data_cannot_end_the_script(data):
    evil = data | {"examples": [{"prompt": "</script><script>alert(1)</script><!--"}], "models": {}}
    built = page.build(evil)
    assert built.count("</script>") == page.build(data | {"examples": [], "models": {}}).count("</script>")
    found = re.search(r'id="data">(.*?)</script>', built, re.S)[1]
    assert json.loads(found)["examples"] == evil["examples"]


@pytest.fixture()
def a_run(data, tmp_path):
    """A run of one's own: the shipped files in DIR/seed3."""
    folder = tmp_path / "seed3"
    shutil.copytree(page.SHIPPED, folder)
    shutil.copy(ROOT / "page" / "pairs.jsonl", folder / "pairs.jsonl")
    return folder


def test_a_run_of_ones_own(a_run, capsys):
    before = (ROOT / "page" / "index.html").stat().st_mtime_ns
    page.main(["--seed", "3", "--out", str(a_run.parent)])
    assert "page.html" in capsys.readouterr().out
    built = (a_run / "page.html").read_text(encoding="utf-8")
    assert built.rstrip().endswith("</html>") and not list(a_run.glob("*.tmp"))
    assert (ROOT / "page" / "index.html").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["math.pt", "router.pt", "router_sft.pt", "router.log.jsonl",
                                  "router_sft.log.jsonl", "pairs.jsonl"])
def test_missing_and_damaged_files(a_run, name):
    path, args = a_run / name, ["--seed", "3", "--out", str(a_run.parent)]
    whole = path.read_bytes()
    for content in (None, b"", whole[:len(whole) // 2 + 7], b"\x80\x04no such file"):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(script.UserError, match=re.escape(name)) as caught:
            page.main(args)
        assert "python train_sft.py --seed 3" in str(caught.value)
        assert not (a_run / "page.html").exists()


def test_the_command_has_one_line_for_a_mistake(tmp_path):
    p = subprocess.run([sys.executable, "-m", "page", "--seed", "7", "--out", str(tmp_path)], cwd=ROOT,
                       capture_output=True, text=True)
    assert p.returncode == 2 and p.stderr.startswith("error: there is no ") and not p.stdout
    assert p.stderr.count("\n") == 1 and "python train_sft.py --seed 7" in p.stderr
    for args, word in ((["--seed", "x"], "--seed"), (["--seed", "-1"], "--seed is -1"), (["more"], "more")):
        with pytest.raises(script.UserError, match=word):
            page.main(args)
