"""One line of the benchmark table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`value` in `unit`, compared with `reference` by `ratio`; `goal` is the least ratio."""

    name: str
    value: float
    unit: str
    reference: str = ""
    ratio: float | None = None
    goal: float | None = None
