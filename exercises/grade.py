"""Grades the exercises of a whole class: one line of CSV for each student, on stdout.

    python -m exercises.grade submissions      submissions/NAME/ has NAME's step1_fuse.py, ...

A step counts 1 if the checker passes it. A file may import torch, numpy, math, itertools and the
steps before it, and nothing else: an answer that calls fusionroute.py or solutions.py counts 0. So
does one that takes longer than a minute. What is wrong is on stderr.

Each student's code runs in a process of its own. Where it hangs or ends, the steps that are left
get a new one. That is no protection against malice: grade strangers' files in a container.
"""

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
            ours = parts[0] == "exercises" and not (len(parts) > 1 and parts[1].startswith("step"))
            if parts[0] not in ALLOWED or ours or FORBIDDEN & set(parts):
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
    mark = secrets.token_hex(8)  # so that a student's print cannot look like a verdict
    while left := [step for step in checks.STEPS if step not in verdicts]:
        command = [sys.executable, "-c", CHILD, mark, str(folder), *map(str, left)]
        try:
            said = subprocess.run(command, capture_output=True, timeout=SECONDS).stdout
        except subprocess.TimeoutExpired as e:
            said = e.stdout or b""
        lines = said.decode(errors="replace").splitlines()
        answers = [line.split(" ", 2)[1:] for line in lines if line.startswith(f"{mark} ")]
        verdicts |= {int(step): verdict for step, verdict in answers}
        if not answers:
            verdicts[left[0]] = f"it ends the process, or has no answer in {SECONDS} seconds"
    return {step: verdicts[step] for step in checks.STEPS}


def main(argv=None):
    p = script.Parser(description=__doc__)
    p.add_argument("folder", help="with one folder for each student")
    folder = Path(p.parse_args(argv).folder)
    students = sorted(path for path in folder.glob("*") if path.is_dir())
    if not students:
        raise script.UserError(f"{folder} must be a folder with one folder for each student")
    print("student," + ",".join(f"step {step}" for step in checks.STEPS))
    for student in students:
        points = []
        for step, verdict in grade(student).items():
            points.append(int(verdict == "passes"))
            if not points[-1]:
                print(f"{student.name}, step {step}: {verdict}", file=sys.stderr)
        print(",".join(map(str, [student.name, *points])), flush=True)


if __name__ == "__main__":
    script.run(main)
