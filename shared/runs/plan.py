"""What the plans of all papers share: their command line, their tables, memory and hours of a training."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar

import jsonargparse
import torch
from rich.console import Console
from rich.table import Table
from torch.autograd.graph import saved_tensors_hooks

PlanConfig = TypeVar("PlanConfig")
BYTES = {"bf16": (2, 2, 12), "fp32": (4, 4, 8)}  # a parameter's weight, gradient, Adam state (with fp32 master copy)


def parse_plan(
    config: type[PlanConfig], keys_of: Callable[[str], dict], doc: str, args: list[str] | None = None
) -> PlanConfig:
    """Command line (or `args`) -> what to plan. keys_of: a training config's file -> the keys of `config` that follow
    from it (`--config`); options on the command line win."""
    parser = jsonargparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--config", help="training config whose model, batch and steps are planned")
    parser.add_class_arguments(config, None)
    if file := parser.parse_args(args).config:
        parser.set_defaults(keys_of(file))
    values = vars(parser.instantiate(parser.parse_args(args)))
    values.pop("config")
    return config(**values)


def settings(run: Any, *sections: str, **chosen: Sequence[str]) -> dict[str, Any]:
    """Keys of a training config as the command line of a plan names them: all of `sections`, at any depth, and of other
    sections the chosen ones, which a plan has at its top."""
    found = {}
    for name in sections:
        found |= _dotted(getattr(run, name), name)
    return found | {key: getattr(getattr(run, name), key) for name, keys in chosen.items() for key in keys}


def _dotted(section: Any, at: str) -> dict[str, Any]:
    nested = [_dotted(v, f"{at}.{k}") if is_dataclass(v) else {f"{at}.{k}": v} for k, v in vars(section).items()]
    return {key: value for part in nested for key, value in part.items()}


def memory_bytes(total: int, trained: int, stage: int, n_gpus: int, weights: str = "bf16") -> float:
    """Weights + gradients + Adam states on one GPU, without activations (Rajbhandari et al. 2020).

    w, g, a bytes of them: ZeRO-0 w + g + a, ZeRO-1 w + g + a/N, ZeRO-2 w + (g + a)/N, ZeRO-3 (w + g + a)/N.
    """
    if weights not in BYTES:
        raise ValueError(f"weights: '{weights}' is neither bf16 nor fp32")
    w, g, a = (b * n for b, n in zip(BYTES[weights], (total, trained, trained), strict=True))
    sharded = {0: 0, 1: a, 2: g + a, 3: w + g + a}[stage]
    return w + g + a - sharded + sharded / n_gpus


def memory_gb(trained: int, untrained: int, stage: int, n_gpus: int) -> float:
    """The same in 1e9 bytes where what is not trained (frozen layers, slow targets, statistics) stays whole in fp32."""
    return (memory_bytes(trained, trained, stage, n_gpus) + 4 * untrained) / 1e9


def kept_bytes(module: torch.nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of the tensors that `forward` keeps for the backward pass, without the parameters of `module`."""
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {p.untyped_storage()._cdata for p in module.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage  # held, or its address could be used again
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        forward()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


def gpu_hours(flop: float, peak_tflops: float, utilisation: float, n_gpus: int = 1) -> float:
    """Hours of so many operations: over GPUs x peak x utilisation."""
    return flop / (n_gpus * peak_tflops * 1e12 * utilisation) / 3600


def say(text: str, width: int = 150) -> None:
    Console(width=width, soft_wrap=True).print(text)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], width: int = 150) -> None:
    """Print it, the first column to the left, numbers to the right."""
    shown = Table(title=title)
    for i, name in enumerate(columns):
        shown.add_column(name, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        shown.add_row(*row)
    Console(width=width, soft_wrap=True).print(shown)


def say_disk(sizes: dict[str, float]) -> None:
    """sizes: what is stored -> GB."""
    listed = "; ".join(f"{name} {size:,.1f} GB" for name, size in sizes.items())
    say(f"Disk: {listed}; together {sum(sizes.values()):,.0f} GB")
