"""One line of the benchmark table, which `make bench` measures and `make report` shows."""

from dataclasses import dataclass

COLUMNS = ("what", "value", "unit", "against", "ratio", "goal", "met")


@dataclass(frozen=True)
class Row:
    """`value` in `unit`, compared with `reference` by `ratio`; `goal` is the least ratio."""

    name: str
    value: float
    unit: str
    reference: str = ""
    ratio: float | None = None
    goal: float | None = None

    def cells(self) -> tuple[str, ...]:
        """In words, in the order of COLUMNS."""
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}x"
        goal = "" if self.goal is None else f">= {self.goal:g}x"
        met = "" if self.goal is None or self.ratio is None else ("yes" if self.ratio >= self.goal else "NO")
        value = f"{self.value:,.2f}" if self.value < 1000 else f"{self.value:,.0f}"
        return self.name, value, self.unit, self.reference, ratio, goal, met
