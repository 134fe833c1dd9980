"""Text -> frozen vector, each unique text once, kept on disk under a hash of encoder and text: a cut run goes on.

Two encoders behind `embed`. `lsa`, the small one: TF-IDF over words and over character n-grams, reduced by a truncated
SVD, fitted on a corpus; no download, the same bytes every time. Any other name is a model of the Hugging Face hub or a
folder, frozen: `ncbi/MedCPT-Query-Encoder` with its pooler, others with text.pooling mean or cls.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from shared.locks import locked
from shared.runs.processes import device

LSA = "lsa"
POOLING = ("pooler", "mean", "cls")
VERSION = 1  # of the fit; part of the name of its folder
# Words by their first five letters: inverted and inversion, infarct and infarction, irregular and irregularity are one.
_WORDS = {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"\b\w{1,5}", "sublinear_tf": True}
_CHARACTERS = {"analyzer": "char_wb", "ngram_range": (3, 5), "sublinear_tf": True}


@dataclass
class TextConfig:
    """The frozen text encoder."""

    encoder: str = "ncbi/MedCPT-Query-Encoder"  # lsa | hub name | folder
    dim: int = 256  # of lsa (with 128, PR and QT fall together); a model brings its own (MedCPT: 768)
    pooling: str = "pooler"  # of a model: pooler | mean (over tokens) | cls (last hidden state of the first token)
    max_length: int = 256  # tokens; longer texts are cut
    batch: int = 64


def embed(
    texts: Sequence[str],
    cfg: TextConfig,
    cache_dir: Path,
    fit_on: Sequence[str] = (),
    *,
    load: Callable[[str], tuple],
    corpus: Callable[[Sequence[str]], list[str]],
) -> np.ndarray:
    """Vectors float32 [n, d] in the order of `texts`; equal texts, told apart by neither case nor blanks, share one.

    d = cfg.dim (lsa; L2-normalised) or the model's hidden size (as the model gives it). fit_on: the training reports,
    which lsa needs. A paper gives load: name -> (tokenizer, model), and corpus: reports -> texts that lsa is fitted on,
    part of its identity. A text without any known n-gram is the zero vector.
    Raises ValueError for a bad config, for lsa without reports, or with fewer distinct n-grams than dimensions.
    """
    if cfg.pooling not in POOLING:
        raise ValueError(f"text.pooling={cfg.pooling!r}: one of {', '.join(POOLING)}")
    keys = [" ".join(text.lower().split()) for text in texts]
    unique = list(dict.fromkeys(keys))
    if cfg.encoder == LSA:
        if not fit_on:
            raise ValueError("text.encoder='lsa' must be fitted: give the training reports as fit_on")
        encode = Lsa(corpus(fit_on), cfg.dim, cache_dir)
        identity = encode.identity
    else:
        identity = sha256(json.dumps({k: v for k, v in asdict(cfg).items() if k not in ("dim", "batch")}).encode())
        identity = identity.hexdigest()[:16]
        encode = Frozen(cfg, load)
    row = {key: i for i, key in enumerate(unique)}
    return cached(unique, encode, Path(cache_dir) / f"vectors-{identity}", cfg.batch)[[row[key] for key in keys]]


class Frozen:
    """Texts -> vectors [n, d] of a model, on the GPU of this process where there is one. Loaded at the first text."""

    def __init__(self, cfg: TextConfig, load: Callable[[str], tuple]):
        self.cfg, self.load, self.model = cfg, load, None

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> np.ndarray:
        if self.model is None:
            self.tokenizer, model = self.load(self.cfg.encoder)
            self.model = model.to(device(), torch.float32).eval()
        cut = {"padding": True, "truncation": True, "max_length": self.cfg.max_length, "return_tensors": "pt"}
        batch = self.tokenizer(texts, **cut).to(self.model.device)
        out = self.model(**batch)
        if self.cfg.pooling == "pooler":
            if getattr(out, "pooler_output", None) is None:
                raise ValueError(f"text.encoder={self.cfg.encoder!r} has no pooler; set text.pooling to mean or cls")
            return out.pooler_output.cpu().numpy()
        if self.cfg.pooling == "cls":
            return out.last_hidden_state[:, 0].cpu().numpy()
        mask = batch["attention_mask"].unsqueeze(-1).float()  # [n, tokens, 1]
        return ((out.last_hidden_state * mask).sum(1) / mask.sum(1)).cpu().numpy()


class Lsa:
    """Texts -> float32 [n, dim], rows of unit length (zero for a text without any known n-gram).

    Both TF-IDF tables side by side, projected on the first right singular vectors. What was fitted on the corpus is
    `identity`; it lies in cache_dir as vocabulary (json), idf and components (npy), no pickle. ValueError with fewer
    distinct n-grams or texts than dimensions.
    """

    def __init__(self, corpus: list[str], dim: int, cache_dir: Path):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.identity = sha256(json.dumps(["lsa", VERSION, dim, corpus]).encode()).hexdigest()[:16]
        folder = Path(cache_dir) / f"lsa-{self.identity}"
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            self._fit(corpus, dim, folder)
        self.tables = []
        for name, options in (("words", _WORDS), ("characters", _CHARACTERS)):
            terms = json.loads((folder / f"{name}.json").read_text())
            table = TfidfVectorizer(**options, vocabulary={term: i for i, term in enumerate(terms)})
            table.idf_ = np.load(folder / f"{name}.npy")
            self.tables.append(table)
        self.components = np.load(folder / "components.npy")  # [d, terms]

    def _fit(self, corpus: list[str], dim: int, folder: Path) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not (folder / "components.npy").exists():
            tables = [TfidfVectorizer(**options).fit(corpus) for options in (_WORDS, _CHARACTERS)]
            both = self._weigh(corpus, tables)
            if dim >= min(both.shape):
                raise ValueError(f"text.dim={dim} needs more than {min(both.shape)} distinct texts; set it lower")
            svd = TruncatedSVD(dim, algorithm="arpack", random_state=0).fit(both)
            self._save(folder, tables, svd.components_)

    @staticmethod
    def _save(folder: Path, tables: list, components: np.ndarray) -> None:
        for name, table in zip(("words", "characters"), tables, strict=True):
            (folder / f"{name}.json").write_text(json.dumps(table.get_feature_names_out().tolist()))
            np.save(folder / f"{name}.npy", table.idf_)
        np.save(folder / "components.tmp.npy", components)
        os.replace(folder / "components.tmp.npy", folder / "components.npy")  # last: it marks a whole fit

    @staticmethod
    def _weigh(texts: list[str], tables: list):
        from scipy.sparse import hstack

        return hstack([table.transform(texts) for table in tables]).tocsr()

    def __call__(self, texts: list[str]) -> np.ndarray:
        vectors = self._weigh(texts, self.tables) @ self.components.T
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(norm > 0, norm, 1)).astype(np.float32)


def cached(texts: Sequence[str], encode: Callable[[list[str]], np.ndarray], folder: Path, batch: int) -> np.ndarray:
    """Vectors of distinct texts, those on disk and those that `encode(list) -> [n, d]` has to make.

    A shard is a pair of files, NNN.json (hashes of the texts) and NNN.npy (their vectors); the .json is renamed into
    place last, so that a kill leaves only whole shards and some rubbish that is written over.
    """
    hashes = [sha256(text.encode()).hexdigest() for text in texts]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        known: dict[str, np.ndarray] = {}
        shards = sorted(folder.glob("*.json"))
        for shard in shards:
            known |= dict(zip(json.loads(shard.read_text()), np.load(shard.with_suffix(".npy")), strict=True))
        todo = [(h, text) for h, text in zip(hashes, texts, strict=True) if h not in known]
        step, number = batch * 64, len(shards)
        for at in range(0, len(todo), step):
            part = todo[at : at + step]
            vectors = np.concatenate(
                [encode([text for _, text in part[i : i + batch]]) for i in range(0, len(part), batch)]
            ).astype(np.float32)
            np.save(folder / f"{number:06d}.npy", vectors)
            temporary = folder / f"{number:06d}.tmp"
            temporary.write_text(json.dumps([h for h, _ in part]))
            os.replace(temporary, folder / f"{number:06d}.json")
            known |= dict(zip((h for h, _ in part), vectors, strict=True))
            number += 1
    return np.stack([known[h] for h in hashes])
