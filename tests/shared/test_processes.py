"""Several processes: two give the loss and the gradient of one with the joined batch; they end with their parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from threadpoolctl import threadpool_info
from torch.nn import functional as F
from two_ranks import two_ranks

from shared.runs.engine import in_processes
from shared.runs.processes import gather, one_thread, rank, world

ROOT = Path(__file__).resolve().parents[2]
N = 3  # rows of each process


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_torch_and_numpy_compute_on_one_thread_inside():
    torch.set_num_threads(2)
    before = blas_threads()
    with one_thread():
        assert torch.get_num_threads() == 1 and blas_threads() == {1}
    assert torch.get_num_threads() == 2 and blas_threads() == before
    with one_thread(wanted=False):
        assert torch.get_num_threads() == 2 and blas_threads() == before


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of all processes, and a weight that they share."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2 * N, 4, generator=draw), torch.randn(4, 4, generator=draw)


def contrast(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each own row must be told from those of all processes."""
    y = F.normalize(x @ weight, dim=-1)
    return F.cross_entropy(5 * F.normalize(x, dim=-1) @ gather(y).T, torch.arange(len(x)) + len(x) * rank())


def work(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    assert (world(), rank()) == (2, number)
    x, weight = inputs()
    weight.requires_grad_()
    loss = contrast(x[number * N : (number + 1) * N], weight)
    loss.backward()
    dist.all_reduce(weight.grad)
    return loss.detach(), weight.grad / 2


def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    (loss0, grad0), (loss1, grad1) = two_ranks(work, tmp_path)
    x, weight = inputs()
    weight.requires_grad_()
    loss = contrast(x, weight)
    loss.backward()
    assert (world(), rank()) == (1, 0)
    assert loss0 != loss1
    assert ((loss0 + loss1) / 2).item() == pytest.approx(loss.item(), abs=1e-6)
    assert torch.allclose(grad0, weight.grad, atol=1e-6) and torch.equal(grad0, grad1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "sleeper.py").write_text(
        "import os, pathlib, time\n"
        "pathlib.Path(os.environ['OUT'], os.environ['RANK'] + '.pid').write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    call = "from shared.runs.engine import in_processes; in_processes('sleeper', [], 2)"
    shown = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OUT": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", call], cwd=ROOT, env=shown)
    files, deadline = [tmp_path / "0.pid", tmp_path / "1.pid"], time.monotonic() + 120
    while not all(f.exists() and f.read_text() for f in files):
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    pids = [int(f.read_text()) for f in files]
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "they work on without a parent"
        time.sleep(0.05)


@pytest.mark.parametrize("fails", (False, True))
def test_processes_end_without_taking_the_interpreter_down(tmp_path, monkeypatch, fails):
    (tmp_path / "leaver.py").write_text(
        "import atexit, pathlib, sys\n"
        "import torch.distributed as dist\n"
        "from shared.runs.processes import end_processes\n"
        "atexit.register(pathlib.Path(sys.argv[1], 'torn-down').touch)\n"
        "dist.init_process_group('gloo')\n"
        "end_processes()\n"
        "pathlib.Path(sys.argv[1], 'worked').touch()\n"
        "assert sys.argv[2] == 'False'\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    arguments = "leaver", [str(tmp_path), str(fails)], 2
    if fails:  # an error after the end keeps its exit code
        with pytest.raises(subprocess.CalledProcessError):
            in_processes(*arguments)
    else:
        in_processes(*arguments)
    assert (tmp_path / "worked").exists() and (tmp_path / "torn-down").exists() == fails
