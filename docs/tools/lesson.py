"""Makes docs/lesson.ipynb from docs/lesson.py and runs it (needs nbclient, ipykernel, matplotlib).

    python -m docs.tools.lesson

In lesson.py, "# %%" begins a cell of code and "# %% [markdown]" one of text.
"""

import json
import re
from pathlib import Path

from toy_experts import script

try:
    import nbclient
    import nbformat
except ImportError:
    nbclient = None

DOCS = Path(__file__).parent.parent
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def cells(source):
    """The cells of a notebook, as its file has them, without outputs.

    >>> [c["source"] for c in cells("# %% [markdown]\\n# # Title\\n\\n# %%\\nx = 1\\n")]
    ['# Title', 'x = 1']
    """
    found = []
    for i, (kind, body) in enumerate(re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n)*)", source, re.M)):
        cell = {"id": f"cell-{i}", "metadata": {}, "source": body.strip()}
        if "markdown" in kind:
            text = re.sub("^# ?", "", cell["source"], flags=re.M)
            found.append(cell | {"cell_type": "markdown", "source": text})
        else:
            found.append(cell | {"cell_type": "code", "execution_count": None, "outputs": []})
    return found


def notebook(source):
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells(source)}


def execute(content):
    """The notebook with its outputs. Raises nbclient's CellExecutionError if a cell fails."""
    book = nbformat.from_dict(content)
    options = {"record_timing": False, "coalesce_streams": True}
    where = {"metadata": {"path": DOCS.parent}}
    return nbclient.NotebookClient(book, timeout=300, resources=where, **options).execute()


def main(argv=None):
    script.Parser(description=__doc__).parse_args(argv)
    if nbclient is None:
        raise script.UserError("this needs pip install nbclient ipykernel matplotlib")
    book = execute(notebook((DOCS / "lesson.py").read_text(encoding="utf-8")))
    script.write(DOCS / "lesson.ipynb", json.dumps(book, indent=1, ensure_ascii=False) + "\n")
    print("saved docs/lesson.ipynb")


if __name__ == "__main__":
    script.run(main)
