"""RaTE-NER's form of entity reader: a token classifier with IOB labels of the five types (reference: A4, Trap 10).

Sentences are split as for the dictionary reader, so no entity crosses them. A word has the label of its first piece,
which is right whether or not the later pieces were taught. A span ends where the type changes, where another begins,
and at the end of the sentence.
"""

from collections.abc import Sequence

import torch
from rich.progress import track

from shared.runs.evaluation import device as own_device
from synth_medvlp.journal import shows_progress
from synth_medvlp.lexicon import TYPES, Mention, sentences

MAX_TOKENS = 512


class ModelNer:
    """model: hub name or folder of an `AutoModelForTokenClassification`; device: null = this process's GPU where there
    is one.

    Raises ValueError where its labels are not O, B-TYPE and I-TYPE of the five types. `truncated` counts sentences
    longer than the model reads.
    """

    def __init__(self, model: str, device: str | None = None, batch: int = 64, revision: str | None = None):
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        options = {"revision": revision or "main"}
        self.device = device or str(own_device())
        self.tokenizer = AutoTokenizer.from_pretrained(model, **options)
        if not self.tokenizer.is_fast:
            raise ValueError(f"ner.model={model!r} has no fast tokenizer; character spans need one")
        self.network = AutoModelForTokenClassification.from_pretrained(model, **options).to(self.device).eval()
        self.labels = {int(i): label for i, label in self.network.config.id2label.items()}
        known = {"O", *(f"{p}-{kind}" for p in "BI" for kind in TYPES)}
        if unknown := sorted(set(self.labels.values()) - known):
            raise ValueError(f"ner.model={model!r}: labels {unknown} are none of RaTE-NER's {sorted(known)}")
        self.batch, self.truncated = batch, 0

    def __call__(self, texts: Sequence[str]) -> list[list[Mention]]:
        places = [(t, offset, s) for t, text in enumerate(texts) for offset, s in sentences(text)]
        places.sort(key=lambda place: len(place[2]))  # alike in length, little padding
        out: list[list[Mention]] = [[] for _ in texts]
        starts = range(0, len(places), self.batch)
        for i in track(starts, "entities", disable=len(starts) < 100 or not shows_progress()):
            part = places[i : i + self.batch]
            for (t, offset, _), spans in zip(part, self._read([s for _, _, s in part]), strict=True):
                for kind, start, end in spans:
                    at = offset + start, offset + end
                    out[t].append(Mention(texts[t][slice(*at)], kind, *at))
        return [sorted(mentions, key=lambda m: m.start) for mentions in out]

    def _read(self, batch: list[str]) -> list[list[tuple[str, int, int]]]:
        encoded = self.tokenizer(batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt",
                                 return_offsets_mapping=True)  # fmt: skip
        offsets = encoded.pop("offset_mapping").tolist()
        self.truncated += int((encoded["attention_mask"].sum(1) == MAX_TOKENS).sum())
        with torch.inference_mode():
            best = self.network(**encoded.to(self.device)).logits.argmax(-1).tolist()
        out = []
        for row, sentence in enumerate(batch):
            pieces = zip(encoded.word_ids(row), best[row], offsets[row], strict=True)
            named = [(word, self.labels[label], *span) for word, label, span in pieces if word is not None]
            out.append(merge(_words(named, sentence), sentence))
        return out


def _words(pieces: list[tuple[int, str, int, int]], sentence: str) -> list[tuple[str, int, int]]:
    """Pieces (word, label, start, end) as words with the label of the first piece. Signs stand for themselves: some
    tokenizers count the full stop to the word before it."""
    out: list[tuple[str, int, int]] = []
    before = None  # the word that may go on
    for word, label, start, end in pieces:
        said = sentence[start:end].strip()  # "" of a piece that only opens a word
        sign = said != "" and not any(c.isalnum() for c in said)
        if word == before and not sign:
            out[-1] = (*out[-1][:2], end)
        else:
            out.append((label, start, end))
        before = None if sign else word
    return out


def merge(words: list[tuple[str, int, int]], sentence: str) -> list[tuple[str, int, int]]:
    """(label, start, end) of a sentence's words -> (type, start, end) of its entities, blanks around them cut off.

    I- without a beginning of its type begins one.
    """
    spans: list[list] = []
    before = "O"
    for label, start, end in words:
        prefix, _, kind = label.partition("-")
        if kind and prefix == "I" and before.partition("-")[2] == kind:
            spans[-1][2] = end
        elif kind:
            spans.append([kind, start, end])
        before = label
    out = []
    for kind, start, end in spans:
        text = sentence[start:end]
        start, end = start + len(text) - len(text.lstrip()), end - (len(text) - len(text.rstrip()))
        if end > start:
            out.append((kind, start, end))
    return out
