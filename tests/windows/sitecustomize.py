"""Makes a Python lack what Windows lacks. tests/test_classroom.py puts this folder into PYTHONPATH.

Files that are opened without saying their encoding are read as cp1252, and resource and fcntl are
missing. (Paths, processes and consoles of Windows are not simulated.)
"""

import builtins
import io
import sys

for name in ("resource", "fcntl"):
    sys.modules[name] = None  # importing it raises ImportError
io.text_encoding = lambda encoding, stacklevel=2: encoding or "cp1252"  # of Path.read_text
original = builtins.open


def cp1252_open(file, mode="r", buffering=-1, encoding=None, *args, **more):
    encoding = encoding or (None if "b" in mode else "cp1252")
    return original(file, mode, buffering, encoding, *args, **more)


builtins.open = cp1252_open
