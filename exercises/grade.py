"""Grades the exercises of a whole class: one line of CSV for each student, on stdout.

    python -m exercises.grade submissions      submissions/NAME/ has NAME's step1_fuse.py, ...

A step counts 1 if the checker passes it. A file may import torch, numpy, math and the steps before
it, and nothing else: an answer that calls fusionroute.py or solutions.py counts 0. So does one that
takes longer than a minute. What is wrong is on stderr.

Each student's code runs in a process of its own. That is no protection against malice: grade
strangers' files in a container.
"""

import argparse
import ast
import secrets
import subprocess
import sys
from pathlib import Path

from exercises import checks
from toy_experts import script

ALLOWED = {"torch", "numpy", "math", "itertools", "exercises"}
# Other ways to a module that is not imported.
FORBIDDEN = {"solutions", "checks", "fusionroute", "modules", "importlib", "sys", "os"}
FORBIDDEN |= {"__import__", "__builtins__", "__loader__", "__globals__"}
CALLS = {"eval", "exec", "compile", "open", "globals", "vars"}  # model.eval() is no call of these
SECONDS = 60
CHILD = """
import pathlib, sys
from exercises import __main__ as checker
mark, folder, *steps = sys.argv[1:]
checker.FOLDER = pathlib.Path(folder)
for step in map(int, steps):
    verdict = checker.check(step)
    print(mark, step, "passes" if verdict is None else verdict or "to be written", flush=True)
"""


def foreign(source):
    """What a file uses that it must not, as a text, or None. SyntaxError if it is not Python."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            step = parts[0] != "exercises" or len(parts) > 1 and parts[1].startswith("step")
            if parts[0] not in ALLOWED or not step or FORBIDDEN & set(parts):
                return f"line {node.lineno}: imports {name}"
        name, attribute = getattr(node, "id", None), getattr(node, "attr", None)
        if name in FORBIDDEN | CALLS or attribute in FORBIDDEN:
            return f"line {node.lineno}: uses {name or attribute}"
    return None


def grade(folder):
    """step -> "passes" or what is wrong, for a student's folder."""
    # Who hands in the folder "exercises" has it inside.
    folder = next((path.parent for path in sorted(folder.rglob("step?_*.py"))), folder)
    verdicts = {}
    for step, (file, _) in checks.STEPS.items():
        path = folder / f"{file}.py"
        try:
            not_theirs = foreign(path.read_bytes()) if path.exists() else "there is no such file"
        except (SyntaxError, ValueError) as e:
            not_theirs = f"not Python: {e}"
        if not_theirs:
            verdicts[step] = not_theirs
    left = [str(step) for step in checks.STEPS if step not in verdicts]
    mark = secrets.token_hex(8)  # so that a student's print cannot look like a verdict
    command = [sys.executable, "-c", CHILD, mark, str(folder), *left]
    try:
        said = subprocess.run(command, capture_output=True, timeout=SECONDS).stdout
    except subprocess.TimeoutExpired as e:
        said = e.stdout or b""
    for line in said.decode(errors="replace").splitlines():
        if line.startswith(f"{mark} "):
            step, verdict = line.split(" ", 2)[1:]
            verdicts[int(step)] = verdict
    return {step: verdicts.get(step, f"no answer in {SECONDS} seconds") for step in checks.STEPS}


def main(argv=None):
    p = script.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", help="with one folder for each student")
    folder = Path(p.parse_args(argv).folder)
    students = sorted(path for path in folder.glob("*") if path.is_dir())
    if not students:
        raise script.UserError(f"{folder} must be a folder with one folder for each student")
    print("student," + ",".join(f"step {step}" for step in checks.STEPS) + ",sum")
    for student in students:
        points = []
        for step, verdict in grade(student).items():
            points.append(int(verdict == "passes"))
            if not points[-1]:
                print(f"{student.name}, step {step}: {verdict}", file=sys.stderr)
        print(",".join(map(str, [student.name, *points, sum(points)])), flush=True)


if __name__ == "__main__":
    script.run(main)
