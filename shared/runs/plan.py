"""What the plans of all papers share: their command line, their tables, and the memory of a training step."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jsonargparse
from rich.console import Console
from rich.table import Table

PlanConfig = TypeVar("PlanConfig")
BYTES = {"bf16": (2, 2, 12), "fp32": (4, 4, 8)}  # a parameter's weight, gradient, Adam state (with fp32 master copy)


def parse_plan(
    config: type[PlanConfig], settings: Callable[[str], dict], doc: str, args: list[str] | None = None
) -> PlanConfig:
    """Command line (or `args`) -> what to plan. settings: a training config's file -> the keys of `config` that follow
    from it (`--config`); options on the command line win."""
    parser = jsonargparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--config", help="training config whose model, batch and steps are planned")
    parser.add_class_arguments(config, None)
    if file := parser.parse_args(args).config:
        parser.set_defaults(settings(file))
    values = vars(parser.instantiate(parser.parse_args(args)))
    values.pop("config")
    return config(**values)


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
