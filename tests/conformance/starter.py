"""Interpreters that start with the heavy imports done: a server imports once and forks for every command line.

`python -m module` needs 6 to 9 seconds of a CPU before the first line of `module` runs, and the suite starts a hundred
of them. A forked process runs the same `__main__` with its own arguments, environment, files and exit status. Only
libraries are imported beforehand, nothing of this repository, so what one package does on import no other sees. Where a
fresh interpreter matters (hash seeds, torchrun), the suite starts one.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

IMPORTS = ("transformers.trainer", "transformers.models.auto.modeling_auto", "peft", "diffusers", "monai", "wfdb",
           "scipy.signal", "scipy.stats", "sklearn.linear_model", "sklearn.metrics", "pandas", "pyarrow.parquet",
           "SimpleITK", "matplotlib.pyplot", "jsonargparse", "jsonschema", "rich.progress")  # fmt: skip


class Starter:
    """The server, which ends with the process that owns this. `folder`: where it and what it starts run."""

    def __init__(self, folder: Path):
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # read when torch is imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, request: dict) -> int | None:
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def start(self, module: str, options: list[str], environment: dict[str, str], stderr: Path) -> int:
        """`python -m module options` with what it prints in `stderr`; returns its process id."""
        return self._ask({"module": module, "options": options, "environment": environment, "stderr": str(stderr)})

    def poll(self, pid: int) -> int | None:
        """Exit status of a process that was started here, as `Popen.poll` has it; None while it runs."""
        return self._ask({"poll": pid})

    def wait(self, pids: list[int]) -> int:
        """0, or the first other exit status: the rest is then killed, as torchrun does."""
        status, failed = dict.fromkeys(pids), 0
        while None in status.values():
            time.sleep(0.03)
            for pid in (p for p in pids if status[p] is None):
                if failed:
                    os.kill(pid, signal.SIGKILL)
                status[pid] = self.poll(pid)
                failed = failed or status[pid] or 0
        return failed


def serve() -> dict:
    """Answers requests until the input ends; returns only in a forked process, with what it is to run."""
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                return request
        print(json.dumps(answer), flush=True)
    sys.exit()


def become(request: dict) -> None:
    """This process as `python -m module` would have been started."""
    for name, flags, fds in ((os.devnull, os.O_RDONLY, (0,)), (request["stderr"], os.O_WRONLY | os.O_CREAT, (1, 2))):
        opened = os.open(name, flags, 0o644)
        for fd in fds:
            os.dup2(opened, fd)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["module"], *request["options"]]


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as `python -m` has it, in place of this file's folder
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # what is imported stays: no forked process walks, and so copies, all of it in each collection
    request = serve()
    become(request)
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
