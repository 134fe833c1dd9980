"""Training steps of ECG models, timed: what the benchmarks of the papers share.

Float32 on one core, bf16 autocast where a GPU is present. The models alternate and the fastest step of each counts,
because what else runs on the machine only ever slows them down.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from shared.metrics.benchmark import Row


def records_per_s(models: dict[str, torch.nn.Module], inputs: dict[str, torch.Tensor], rounds: int) -> dict[str, float]:
    """Rate of forward and backward on one batch of inputs, by the name of the model; moves all to the device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = {name: value.to(device) for name, value in inputs.items()}
    models = {name: model.to(device).train() for name, model in models.items()}
    seconds = dict.fromkeys(models, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds + 1):  # the first round warms up
            for name, model in models.items():
                seconds[name] = min(seconds[name], step_s(model, inputs, device, bf16=device == "cuda"))
    finally:
        torch.set_num_threads(threads)
    return {name: len(inputs["ecg"]) / s for name, s in seconds.items()}


def step_s(model: torch.nn.Module, inputs: dict[str, torch.Tensor], device: str, bf16: bool) -> float:
    """Seconds of one forward and backward."""
    _wait(device)
    start = time.perf_counter()
    with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
        loss = model(**inputs).loss
    loss.backward()
    _wait(device)
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def against_reading(paper: str, model: torch.nn.Module, collate, items: Sequence[int], bf16: bool = True) -> Row:
    """A laptop step of these items against the reading of its batch: loading must not be the bottleneck."""
    read_s = least_s = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        batch = collate(items)
        read_s = min(read_s, time.perf_counter() - start)
        least_s = min(least_s, step_s(model, batch, "cpu", bf16))
    reference = f"{1000 * read_s:.1f} ms to read it (goal: under a fifth)"
    return Row(f"{paper}: laptop step of {len(items)} records", 1000 * least_s, "ms", reference, least_s / read_s, 5.0)
