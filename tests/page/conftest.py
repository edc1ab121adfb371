import json
import shutil
import subprocess
from pathlib import Path

import pytest
from screenshot import launch

from page.__main__ import build, collect
from toy_experts.script import EXPERTS, WEIGHTS, load_router

INSTALL = "run: bash tests/page/install.sh python"


@pytest.fixture(scope="session")
def data():
    """What the page is given: the shipped weights, the words, the examples, ..."""
    return collect(WEIGHTS, 0, "")


@pytest.fixture(scope="session")
def models(data):
    """The same models in PyTorch, from the same half-precision numbers."""
    router, experts, _ = load_router(WEIGHTS, "router", "cpu", "")
    router_sft, _, _ = load_router(WEIGHTS, "router_sft", "cpu", "")
    return dict(zip(EXPERTS, experts)) | {"router_sft": router_sft, "router": router}


@pytest.fixture(scope="session")
def node(data, tmp_path_factory):
    """node(name, argument): what the function `name` of engine_check.js returns."""
    if shutil.which("node") is None:
        pytest.skip(f"there is no node; {INSTALL}")
    folder = tmp_path_factory.mktemp("node")
    (folder / "data.json").write_text(json.dumps(data))
    file = Path(__file__).with_name("engine_check.js")

    def call(name, argument=None):
        job = folder / "job.json"
        job.write_text(json.dumps(argument))  # ASCII, so that lone surrogates survive
        command = ["node", file, folder / "data.json", name, job]
        p = subprocess.run(command, capture_output=True, text=True)
        assert p.returncode == 0, p.stderr[-3000:]
        return json.loads(p.stdout)

    return call


@pytest.fixture(scope="session")
def page_file(data, tmp_path_factory):
    """The built page, in a folder of its own."""
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(build(data), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def chromium():
    """A headless browser that is asked for nothing but the page."""
    sync_api = pytest.importorskip("playwright.sync_api", reason=f"no playwright; {INSTALL}")
    if shutil.which("chromium") is None:
        pytest.skip(f"there is no chromium; {INSTALL}")
    with sync_api.sync_playwright() as p:
        browser = launch(p)
        yield browser
        browser.close()
