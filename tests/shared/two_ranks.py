"""Two processes that work as one run."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from shared.runs.processes import end_processes


def _rank(rank: int, work: Callable[[int], object], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank), f"{folder}/rank{rank}.pt")
    end_processes()


def two_ranks(work: Callable[[int], object], folder: Path) -> list:
    """[work(0), work(1)], each from a process of its own; `work` is found by its name, so it stands in a module."""
    mp.start_processes(_rank, args=(work, str(folder)), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def parallel_step(model: torch.nn.Module, inputs: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    """Output and gradients of one step of a process on its own rows, as `work` takes it."""
    parallel = DistributedDataParallel(model)  # must outlive the backward pass
    out = parallel(**inputs)
    out.loss.backward()
    return out, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
