"""RadGraph-XL F1: entities and relations of two reports, as a DyGIE++ model reads them (reference: "Evaluation
protocols"; the network: Wadden 2019, spans from the two ends of a run of words, no propagation).

The model is a folder as its archive unpacks: `config.json`, `weights.th`, `vocabulary/<data set>__ner_labels.txt` and
`..__relation_labels.txt`, whose first line is the empty label; the encoder's tokenizer and config come from the name in
config.json, or from `encoder/` of the folder. `weights.th` is read without unpickling code.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from shared.runs.processes import device

LEVELS = ("simple", "partial", "complete")  # partial, "RG_ER", is what most papers report
ENCODER = "_embedder.token_embedder_bert._matched_embedder.transformer_model."  # names of the published weights
WIDTHS = "_endpoint_span_extractor._span_width_embedding.weight"


@dataclass(frozen=True)
class Graph:
    """entities: (first word, last word, label), words as positions; relations: (entity, entity, label) by index."""

    words: tuple[str, ...]
    entities: tuple[tuple[int, int, str], ...]
    relations: tuple[tuple[int, int, str], ...]

    def facts(self, level: str) -> set[tuple]:
        """What is compared. simple: words and label; partial: and whether it relates to anything; complete: each
        relation with the words of its target, entities without one as they are."""
        texts = [" ".join(self.words[a : b + 1]) for a, b, _ in self.entities]
        labels = [label for _, _, label in self.entities]
        out = set()
        for i, (text, label) in enumerate(zip(texts, labels, strict=True)):
            relations = {(kind, texts[target]) for source, target, kind in self.relations if source == i}
            if level == "complete" and relations:
                out |= {(text, label, *relation) for relation in relations}
            else:
                out.add((text, label, bool(relations)) if level == "partial" else (text, label))
        return out


def f1(a: set, b: set) -> float:
    return 2 * len(a & b) / (len(a) + len(b)) if a and b else 0.0


def words_of(text: str) -> list[str]:
    """Lower-case words and punctuation marks, apart."""
    return re.findall(r"\w+(?:'\w+)?|[^\w\s]", text.lower())


class RadGraph:
    """Reads graphs with published weights."""

    def __init__(self, name: str):
        folder = Path(name)
        missing = [f for f in ("config.json", "weights.th", "vocabulary") if not (folder / f).exists()]
        if missing:
            raise FileNotFoundError(f"eval.radgraph: {folder} has no {', '.join(missing)}; unpack the archive there")
        config = json.loads((folder / "config.json").read_text())
        self.settings = config["model"]
        self.spans_per_word = self.settings["modules"]["relation"]["spans_per_word"]
        indexer = config["dataset_reader"]["token_indexers"]["bert"]
        own = folder / "encoder"
        encoder = str(own) if own.is_dir() else indexer["model_name"]
        self.pieces = indexer.get("max_length") or 512
        self.tokenizer = AutoTokenizer.from_pretrained(encoder)
        state = torch.load(folder / "weights.th", map_location="cpu", weights_only=True)
        namespace = sorted(f.stem for f in (folder / "vocabulary").glob("*__ner_labels.txt"))[0]
        self.namespace = namespace.removesuffix("__ner_labels")
        self.labels = [
            (folder / "vocabulary" / f"{self.namespace}__{kind}_labels.txt").read_text().split("\n")
            for kind in ("ner", "relation")
        ]
        self.device = device()
        self.encoder = AutoModel.from_config(AutoConfig.from_pretrained(encoder))
        weights = {k.removeprefix(ENCODER): v for k, v in state.items() if k.startswith(ENCODER)}
        lacking = self.encoder.load_state_dict(weights, strict=False).missing_keys
        lacking = [k for k in lacking if "pooler" not in k and "position_ids" not in k]
        if lacking:
            raise ValueError(f"{folder / 'weights.th'}: no {ENCODER}{lacking[0]}; not the weights of this config")
        self.encoder.to(self.device).eval()
        self.widths = state[WIDTHS].to(self.device)  # [max width, feature size]
        ner, relation = f"_ner._ner_scorers.{self.namespace}__ner_labels", f"{self.namespace}__relation_labels"
        self.ner = self._head(state, f"{ner}.0._module._linear_layers", f"{ner}.1._module")
        pruner = f"_relation._mention_pruners.{relation}._scorer"
        self.mention = self._head(state, f"{pruner}.0._module._linear_layers", f"{pruner}.1._module")
        hidden, scorer = f"_relation._relation_feedforwards.{relation}", f"_relation._relation_scorers.{relation}"
        self.relation = self._head(state, f"{hidden}._linear_layers", scorer)

    def _head(self, state: dict, hidden: str, last: str) -> nn.Sequential:
        """Linear layers with ReLU between, from their weights."""
        names = sorted(k.removesuffix(".weight") for k in state if k.startswith(hidden) and k.endswith(".weight"))
        layers = []
        for name in (*names, last):
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": bias})
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1]).to(self.device).eval()

    def embed(self, words: Sequence[str]) -> torch.Tensor:
        """Mean of the pieces of each word [n, d]; texts longer than the encoder are read in parts."""
        pieces = self.tokenizer(list(words), add_special_tokens=False).input_ids
        pieces = [ids or [self.tokenizer.unk_token_id] for ids in pieces]
        out, start = [], 0
        while start < len(words):
            end, size = start, 2
            while end < len(words) and (size + len(pieces[end]) <= self.pieces or end == start):
                size += len(pieces[end])
                end += 1
            flat = [i for ids in pieces[start:end] for i in ids][: self.pieces - 2]
            ids = [self.tokenizer.cls_token_id, *flat, self.tokenizer.sep_token_id]
            ids = torch.tensor([ids], device=self.device)
            hidden = self.encoder(ids).last_hidden_state[0, 1:]  # [1 + pieces, d]
            at = 0
            for k in range(start, end):
                out.append(hidden[at : at + len(pieces[k])].mean(0))
                at += len(pieces[k])
            start = end
        return torch.stack(out)

    @torch.inference_mode()
    def read(self, text: str) -> Graph:
        """The graph of a report, which is read as one sentence."""
        words = words_of(text)
        if not words:
            return Graph((), (), ())
        n, widest = len(words), min(len(self.widths), len(words))
        spans = [(a, a + w) for a in range(n) for w in range(widest) if a + w < n]
        first, last = torch.tensor(spans, device=self.device).T
        tokens = self.embed(words)
        vectors = torch.cat([tokens[first], tokens[last], self.widths[last - first]], 1)  # [n_spans, d]
        labels = best(self.ner(vectors))
        entities = tuple((*spans[i], self.labels[0][k]) for i, k in enumerate(labels.tolist()) if k)
        place = {entity[:2]: i for i, entity in enumerate(entities)}
        scores = self.mention(vectors)[:, 0]
        kept = scores.topk(min(len(spans), math.ceil(n * self.spans_per_word))).indices.sort().values
        relations = []
        for i in kept.tolist():  # row by row: all pairs at once would take gigabytes
            one, others = vectors[i].expand(len(kept), -1), vectors[kept]
            pair = self.relation(torch.cat([one, others, one * others], 1)) + (scores[i] + scores[kept])[:, None]
            for j, k in zip(kept.tolist(), best(pair).tolist(), strict=True):
                if k and spans[i] in place and spans[j] in place:
                    relations.append((place[spans[i]], place[spans[j]], self.labels[1][k]))
        return Graph(tuple(words), entities, tuple(relations))

    def rate(self, references: Sequence[str], candidates: Sequence[str]) -> pd.DataFrame:
        graphs = {text: self.read(text) for text in {*references, *candidates}}
        pairs = [(graphs[r], graphs[c]) for r, c in zip(references, candidates, strict=True)]
        return pd.DataFrame(
            {f"radgraph_{level}": [f1(a.facts(level), b.facts(level)) for a, b in pairs] for level in LEVELS}
        )


def best(scores: torch.Tensor) -> torch.Tensor:
    """Index of the best label [n]; the empty one, index 0, has the score 0."""
    return torch.cat([scores.new_zeros(len(scores), 1), scores], 1).argmax(1)
