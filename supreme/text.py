"""Text -> frozen vector, each unique text once (reference: M4): terms, class names and reports alike.

Two encoders behind `embed`. `lsa`, the small one: TF-IDF over words and over character n-grams, reduced by a truncated
SVD, fitted on the statements of the training reports and on the names that the terminology knows; no download, the same
bytes every time. Any other name is a hub model or a folder, frozen: `ncbi/MedCPT-Query-Encoder` with
its pooler, `emilyalsentzer/Bio_ClinicalBERT` with text.pooling mean or cls. Vectors lie on disk under a hash of encoder
and text, so a run that was cut goes on where it stopped.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from shared.vectors import Lsa, cached
from supreme.statements import normalise, split
from supreme.terminology import terminology

LSA = "lsa"
POOLING = ("pooler", "mean", "cls")


@dataclass
class TextConfig:
    """The frozen text encoder (reference: M4)."""

    encoder: str = "ncbi/MedCPT-Query-Encoder"  # lsa | hub name | folder
    dim: int = 256  # of lsa; a model brings its own (MedCPT: 768)
    pooling: str = "pooler"  # of a model: pooler | mean (over tokens) | cls (last hidden state of the first token)
    max_length: int = 256  # tokens; longer texts are cut
    batch: int = 64


def embed(texts: Sequence[str], cfg: TextConfig, cache_dir: Path, fit_on: Sequence[str] | None = None) -> np.ndarray:
    """Vectors float32 [n, d] in the order of `texts`; equal texts, told apart by neither case nor blanks, share one.

    d = cfg.dim (lsa; L2-normalised) or the model's hidden size (as the model gives it). fit_on: the training reports,
    needed by lsa and part of its identity: their statements and the names of the terminology are what it is fitted on.
    A text without any known n-gram is the zero vector.
    Raises ValueError for a bad config, for lsa without fit_on, or with fewer distinct n-grams than dimensions.
    """
    if cfg.pooling not in POOLING:
        raise ValueError(f"text.pooling={cfg.pooling!r}: one of {', '.join(POOLING)}")
    keys = [" ".join(text.lower().split()) for text in texts]
    unique = list(dict.fromkeys(keys))
    if cfg.encoder == LSA:
        if not fit_on:
            raise ValueError("text.encoder='lsa' must be fitted: give the training reports as fit_on")
        encode = Lsa(_corpus(fit_on), cfg.dim, cache_dir)
        identity = encode.identity
    else:
        identity = sha256(json.dumps({k: v for k, v in asdict(cfg).items() if k not in ("dim", "batch")}).encode())
        identity = identity.hexdigest()[:16]
        encode = _Model(cfg)
    row = {key: i for i, key in enumerate(unique)}
    return cached(unique, encode, Path(cache_dir) / f"vectors-{identity}", cfg.batch)[[row[key] for key in keys]]


def _corpus(reports: Sequence[str]) -> list[str]:
    """Distinct statements of the reports, preferred names and synonyms of all terms; sorted."""
    statements = {normalise(statement) for report in set(reports) for statement in split(report)}
    names = {name.lower() for term in terminology() for name in (term.preferred, *term.synonyms)}
    return sorted(statements | names)


# --- a model of the hub ---


class _Model:
    """Frozen encoder, on a GPU where there is one. Loaded at the first text that is not in the cache."""

    def __init__(self, cfg: TextConfig):
        self.cfg, self.model = cfg, None

    def _load(self) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(self.cfg.encoder)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(self.cfg.encoder).to(self.device, torch.float32).eval()

    def __call__(self, texts: list[str]) -> np.ndarray:
        import torch

        if self.model is None:
            self._load()
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.cfg.max_length, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            out = self.model(**batch)
        if self.cfg.pooling == "pooler":
            if getattr(out, "pooler_output", None) is None:
                raise ValueError(f"text.encoder={self.cfg.encoder!r} has no pooler; set text.pooling to mean or cls")
            return out.pooler_output.cpu().numpy()
        if self.cfg.pooling == "cls":
            return out.last_hidden_state[:, 0].cpu().numpy()
        mask = batch["attention_mask"].unsqueeze(-1).float()  # [n, tokens, 1]
        return ((out.last_hidden_state * mask).sum(1) / mask.sum(1)).cpu().numpy()
