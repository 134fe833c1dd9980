"""What a class is asked by (reference: Zero-shot classification, the default prompts): four sets of positive texts.

there_is      "there is {name}" (headline)
name          "{name}"
description   one sentence on how it looks
findings      "findings are consistent with {name}"

`no {name}` is the negative of the scorer `pair`. The texts of a run are written beside its predictions.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import yaml

PROMPTS = Path(__file__).with_name("prompts.yaml")
SETS = ("there_is", "name", "description", "findings")


class Prompts(NamedTuple):
    """positive: text by set of SETS; negative: of the scorer `pair`."""

    positive: dict[str, str]
    negative: str


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, str]]:
    return yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))


def prompts_of(label: str) -> Prompts:
    """All texts of a class by its official label name. KeyError naming the file for an unknown class."""
    key = label.replace("_", " ").lower()
    if key not in _table():
        raise KeyError(f"{PROMPTS.name} has no entry {key!r}: add its name and description")
    entry = _table()[key]
    name = entry["name"]
    texts = {
        "there_is": entry.get("there_is", f"there is {name}"),
        "name": name,
        "description": entry["description"],
        "findings": f"findings are consistent with {name}",
    }
    return Prompts(texts, entry.get("negative", f"no {name}"))


def class_texts(labels: Sequence[str], kind: str = "there_is") -> tuple[list[str], list[str]]:
    """(positive, negative texts), one each per class, in order. ValueError for an unknown set."""
    if kind not in SETS:
        raise ValueError(f"eval.prompts={kind!r}: one of {', '.join(SETS)}")
    found = [prompts_of(label) for label in labels]
    return [p.positive[kind] for p in found], [p.negative for p in found]


def other_names(labels: Sequence[str]) -> dict[str, str]:
    """Control: each class -> another one of a different plain name, one step on in a cycle over the names; a single
    class is asked as "normal". Classes of one name get the same other one."""
    names: dict[str, str] = {}  # plain name -> label
    for label in sorted(labels):
        names.setdefault(prompts_of(label).positive["name"], label)
    ring = [*names.values()] if len(names) > 1 else [*names.values(), "normal"]
    follower = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    return {label: follower[names[prompts_of(label).positive["name"]]] for label in labels}
