"""The laptop run, all of its commands on a tiny random model; and docs/real-models.md."""

import contextlib
import importlib
import io
import json
import re
import shlex
import threading

import pytest

from docs.tools import real_models
from extra.real import smollm2
from tests.real.conftest import main, make, refused
from toy_experts import script, tasks

one_at_a_time = threading.Lock()
SMALL = "--expert 8 --router 10 --prompts 5 --tests 1 --batch 5".split()


def in_this_process(arguments):
    """What smollm2.measured does, without starting Python nine times; one after the other."""
    with one_at_a_time, contextlib.redirect_stdout(io.StringIO()) as said:
        main(arguments[0].rpartition(".")[2], *arguments[1:])
    return {"cpu_minutes": 1.0, "minutes": 1.0, "peak_gb": 1.0, "output": said.getvalue()}


@pytest.fixture
def small_run(tmp_path, monkeypatch):
    """A function that does the whole run with given flags; returns what it writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smollm2, "RESULT", tmp_path / "result.json")
    monkeypatch.setattr(smollm2, "measured", in_this_process)
    monkeypatch.setattr(smollm2, "MAX_NEW", 4)
    make("smollm2", max_position_embeddings=1024)

    def run(*flags):
        main("smollm2", "run", *SMALL, *flags)
        return json.loads((tmp_path / "result.json").read_text())

    return run


def test_the_whole_run_with_all_weights_and_with_adapters(small_run, monkeypatch):
    small_run()
    found = small_run("--lora_r", "2", "--out", "smol_lora")
    assert set(found) == {"full", "lora"}
    for result in found.values():
        assert set(result["accuracy"]) == set(real_models.NAMES)
        assert result["prompts"]["average"] == 5 and result["pairs"] == 5  # it never says it right
        shares = result["routing"]["toy-gsm8k"].values()
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        for table in (real_models.accuracy, real_models.routing, real_models.took):
            assert table({"full": result, "lora": result}).count("\n") >= 6

    done = []
    monkeypatch.setattr(smollm2, "measured", lambda arguments: done.append(arguments))
    small_run()
    assert not done  # started again, it does nothing twice
    assert "run.json was made with arguments" in refused(small_run, "--tests", "2")


def test_no_expert_sees_what_is_kept_from_it(tmp_path):
    s = smollm2.Settings(out=str(tmp_path))
    smollm2.data(s)
    answers = {}
    for name in (*tasks.DOMAINS, "router"):
        rows = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        answers[name] = [json.loads(row)["completion"] for row in rows]
    assert [len(x) for x in answers.values()] == [s.expert] * 3 + [s.router]
    assert tasks.held_out("toy-gsm8k", s.gap, s.seed) == ["double", "triple"]
    for word in ("After doubling", "After tripling"):
        assert not any(word in a for a in answers["math"])
        assert any(word in a for a in answers["router"])


def test_a_wheel_without_a_model_is_refused(tmp_path):
    path = tmp_path / "x.whl"
    path.write_text("no archive")
    assert "no wheel with a GGUF file" in refused(main, "smollm2", "model", "--wheel", path)


@pytest.mark.parametrize("page", real_models.PAGES, ids=lambda p: p.name)
def test_the_page_says_what_the_results_say(page):
    assert real_models.filled(page) == page.read_text(), "run python -m docs.tools.real_models"


def test_the_commands_of_the_page_are_accepted_in_any_shell():
    text = (real_models.DOCS / "real-models.md").read_text()
    found = re.findall(
        r"^ *(?:accelerate launch .*?-m|python -m) (extra\.real\S*) ?(.*)$", text, re.M
    )
    assert len(found) >= 9
    for module, arguments in found:
        assert not re.search(r"[$\\`'*]", arguments), arguments  # shells differ in these
        command = importlib.import_module(module)
        if module == "extra.real.smollm2":
            arguments = re.sub(r"^\w+ ?", "", arguments)
        script.settings(command.Settings, "", shlex.split(arguments))
