import json
import shutil

import pytest
import torch
from compare_engine import call_node, load_models
from screenshot import CHROMIUM, FLAGS, INSTALL

from page.__main__ import build, collect
from toy_experts.script import WEIGHTS

NODE = shutil.which("node")


@pytest.fixture(scope="session")
def data():
    """What the page is given: the shipped weights, the words, the examples, ..."""
    return collect(WEIGHTS, 0, "")


@pytest.fixture(scope="session")
def models(data):
    """The same models in PyTorch, from the same half-precision numbers."""
    return load_models()


@pytest.fixture(scope="session")
def node(data, tmp_path_factory):
    """node(name, argument): what the function `name` of engine_check.js returns."""
    if NODE is None:
        pytest.skip(f"there is no node; {INSTALL}")
    data_file = tmp_path_factory.mktemp("node") / "data.json"
    data_file.write_text(json.dumps(data))
    return lambda name, argument=None: call_node(NODE, data_file, name, argument)


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
    if CHROMIUM is None:
        pytest.skip(f"there is no chromium; {INSTALL}")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
