"""Text -> frozen vector, each unique text once (reference: M4): terms, class names and reports alike.

The small encoder, lsa, is fitted on the statements of the training reports and on the names of the terminology.
"""

from collections.abc import Sequence
from functools import partial

from shared import vectors
from supreme.statements import normalise, split
from supreme.terminology import terminology


def _load(name: str) -> tuple:
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)


def _corpus(reports: Sequence[str]) -> list[str]:
    """Distinct statements of the reports, preferred names and synonyms of all terms; sorted."""
    statements = {normalise(statement) for report in set(reports) for statement in split(report)}
    names = {name.lower() for term in terminology() for name in (term.preferred, *term.synonyms)}
    return sorted(statements | names)


embed = partial(vectors.embed, load=_load, corpus=_corpus)
