"""The processes of one run: who each is, its GPU, rows of all of them with gradients, and their end. Serves every
package. `worker` and `device` go by what the launcher says, `rank` and `world` by the group, which processes form for
training alone: those of data generation and evaluation share work, but do not talk.

A process contributes its share of a loss so that the MEAN over processes of losses and gradients (what DDP and
DeepSpeed take) equals one process with the joined batch.
"""

import atexit
import os
import sys
from contextlib import contextmanager

import torch
import torch.distributed as dist
from threadpoolctl import threadpool_limits


def n_processes() -> int:
    """How many torchrun or accelerate started; known before they have found each other."""
    return int(os.environ.get("WORLD_SIZE", 1))


def worker() -> tuple[int, int]:
    """(Number of this process, how many were started)."""
    return int(os.environ.get("RANK", 0)), n_processes()


def device() -> torch.device:
    """The GPU of this process, where there is one."""
    gpu = torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if gpu else torch.device("cpu")


def world() -> int:
    """Number of processes in the group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in the group."""
    return dist.get_rank() if world() > 1 else 0


class _Gather(torch.autograd.Function):
    """The gradient of a process's rows is the sum of what all processes ask of them."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(world())[rank()]


def gather(x: torch.Tensor) -> torch.Tensor:
    """x [B, ...] of every process -> [W * B, ...] in the order of ranks; x itself in one process. Shapes must agree."""
    return _Gather.apply(x) if world() > 1 else x


def widest(n: int, device: torch.device) -> int:
    """The largest n of all processes."""
    if world() == 1:
        return n
    most = torch.tensor(n, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


@contextmanager
def one_thread(wanted: bool = True):
    """Inside, a CPU computes on one thread, torch and numpy alike: sums come out the same whatever the number of cores,
    and threads of steps too short to be shared do not wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        with threadpool_limits(1 if wanted else None, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def end_processes() -> None:
    """Leave the process group together, if there is one: the last act of a run. No process leaves while another still
    talks to it."""
    if dist.is_available() and dist.is_initialized():
        several = world() > 1
        dist.barrier()
        dist.destroy_process_group()
        if several:
            atexit.register(_leave)


def _leave() -> None:
    """End here, without taking the interpreter down: the threads of a group live on with all that refers to it (DDP, a
    parameter under ZeRO-3), and one that drops its last tensor meanwhile aborts the process (PyTorch issue 190489)."""
    if not hasattr(sys, "last_value"):  # an error that nobody caught keeps its exit code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
