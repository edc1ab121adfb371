"""The rules of the house: what may import what, that the lesson is what runs, and how long it may be."""

import ast
import dataclasses
import importlib
import sys

import pytest

import decode
import fusionroute
import model
from tests.conftest import ROOT

LESSON = ["fusionroute", "model", "train_sft", "train_cdpo", "decode"]
GROUND = [
    "toy_experts",
    "theory",
    "exercises",
    "page",
]  # folders on the ground floor, besides the lesson's five scripts


def name_of(path):
    """extra/paper/tune.py -> extra.paper.tune; theory/__init__.py -> theory."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files(*folders):
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


SOURCES = {name_of(p): p for p in [*ROOT.glob("*.py"), *python_files(*GROUND, "extra")]}
ON_THE_GROUND = {n: p for n, p in SOURCES.items() if n.split(".")[0] != "extra"}


def imports(path, module):
    """[(module that is imported, line, whether inside a function)]. `from a import b` is a.b where that is a module, and a."""
    found = []

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [a.name for a in child.names]
            elif isinstance(child, ast.ImportFrom):
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                for _ in range(child.level - 1):
                    package = package.rpartition(".")[0]
                base = ".".join(filter(None, [package if child.level else "", child.module or ""]))
                names = [
                    f"{base}.{a.name}" if f"{base}.{a.name}" in SOURCES else base
                    for a in child.names
                ]
            found.extend((n, child.lineno, inside) for n in names)
            visit(
                child,
                inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)),
            )

    visit(ast.parse(path.read_text()), False)
    return found


IMPORTS = {name: imports(path, name) for name, path in SOURCES.items()}


def ours(name):
    """Whether an imported name is a module of this repository (or was meant to be one)."""
    return name.split(".")[0] in {*LESSON, *GROUND, "extra", "tests"}


# --- who may import whom -----------------------------------------------------------------------------------------------------------------


def test_the_ground_floor_does_not_know_extra():
    wrong = [
        f"{SOURCES[m].relative_to(ROOT)}:{line} imports {n}"
        for m in ON_THE_GROUND
        for n, line, _ in IMPORTS[m]
        if n.split(".")[0] in ("extra", "tests")
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("name", ["fusionroute", "model"])
def test_the_method_and_the_model_need_torch_only(name):
    assert {n.split(".")[0] for n, _, _ in IMPORTS[name]} <= {"torch", "dataclasses"}


def test_every_import_of_our_own_exists():
    """A name that no file has would also make the other tests of this page say little."""
    packages = {".".join(n.split(".")[:i]) for n in SOURCES for i in range(1, n.count(".") + 2)}
    wrong = [
        f"{SOURCES[m].relative_to(ROOT)}:{line} imports {n}"
        for m, found in IMPORTS.items()
        for n, line, _ in found
        if ours(n) and n not in packages
    ]
    assert not wrong, wrong


def test_no_import_circle():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for n, _, _ in IMPORTS[module]:
                if (
                    n in SOURCES and n != module
                ):  # a package's __init__ counts where a module names it
                    visit(n)
            done.add(path.pop())

    for module in SOURCES:
        visit(module)
    assert len(done) > 15


def test_no_import_of_our_own_inside_a_function():
    wrong = [
        f"{SOURCES[m].relative_to(ROOT)}:{line} imports {n}"
        for m, found in IMPORTS.items()
        for n, line, inside in found
        if inside and ours(n)
    ]
    assert not wrong, wrong


def test_a_wing_keeps_to_itself():
    """A wing of extra/ imports the ground floor, extra.common, extra.gpt, extra.models, itself; paper and real may use speed."""
    wrong = []
    for module, found in IMPORTS.items():
        wing = module.split(".")[1] if module.startswith("extra.") else None
        if wing is None:
            continue
        allowed = {wing, "common", "gpt", "models"} | (
            {"speed"} if wing in ("paper", "real") else set()
        )
        wrong += [
            f"{SOURCES[module].relative_to(ROOT)}:{line} imports {n}"
            for n, line, _ in found
            if n.startswith("extra.")
            and n.split(".")[1] not in allowed
            or n.split(".")[0] == "tests"
        ]
    assert not wrong, wrong
    assert {m.split(".")[1] for m in SOURCES if m.startswith("extra.")} >= {
        "common",
        "gpt",
        "paper",
        "speed",
        "real",
    }


# --- what the README says runs is what runs ----------------------------------------------------------------------------------------------


class Raised(Exception):
    pass


def raises(*args, **kwargs):
    raise Raised


@pytest.mark.parametrize(
    "module, name",
    [("fusionroute", "fuse"), ("model", "attention"), ("decode", "decode"), ("decode", "read_on")],
)
def test_decode_runs_the_lesson(world, monkeypatch, capsys, module, name):
    """Each of these functions replaced by one that raises, wherever it was imported to: `python decode.py PROMPT` cannot answer."""
    argv = ["--out", str(world), "What is 38 mod 5?"]
    decode.main(argv)
    assert "tokens with the end" in capsys.readouterr().out
    original = getattr(sys.modules[module], name)
    for m in [decode, fusionroute, model]:
        for key, value in list(vars(m).items()):
            if value is original:
                monkeypatch.setattr(m, key, raises)
    with pytest.raises(Raised):
        decode.main(argv)
    assert capsys.readouterr().out == ""


# --- how long it may be ------------------------------------------------------------------------------------------------------------------


def code_lines(path):
    """Lines with code: neither blank, nor only a comment, nor part of a docstring. Imports count."""
    text = path.read_text()
    lines = {
        i
        for i, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize(
    "name, most",
    [("train_sft", 70), ("train_cdpo", 100), ("decode", 160), ("model", 190), ("fusionroute", 75)],
)
def test_code_lines(name, most):
    assert code_lines(ROOT / f"{name}.py") <= most


def test_a_code_line_by_hand(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""Two\nlines."""\nimport os\nfrom sys import (\n    argv)\n\n# why\n\n\ndef f(x):\n    """D."""\n'
        '    y = """not a\n    docstring"""  # code\n    return (x,\n            y)\n'
    )
    assert code_lines(tmp_path / "a.py") == 8


@pytest.mark.parametrize("name, most", [("train_sft", 8), ("train_cdpo", 10)])
def test_few_flags(name, most):
    assert len(dataclasses.fields(importlib.import_module(name).Settings)) <= most


def test_only_the_five_scripts_at_the_top():
    assert {p.stem for p in ROOT.glob("*.py")} == set(LESSON)


def test_lines_of_the_ground_floor():
    files = [
        *ROOT.glob("*.py"),
        ROOT / "theory/toy_mdp.py",
        *python_files("toy_experts", "exercises", "page"),
    ]
    wrong = [
        f"{path.relative_to(ROOT)}:{i}: {len(line)} columns"
        for path in files
        for i, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 100
    ]
    assert not wrong, wrong


def test_train_sft_loads_few_files():
    """The repository's files that `import train_sft` loads, itself included, and all their lines."""
    loaded, left = set(), ["train_sft"]
    while left:
        module = left.pop()
        loaded.add(module)
        left += [
            n for n, _, inside in IMPORTS[module] if n in SOURCES and n not in loaded and not inside
        ]
    lines = sum(len(SOURCES[m].read_text().splitlines()) for m in loaded)
    assert 6 < len(loaded) <= 10 and lines <= 2050, (lines, sorted(loaded))
