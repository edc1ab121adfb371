"""The rules of the house: who imports whom, that the lesson is what runs, and how much it is."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

import decode
import fusionroute
import model
from tests.conftest import ROOT

LESSON = ["fusionroute", "model", "train_sft", "train_cdpo", "decode"]
GROUND = ["toy_experts", "theory", "exercises", "page", "docs"]  # its other folders
# What there is, and a little more: whoever adds must also remove.
MOST_PYTHON, MOST_TESTS, MOST_WORDS, MOST_README = 24_750, 9_950, 23_000, 1_960


def files(ending, *folders):
    return [p for folder in folders for p in sorted((ROOT / folder).rglob(f"*.{ending}"))]


def name_of(path):
    """extra/paper/tune.py -> extra.paper.tune; theory/__init__.py -> theory."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


CODE = {name_of(p): p for p in [*ROOT.glob("*.py"), *files("py", *GROUND, "extra")]}
TESTS = files("py", "tests")
PAGES = [*ROOT.glob("*.md"), *files("md", *GROUND, "extra", "tests")]


def imports(name):
    """(module, line, whether inside a function) of each import. `from a import b`: a.b, or a."""
    found, path = [], CODE[name]

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [a.name for a in child.names]
            elif isinstance(child, ast.ImportFrom):
                depth = child.level - (path.name == "__init__.py")
                parts = name.split(".")
                parts = parts[: len(parts) - depth] if child.level else []
                base = ".".join([*parts, *filter(None, [child.module])])
                names = [f"{base}.{a.name}" for a in child.names]
                names = [n if n in CODE else base for n in names]
            found.extend((n, child.lineno, inside) for n in names)
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            visit(child, inside or function)

    visit(ast.parse(path.read_text("utf-8")), False)
    return found


IMPORTS = {name: imports(name) for name in CODE}


def all_imports_but(wrong):
    """Fails with the place of each import for which wrong(importer, imported, inside) holds."""
    places = [
        f"{CODE[name].relative_to(ROOT)}:{line} imports {n}"
        for name, found in IMPORTS.items()
        for n, line, inside in found
        if wrong(name, n, inside)
    ]
    assert not places, places


def top(name):
    return name.split(".")[0]


def ours(name):
    return top(name) in {*LESSON, *GROUND, "extra", "tests"}


# --- who imports whom ---------------------------------------------------------------------------


def test_the_ground_floor_does_not_know_extra():
    """docs/tools publishes what extra/ measured; of it the lesson uses pages.py only."""
    apart = [n for n in CODE if top(n) in ("extra", "docs") and n != "docs.tools.pages"]
    assert len(CODE) - len(apart) > 30 and len(apart) > 15
    all_imports_but(lambda name, n, inside: name not in apart and n in apart)
    all_imports_but(lambda name, n, inside: top(n) == "tests")


def test_the_wings_do_not_know_each_other():
    wings = "extra.real", "extra.paper"
    all_imports_but(
        lambda name, n, inside: any(
            name.startswith(a) and n.startswith(b) for a in wings for b in wings if a != b
        )
    )


@pytest.mark.parametrize("lesson", ["fusionroute", "model"])
def test_the_method_and_the_model_need_torch_only(lesson):
    allowed = {"torch", *sys.stdlib_module_names}
    all_imports_but(lambda name, n, inside: name == lesson and top(n) not in allowed)


def test_every_import_of_our_own_exists():
    """A name that no file has would also make the other tests of this page say little."""
    packages = {".".join(n.split(".")[:i]) for n in CODE for i in range(1, n.count(".") + 2)}
    all_imports_but(lambda name, n, inside: ours(n) and top(n) != "tests" and n not in packages)


def test_no_import_of_our_own_inside_a_function():
    all_imports_but(lambda name, n, inside: inside and ours(n))


def test_no_import_circle():
    """TopologicalSorter raises CycleError, with the circle."""
    graph = {name: {n for n, _, _ in IMPORTS[name] if n in CODE} - {name} for name in CODE}
    assert set(TopologicalSorter(graph).static_order()) == set(CODE)


