"""Scripts run in forks of one process that has imported what they import.

A fork is a process like any other (it has signals, an exit code, an environment of its own) that
saves the seconds in which torch and MLflow are imported. `python forks.py` reads one script a line
as JSON, and answers with the number of its process and, once that has ended, with its exit code.
"""

from __future__ import annotations

import atexit
import gc
import json
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

PLUGINS = "hydra._internal.core_plugins"
IMPORTED = (
    *("alembic.command", "fastapi", "filelock", "hydra.main", "matplotlib.backends.backend_agg"),
    *(f"{PLUGINS}.{name}" for name in ("basic_launcher", "basic_sweeper", "zsh_completion")),
    *("mlflow.pyfunc", "mlflow.pyfunc.loaders", "mlflow.store.db.utils"),
    *("mlflow.store.tracking.sqlalchemy_workspace_store", "pydantic.dataclasses", "rich.progress"),
    *("sklearn.datasets", "sqlalchemy.dialects.sqlite", "torch._inductor"),
    *("torch.optim.swa_utils", "torch.utils.flop_counter", "uvicorn"),
)


def main() -> None:
    for module in IMPORTED:
        import_module(module)
    # Where MLflow logs a model, it looks once through all installed packages: half a second.
    import_module("mlflow.utils.requirements_utils")._check_requirement_satisfied("mlflow")
    gc.freeze()
    # From Python 3.12 on; the other threads are those of torch's and MLflow's libraries, at rest.
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_script(**json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run_script(
    command: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str
) -> NoReturn:
    """Do what `python <command>` does, with its output in files."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    SpareProcess.start()
    subprocess.Popen = SpareProcess  # type: ignore[misc]
    multiprocessing.process.ORIGINAL_DIR = cwd
    multiprocessing.util.spawnv_passfds = fork_instead
    sys.argv = command
    here = str(Path(command[0]).absolute().parent)
    sys.path[:0] = [here, *env["PYTHONPATH"].split(os.pathsep)]
    code: object = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def fork_instead(path: bytes, args: list[str], passfds: list[int]) -> int:
    """Start multiprocessing's forkserver as a fork of this process, which has imported torch."""
    sys.stdout.flush()  # or each process that it forks would write it again
    pid = os.fork()
    if pid == 0:
        for number in set(range(3, 256)) - {*passfds}:
            with suppress(OSError):
                os.close(number)
        code = args.index("-c") + 1
        sys.argv = ["-c", *args[code + 1 :]]
        try:
            exec(args[code], {"__name__": "__main__"})
        finally:
            os._exit(0)
    return pid


class SpareProcess(subprocess.Popen):
    """Popen, whose first `python -c`, the trackers' process, is a fork made before the script."""

    spare: tuple[int, int, int] | None = None  # its number, its input and its output

    @classmethod
    def start(cls) -> None:
        (theirs, stdin), (stdout, answers) = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.dup2(theirs, 0)
            os.dup2(answers, 1)
            for number in (theirs, stdin, stdout, answers):
                os.close(number)
            code = bytearray()
            while not code.endswith(b"\n"):
                if not (byte := os.read(0, 1)):
                    os._exit(0)  # the script has ended without it
                code += byte
            exec(json.loads(code), {"__name__": "__main__"})
        os.close(theirs)
        os.close(answers)
        cls.spare = pid, stdin, stdout

    def __init__(self, args: object, *more: object, **options: object) -> None:
        if self.spare is None or not isinstance(args, list) or args[:2] != [sys.executable, "-c"]:
            super().__init__(args, *more, **options)
            return
        self.args, self.returncode, self.stderr = args, None, None
        self.pid, stdin, stdout = self.spare
        SpareProcess.spare = None
        self._child_created, self._waitpid_lock = True, threading.Lock()
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
        self.stdin.write(json.dumps(args[2]).encode() + b"\n")


if __name__ == "__main__":
    main()
