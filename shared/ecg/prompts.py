"""What a class is asked by: its plain name, or a text about it ("engineered", MERL's way with zero-shot).

MERL's own texts (one per code, whatever the task) hold faults and are not copied; those in
`prompts.yaml` are of our own wording, one per (task, code), so that a code gets the meaning it has in its task.
"""

from functools import lru_cache
from pathlib import Path

import yaml

from shared.ecg.tasks import TaskClass

PROMPTS = Path(__file__).with_name("prompts.yaml")
KINDS = ("names", "engineered")


@lru_cache(maxsize=1)
def prompts() -> dict[tuple[str, str], str]:
    """(task, code) -> text."""
    raw = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    return {(task, str(code)): " ".join(text.split()) for task, texts in raw.items() for code, text in texts.items()}


def class_texts(task: str, data, kind: str = "names") -> list[str]:
    """One text per class of a task, in column order. data: has `classes`, a sequence of `TaskClass`.

    Raises ValueError for an unknown kind, KeyError naming the file where an engineered text is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"eval.prompts={kind!r}: one of {', '.join(KINDS)}")
    classes: tuple[TaskClass, ...] = data.classes
    if kind == "names":
        return [c.description for c in classes]
    missing = [c.code for c in classes if (task, c.code) not in prompts()]
    if missing:
        raise KeyError(f"{PROMPTS.name} has no text for {missing} of {task}")
    return [prompts()[task, c.code] for c in classes]
