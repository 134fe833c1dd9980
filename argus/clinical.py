"""Clinical metrics of published models behind one interface (reference: "Evaluation protocols").

    rate(pairs, models)      a column or more per metric and pair of texts, kept in predictions.parquet
    clinical_scores(table)   those columns -> Scores; a metric without columns is not computed, which is not 0

green        `eval.green`: a causal LLM that lists errors (StanfordAIMI/GREEN-radllama2-7b)
ratescore    `eval.ratescore`: two models, "NER EMBEDDINGS" (Angelakeke/RaTE-NER-Deberta FremyCompany/BioLORD-2023-C)
radgraph_*   `eval.radgraph`: folder of an unpacked RadGraph-XL archive, see argus/radgraph.py

Each is written from the facts of the reference, on transformers alone. Differences from the published scorers, all by
necessity of that: GREEN's instruction is in our words unless `prompt.txt` of the model's folder holds the published one
with {reference} and {candidate}; RaTEScore's sentences end at punctuation (there medspaCy finds them); an empty
prediction earns 0 everywhere.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from argus.radgraph import LEVELS, RadGraph
from shared.metrics.interval import Scores, mean_scores
from shared.runs.processes import device

VERSION = 1
# --- GREEN ---
GREEN_LENGTH = 2048  # tokens of instruction and answer
ERRORS = (  # the six kinds of errors, (a) to (f)
    "finding that only the candidate reports",
    "finding of the reference that the candidate leaves out",
    "finding at a wrong place",
    "finding of wrong severity",
    "comparison that the reference does not make",
    "comparison with an earlier examination that the candidate leaves out",
)
PROMPT = """\
Compare a candidate radiology report with the reference report of a radiologist. Count the findings on which both agree,
and the errors of the candidate, of each of these kinds, the clinically significant apart from the insignificant:
{kinds}

Reference report:
{reference}

Candidate report:
{candidate}

Answer in exactly this form, also where there are no errors:
[Explanation]:
<explanation>

[Clinically Significant Errors]:
(a) <kind>: <number>. <error>; <error>
...

[Clinically Insignificant Errors]:
(a) <kind>: <number>. <error>; <error>
...

