"""Text -> frozen vector, each unique text once (reference: M5): reports, entity names and class names alike.

The small encoder, lsa, is fitted on the statements of the training reports and on the names that the dictionary knows,
so that every entity can be told from every other.
"""

from collections.abc import Sequence
from functools import partial

from kmerl.dictionary import dictionary
from kmerl.extract import split
from shared import vectors


def _load(name: str) -> tuple:
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)


def _corpus(reports: Sequence[str]) -> list[str]:
    """Distinct statements of the reports and names of the dictionary's entities, sorted."""
    statements = {" ".join(s.lower().split()) for report in set(reports) for s in split(report)}
    return sorted(statements | {name.lower() for name in dictionary().names})


embed = partial(vectors.embed, load=_load, corpus=_corpus)
