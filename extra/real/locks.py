"""One run at a time writes OUT/seedN/NAME, and what killed runs left beside it goes.

The lock is the operating system's (flock): it ends with the process that has it, however that ends. Where there is none (Windows, some
network drives), runs are not kept apart.
"""

import os
import platform
import re
import time
from contextlib import contextmanager

from extra.real import parallel
from toy_experts.run import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OLD = 3600  # seconds after which a file beside a score belongs to nobody: to score CHUNK samples takes less


@contextmanager
def only_run(folder, name):
    """Hold the lock of folder/name. UserError if another run has it. Under torchrun process 0 holds it for all."""
    if not parallel.first():
        yield
        return
    path = folder / f".{name}.lock"
    with take(path, folder / name) as f:
        f.write(f"process {os.getpid()} on {platform.node()}")
        f.flush()
        try:
            clean(folder, name)
            yield
        finally:
            path.unlink(missing_ok=True)  # while the lock is held: see take


def take(path, what):
    """The file `path`, open and locked."""
    while True:
        f = open(path, "a+")
        try:
            if fcntl:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            f.seek(0)
            whose = f.read().strip()
            f.close()
            raise UserError(f"another run writes {what} now ({whose or 'an unknown process'}): wait until it has ended, or use "
                            "another --out or --name") from e
        except OSError:  # a drive without locks
            pass
        if path.exists() and path.stat().st_ino == os.fstat(f.fileno()).st_ino:
            f.truncate(0)
            return f
        f.close()  # its last owner has removed it between the two calls: this is no file that others see


def clean(folder, name):
    """Remove the unfinished files of runs that were killed while they wrote them: NAME's all, scores when they are old."""
    files = [*folder.glob(f"{name}.*.tmp"), *(folder / name).glob("*.tmp")]
    files += [path for path in (folder / "scores").glob("*.tmp") if time.time() - path.stat().st_mtime > OLD]
    for path in files:
        if re.search(r"\.\d+\.tmp$", path.name):
            path.unlink(missing_ok=True)