@pytest.mark.parametrize("name, most", [("decode", 7), ("train_sft", 9)])
def test_a_script_loads_what_it_uses(name, most):
    """The repository's files that an import loads, the script itself included."""
    loaded, left = set(), [name]
    while left:
        loaded.add(left.pop())
        left = [n for m in loaded for n, _, _ in IMPORTS[m] if n in CODE and n not in loaded]
    assert 5 < len(loaded) <= most, sorted(loaded)
    assert "toy_experts.judge" not in loaded
    assert name != "decode" or "toy_experts.tasks" not in loaded


# --- what the README says runs is what runs -----------------------------------------------------


class Raised(Exception):
    pass


def raises(*args, **kwargs):
    raise Raised


@pytest.mark.parametrize(
    "module, name",
    [(fusionroute, "fuse"), (model, "attention"), (decode, "decode"), (decode, "read_on")],
)
def test_decode_runs_the_lesson(world, monkeypatch, capsys, module, name):
    """The function replaced by one that raises, wherever it was imported to: no answer."""
    command, original = ["--out", str(world), "What is 38 mod 5?"], getattr(module, name)
    decode.main(command)
    assert "the experts disagree at" in capsys.readouterr().out
    for m in (decode, fusionroute, model):
        for key, value in list(vars(m).items()):
            if value is original:
                monkeypatch.setattr(m, key, raises)
    with pytest.raises(Raised):
        decode.main(command)
    assert capsys.readouterr().out == ""


# --- how it is written, and how much it is ------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff(command):
    beside = shutil.which("ruff", path=ROOT / ".venv" / "bin") or shutil.which("ruff")
    ruff = shutil.which("ruff", path=str(sys.prefix) + "/bin") or beside
    if not ruff:
        pytest.skip("pip install ruff")
    p = subprocess.run([ruff, *command.split(), "."], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout[-3000:]


def test_nothing_of_twelve_lines_stands_twice():
    """Equal lines in a row, blank ones and comments left out.

    Exercises show the lesson's lines. `diff train_sft.py train_cdpo.py` is itself a lesson.
    """
    seen, twice = {}, set()
    for name, path in CODE.items():
        if top(name) == "exercises" or name == "train_cdpo":
            continue
        numbered = enumerate(path.read_text("utf-8").splitlines(), 1)
        lines = [(i, x.strip()) for i, x in numbered if x.strip() and x.strip()[0] != "#"]
        for k in range(len(lines) - 11):
            text = "\n".join(x for _, x in lines[k : k + 12])
            place = f"{path.relative_to(ROOT)}:{lines[k][0]}"
            if text in seen:
                twice.add(f"{seen[text]} = {place}")
            seen.setdefault(text, place)
    assert not twice, sorted(twice)


def test_only_the_five_scripts_at_the_top():
    assert {p.stem for p in ROOT.glob("*.py")} == set(LESSON)


def test_how_much_it_is():
    lines = lambda paths: sum(len(p.read_text("utf-8").splitlines()) for p in paths)
    words = lambda paths: sum(len(p.read_text("utf-8").split()) for p in paths)
    assert lines([*CODE.values(), *TESTS]) <= MOST_PYTHON and lines(TESTS) <= MOST_TESTS
    assert words(PAGES) <= MOST_WORDS and words([ROOT / "README.md"]) <= MOST_README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_commands_of_a_page_lead_somewhere(page):
    text = page.read_text("utf-8")
    title = lambda heading: re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)", target.read_text("utf-8"), re.M) if anchor else []
        assert not anchor or anchor in map(title, headings), f"{link}#{anchor}"
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert module in [*CODE, "pytest"] or importlib.util.find_spec(module), module


def test_tests_that_a_page_names_are_there():
    """exercises/README.md says which test fails after which change of the code."""
    names = {p.stem for p in TESTS} | set(
        re.findall(r"def (test_\w+)", "".join(p.read_text("utf-8") for p in TESTS))
    )
    named = {(p.name, n) for p in PAGES for n in re.findall(r"\btest_\w+", p.read_text("utf-8"))}
    assert not [(page, n) for page, n in named if n not in names]