[Matched Findings]:
<number>. <finding>; <finding>
"""
# --- RaTEScore ---
OPPOSITE = 0.3612  # factor of a match of opposite polarity
TYPES = ("ABNORMALITY", "ANATOMY", "DISEASE", "NON-ABNORMALITY", "NON-DISEASE")
AFFINITY = (  # [type of the entity, type of its match], "long" [code: RaTEScore affinity_matrix/long_weight.json]
    (0.427612, 0.624093, 0.003448, 0.543105, 0.270054),
    (0.748782, 0.285613, 0.459214, 0.020971, 0.000137),
    (0.839651, 0.995021, 0.846056, 0.982069, 0.378914),
    (0.165468, 0.018671, 0.719397, 0.000936, 0.092733),
    (0.775942, 0.183914, 0.100730, 0.038602, 0.340657),
)
NEGATIVE = frozenset(("NON-ABNORMALITY", "NON-DISEASE"))
POSITIVE = frozenset(("ABNORMALITY", "DISEASE"))


class Green:
    """Matched findings against significant errors, as an LLM lists them."""

    def __init__(self, name: str, batch: int = 8):
        self.tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", truncation_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(name).to(device()).eval()
        self.batch = batch
        own = Path(name) / "prompt.txt"
        kinds = "\n".join(f"({letter}) {kind}" for letter, kind in zip("abcdef", ERRORS, strict=True))
        self.prompt = own.read_text() if own.is_file() else PROMPT.replace("{kinds}", kinds)

    def instruction(self, reference: str, candidate: str) -> str:
        text = self.prompt.replace("{reference}", reference).replace("{candidate}", candidate)
        if not self.tokenizer.chat_template:
            return text
        turn = {"role": "user", "content": text, "from": "human", "value": text}  # the keys of either kind of template
        return self.tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)

    @torch.inference_mode()
    def rate(self, references: Sequence[str], candidates: Sequence[str]) -> pd.DataFrame:
        limit = min(GREEN_LENGTH, getattr(self.model.config, "max_position_embeddings", GREEN_LENGTH))
        rows = []
        for start in range(0, len(references), self.batch):
            pairs = zip(references[start : start + self.batch], candidates[start : start + self.batch], strict=True)
            texts = [self.instruction(*pair) for pair in pairs]
            lengths = [len(ids) for ids in self.tokenizer(texts).input_ids]
            inputs = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=limit - 1)
            inputs = {k: v.to(self.model.device) for k, v in inputs.items() if k != "token_type_ids"}
            room = limit - inputs["input_ids"].shape[1]
            out = self.model.generate(**inputs, do_sample=False, max_new_tokens=room,
                                      pad_token_id=self.tokenizer.pad_token_id)  # fmt: skip
            answers = self.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            rows += [(*green_counts(a), n >= limit) for a, n in zip(answers, lengths, strict=True)]
        columns = ["green_matched", "green_errors", "green_parsed", "green_truncated"]
        return pd.DataFrame(rows, columns=columns).astype(float)


def green_counts(answer: str) -> tuple[int, int, bool]:
    """(Matched findings, significant errors, whether both could be read) of an answer; 0 matched where not."""
    parts = re.split(r"\[([A-Za-z ]+)\]:", answer)
    sections = {name.strip(): text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    errors, matched = (sections.get(name) for name in ("Clinically Significant Errors", "Matched Findings"))
    count = re.match(r"(\d+)\.", matched or "")
    nothing = (matched or "").startswith("No")
    if errors is None or not (count or nothing):
        return 0, 0, False
    found = re.findall(r"^\(([a-f1-6])\)[^\n]*?: (\d+)\.", errors, flags=re.MULTILINE)
    return int(count[1]) if count else 0, sum(int(n) for n in dict(found).values()), True


class RateScore:
    """Agreement of the named entities of two reports, by meaning and kind."""

    def __init__(self, names: str):
        if len(names.split()) != 2:
            raise ValueError(f"eval.ratescore: {names!r}: give two models, 'NER EMBEDDINGS'")
        ner, embeddings = names.split()
        self.tokenizer, self.word_tokenizer = map(AutoTokenizer.from_pretrained, (ner, embeddings))
        self.ner = AutoModelForTokenClassification.from_pretrained(ner).to(device()).eval()
        self.words = AutoModel.from_pretrained(embeddings).to(device()).eval()
        kinds = {label[2:] for label in self.ner.config.id2label.values() if label[:2] in ("B-", "I-")}
        if not kinds or kinds - set(TYPES):
            raise ValueError(f"{ner}: entity types {sorted(kinds)}; RaTEScore needs B- and I- labels of {TYPES}")

    @torch.inference_mode()
    def entities(self, text: str) -> list[tuple[str, str]]:
        """(Words, type) of the entities of a report, sentence by sentence."""
        found = []
        for sentence in filter(lambda s: len(s) > 2, re.split(r"(?<=[.!?;])\s+|\n+", text.strip())):
            inputs = self.tokenizer(sentence, truncation=True, max_length=512, return_tensors="pt")
            logits = self.ner(**inputs.to(self.ner.device)).logits[0]  # [T, labels]
            labels = [self.ner.config.id2label[i] for i in logits.argmax(-1).tolist()]
            special = set(self.tokenizer.all_special_ids)
            ids, spans = inputs["input_ids"][0].tolist(), []
            for token, label in zip(ids, labels, strict=True):
                if token in special or label == "O":
                    spans.append(None)
                elif label[:2] == "I-" and spans and spans[-1]:
                    spans[-1][0].append(token)
                elif label[:2] == "B-":
                    spans.append(([token], label[2:]))
            found += [(self.tokenizer.decode(span[0]).strip(), span[1]) for span in spans if span]
        return [entity for entity in found if entity[0]]

    @torch.inference_mode()
    def embed(self, words: Sequence[str]) -> torch.Tensor:
        """First hidden states of unit length, [n, d]."""
        inputs = self.word_tokenizer(list(words), truncation=True, padding=True, max_length=30, return_tensors="pt")
        vectors = self.words(**inputs.to(self.words.device)).last_hidden_state[:, 0]
        return torch.nn.functional.normalize(vectors.float(), dim=1).cpu()

    def rate(self, references: Sequence[str], candidates: Sequence[str]) -> pd.DataFrame:
        known = {text: self.entities(text) for text in {*references, *candidates}}
        rows = []
        for reference, candidate in zip(references, candidates, strict=True):
            a, b = known[reference], known[candidate]
            if not candidate.strip():
                rows.append((0.0, 0.0))
            elif not a or not b:
                rows.append((0.5, 1.0))  # as published; counted in `ratescore_undecided`
            else:
                vectors = [self.embed([words for words, _ in side]) for side in (a, b)]
                rows.append((rate_score(*vectors, [t for _, t in a], [t for _, t in b]), 0.0))
        return pd.DataFrame(rows, columns=["ratescore", "ratescore_undecided"])


def rate_score(a: torch.Tensor, b: torch.Tensor, types_a: Sequence[str], types_b: Sequence[str]) -> float:
    """F1 of the two directed scores of entities a [n, d] and b [m, d], unit vectors with a type each."""
    similarity = (a @ b.T).double().numpy()
    one, other = directed(similarity, types_a, types_b), directed(similarity.T, types_b, types_a)
    return 2 * one * other / (one + other) if one + other else 0.0


def directed(similarity: np.ndarray, types: Sequence[str], types_of_matches: Sequence[str]) -> float:
    """Mean similarity of each entity (row) to its nearest match, weighted by the affinity of their types."""
    nearest = similarity.argmax(1)
    total = weights = 0.0
    for i, j in enumerate(nearest):
        pair = types[i], types_of_matches[j]
        weight = AFFINITY[TYPES.index(pair[0])][TYPES.index(pair[1])]
        opposite = bool(NEGATIVE & set(pair)) and bool(POSITIVE & set(pair))
        total += similarity[i, j] * weight * (OPPOSITE if opposite else 1)
        weights += weight
    return total / weights if weights else 0.0


# --- the interface ---

BACKENDS = {"green": Green, "ratescore": RateScore, "radgraph": RadGraph}


def rate(pairs: pd.DataFrame, models: dict[str, str | None]) -> pd.DataFrame:
    """Columns of every back-end that has a model, one row per pair, in the order of `pairs`.

    pairs: columns reference, prediction; each distinct pair is rated once. models: name of BACKENDS -> hub name or
    folder, None leaves it out. Raises OSError where a model that is named cannot be loaded.
    """
    keys = pairs[["reference", "prediction"]]
    distinct = keys.drop_duplicates(ignore_index=True)
    parts = [distinct]
    for name, model in models.items():
        if model:
            parts.append(BACKENDS[name](model).rate(distinct.reference.tolist(), distinct.prediction.tolist()))
    rated = keys.merge(pd.concat(parts, axis=1), how="left", on=["reference", "prediction"])
    return rated.drop(columns=["reference", "prediction"])


def clinical_scores(table: pd.DataFrame) -> dict[str, Scores]:
    """Scores of the columns that `rate` left in a table of predictions; none where there are no such columns.

    green_parsed_only: without the answers that could not be read, which `green` counts as 0.
    """
    out = {}
    if _has(table, "green_matched"):
        matched, errors, parsed = (table[f"green_{c}"].to_numpy(float) for c in ("matched", "errors", "parsed"))
        green = np.divide(matched, matched + errors, out=np.zeros(len(table)), where=matched > 0)
        out["green"] = mean_scores("green", VERSION, green)
        stats = np.stack([green * parsed, parsed], 1)
        out["green_parsed_only"] = Scores("green_parsed_only", VERSION, stats, _share)
        columns = ("green_parsed", "green_truncated")
    else:
        columns = ()
    for name in (*columns, "ratescore", "ratescore_undecided", *(f"radgraph_{level}" for level in LEVELS)):
        if _has(table, name):
            out[name] = mean_scores(name, VERSION, table[name].to_numpy(float))
    return out


def _has(table: pd.DataFrame, column: str) -> bool:
    return column in table and bool(table[column].notna().all())


def _share(sums: np.ndarray) -> np.ndarray:
    """Sums [..., 2] -> first / second; NaN where the second is 0."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)
