"""Which of the nine steps of FusionRoute, written by yourself, are right?

    python -m exercises            checks all steps, see exercises/README.md
    python -m exercises 4          checks one
    python -m exercises train      trains both phases with your functions in place of ours

The exit status is 0 when all checked steps pass, 1 when one does not, 2 when the command is wrong.
"""

import contextlib
import importlib
import linecache
import sys
import traceback
import types
from pathlib import Path

from exercises import checks, solutions
from exercises.train import Settings, train
from toy_experts import script

FOLDER = Path(__file__).parent


@contextlib.contextmanager
def ours(steps):
    """While this is open, `from exercises.stepN_... import ...` of these steps gives our functions.

    So each step is checked by itself: a mistake in step 2 does not show again in step 4.
    """

    def module(functions):
        m = types.ModuleType("ours")
        m.__dict__.update({name: getattr(solutions, name) for name in functions})
        return m

    saved = dict(sys.modules)
    sys.modules.update({f"exercises.{file}": module(functions) for file, functions in steps})
    try:
        yield
    finally:
        for file, _ in steps:
            name = f"exercises.{file}"
            sys.modules.pop(name)
            sys.modules.update({name: saved[name]} if name in saved else {})


def where(error, path):
    """The last line of the reader's file that an error passed through: "exercises/..., line 12"."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"exercises/{path.name}" + (f", line {lines[-1]}" if lines else "")


def check(step):
    """None if a step passes; "" if it is not written yet; else what is wrong with it."""
    file, functions = checks.STEPS[step]
    path = FOLDER / f"{file}.py"
    namespace = {"__name__": f"exercises.{file}", "__file__": str(path)}
    linecache.checkcache(str(path))
    try:
        with ours([checks.STEPS[n] for n in checks.STEPS if n < step]):
            exec(compile(path.read_bytes(), str(path), "exec"), namespace)
            for name, checker in functions.items():
                checks.expect(
                    callable(namespace.get(name)),
                    f"exercises/{path.name} has no function {name} any more",
                )
                checker(namespace[name])
    except NotImplementedError as e:
        if not str(e):
            return ""
        return f"NotImplementedError: {e} ({where(e, path)})"
    except checks.Wrong as e:
        return str(e)
    except OSError as e:
        return f"cannot read exercises/{path.name} ({e.strerror})"
    except SyntaxError as e:
        place = f"exercises/{path.name}" + (f", line {e.lineno}" if e.lineno else "")
        return f"not Python yet: {e.msg} ({place})"
    except (Exception, SystemExit) as e:
        text = " ".join(str(e).split())[:300]
        return f"it stops with {type(e).__name__}: {text} ({where(e, path)})"
    return None


def report(steps):
    """Check these steps and print a line or two for each; returns those that do not pass."""
    missing = []
    for step in steps:
        file, functions = checks.STEPS[step]
        verdict = check(step)
        head = f"step {step}  {', '.join(functions):27s} "
        if verdict is None:
            print(head + "passes")
            continue
        missing.append(step)
        print(head + ("wrong" if verdict else f"to be written: exercises/{file}.py"))
        if verdict:
            print(f"        {verdict}")
    return missing


IN_TRAINING = range(1, 8)  # steps 8 and 9 are theory: no training needs them


def written_functions():
    """The reader's functions of steps 1 to 7, by name. UserError unless they pass."""
    for step in IN_TRAINING:
        verdict = check(step)
        if verdict is not None:
            state = "right" if verdict else "written"
            raise script.UserError(
                f"step {step} is not {state} yet, and training needs steps 1 to 7: see python -m "
                f"exercises {step}"
            )
    functions = {}
    for file, names in (checks.STEPS[step] for step in IN_TRAINING):
        module = importlib.import_module(f"exercises.{file}")
        functions |= {name: getattr(module, name) for name in names}
    return types.SimpleNamespace(**functions)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        s = script.settings(Settings, train.__doc__, argv[1:])
        return train(s, written_functions())
    p = script.Parser(description=__doc__)
    p.add_argument("step", nargs="?", help="a step, 1 to 9 (default: all), or train")
    step, n = p.parse_args(argv).step, len(checks.STEPS)
    if step is not None and step not in map(str, checks.STEPS):
        raise script.UserError(f"{step!r} is neither a step, 1 to {n}, nor train")
    missing = report(checks.STEPS if step is None else [int(step)])
    if step is None:
        then = "Now train with them: python -m exercises train"
        if missing:
            then = f"Next: exercises/{checks.STEPS[missing[0]][0]}.py"
        print(f"\n{n - len(missing)} of {n} steps pass. {then}")
    if missing:
        sys.stdout.flush()
        sys.exit(1)


if __name__ == "__main__":
    script.run(main)
