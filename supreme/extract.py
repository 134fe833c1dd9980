"""Reports -> labels, once, offline (reference: M2): unique statements, entities, merged, mapped, labels, audit.

    python -m supreme.extract --config supreme/configs/laptop.yaml [--extract.protocol as_published ...]
    python -m supreme.extract --agreement      against the simulator's truth, PTB-XL's codes and reports read by hand
    python -m supreme.extract --thresholds     tau_merge and tau_map from hand-written pairs

Cost grows with the UNIQUE statements, each read once and kept on disk; all after that are products of sparse matrices.
What the paper did is not known; every choice is a config key and stands under Deviations.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from shared.locks import locked
from shared.runs.config import cache_root
from supreme import labels as stage5
from supreme.backends import Reading, read_statements
from supreme.labels import Labels, Planes, Policy, counting
from supreme.mapping import HOW, Decision, map_terms
from supreme.merge import Merged, merge
from supreme.statements import Statements, collect
from supreme.terminology import Term
from supreme.terminology import version as terminology_version

Encode = Callable[[list[str]], np.ndarray]  # texts -> [n, d]


@dataclass
class ExtractConfig:
    """Statements to labels (reference: M2). Keys of language models are ignored by the rules."""

    backend: str = "rules"  # rules | local (transformers) | endpoint (OpenAI-compatible) | replay (JSONL of readings)
    model: str | None = None  # of the language model: hub name or folder; at an endpoint, what it is called there
    base_url: str | None = None  # of the endpoint, such as http://localhost:8000/v1; key: environment EXTRACT_API_KEY
    revision: str | None = None  # of a hub model
    replay_file: str | None = None  # extraction.jsonl of an earlier run
    unit: str = "statement"  # statement | report (whole reports, as drawn in the paper)
    verify: bool = False  # second pass of the language model: does each entity truly occur?
    retries: int = 3  # further attempts after the first, the validation error appended
    batch: int = 16  # local: statements at a time
    workers: int = 8  # endpoint: requests at a time
    timeout_s: float = 60.0
    backoff_s: float = 1.0  # first wait after a failure; doubles
    max_new_tokens: int = 512
    response_format: bool = True  # ask the endpoint for JSON by schema; given up where it refuses
    tau_merge: float = 0.90  # stage 3: cosine at which names are one
    tau_map: float = 0.80  # stage 4: cosine at which a name is a term,
    map_margin: float = 0.02  # and how far the second term must lie behind
    min_records: int = 20  # that must state a term for certain for it to be a label (paper tier: 500)
    protocol: str = "corrected"  # corrected | as_published: the certainty table, and the guards of location and age
    uncertain: str | None = None  # null = by protocol | positive | mask (out of the loss) | negative | soft (0.5)
    collapse_subtypes: bool | None = None  # null = by protocol; inferior MI becomes MI
    emit_parents: bool | None = None  # null = by protocol; inferior MI sets MI as well
    exclude_flagged: bool = False  # leave records out whose recording or rhythm cannot be read
    hold_out: list[str] = field(
        default_factory=list
    )  # ids of terms left out, with what would label them: unseen classes
    skip_merge_map: bool = False  # control: raw unique statements as labels
    reviewed: str | None = None  # a review_sample.csv of an earlier audit, filled in: precision and recall against it


@dataclass
class Extraction:
    """All that stages 0 to 4 found. names: E distinct entity names; of_name: per unique statement the index of each
    entity's name; found: per unique statement the term of each entity, None = unmapped; n_records: of each name."""

    statements: Statements
    of_report: csr_matrix  # [n, U], counts
    readings: list[Reading]
    read_counts: dict
    of_name: list[list[int]]
    n_records: np.ndarray
    merged: Merged
    decisions: list[Decision]
    found: list[list[Term | None]]

    def mass(self) -> np.ndarray:
        """Records that name each cluster, whatever the certainty, int [clusters]."""
        return _n_records(self.of_report, [self.merged.cluster[row] for row in self.of_name], len(self.decisions))


def extraction(cfg: ExtractConfig, reports: Sequence[str], encode: Encode) -> Extraction:
    """Stages 0 to 4. Readings are kept under CACHE_ROOT/extract; a run that was killed goes on where it stopped."""
    policy = Policy.of(cfg)
    statements = collect(reports, cfg.unit)
    of_report = counting(statements.of_report, len(statements.norm))
    readings, read_counts = read_statements(cfg, statements.norm, cache_root() / "extract")
    number: dict[str, int] = {}
    of_name = [[number.setdefault(name_of(e), len(number)) for e in r.entities] for r in readings]
    n_records = _n_records(of_report, of_name, len(number))
    merged = merge(list(number), n_records.tolist(), encode, cfg.tau_merge, cfg.protocol)
    definite = [
        [merged.cluster[i] for i, e in zip(row, r.entities, strict=True) if e.certainty == "definite"]
        for row, r in zip(of_name, readings, strict=True)
    ]
    n_definite = _n_records(of_report, definite, len(merged.representative))
    decisions = map_terms(merged, n_definite.tolist(), encode, cfg, subtypes=not policy.collapse_subtypes)
    found = [[decisions[merged.cluster[i]].term for i in row] for row in of_name]
    return Extraction(statements, of_report, readings, read_counts, of_name, n_records, merged, decisions, found)


def name_of(entity) -> str:
    return " ".join(entity.entity.split())


def _n_records(of_report: csr_matrix, rows: Sequence[Sequence[int]], n_columns: int) -> np.ndarray:
    return np.asarray(((of_report @ counting(rows, n_columns)) > 0).sum(axis=0)).ravel().astype(np.int64)


def stated(cfg: ExtractConfig, found: Extraction) -> Planes:
    """What each record says of each term, before it becomes labels."""
    policy = Policy.of(cfg)
    if cfg.skip_merge_map:
        ids = found.statements.ids
        return stage5.raw_statements(found.of_report, found.readings, found.found, ids, policy)
    return stage5.planes(found.of_report, found.readings, found.found, policy)


def run(cfg: ExtractConfig, reports: Sequence[str], out: Path, encode: Encode) -> Labels:
    """Labels of n reports; encode is the frozen text encoder, texts -> [n, d].

    Writes to `out`: statements.parquet, record_statements.parquet, extraction.jsonl, labels.npz, terms.json, audit/
    (supreme/audit.py). One process at a time; what is there already, of the same config, reports and encoder, is read
    back. Raises ValueError for a bad config, an unknown id in hold_out, or where no term is frequent enough.
    """
    from supreme import audit

    out = Path(out)
    (out / "audit").mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock"):
        identity, manifest = _identity(cfg, reports, encode), out / "audit" / "manifest.json"
        if manifest.exists() and (known := json.loads(manifest.read_text()))["identity"] == identity:
            return stage5.load(out, known["counts"])
        manifest.unlink(missing_ok=True)
        found = extraction(cfg, reports, encode)
        said = stated(cfg, found)
        labels = stage5.label(said, cfg, Policy.of(cfg))
        labels.folder, labels.counts = out, _counts(found, len(reports)) | labels.counts
        stage5.save(labels, out)
        audit.write(out, cfg, found, said, labels, identity)  # the manifest last: it marks a whole run
    return labels


def _identity(cfg: ExtractConfig, reports: Sequence[str], encode: Encode) -> dict:
    """What the labels depend on. The encoder is known by what it makes of two names."""
    from supreme import prompt, rules

    corpus = sha256()
    for report in reports:
        corpus.update(report.encode() + b"\n")
    config = {k: v for k, v in asdict(cfg).items() if k not in ("batch", "workers", "timeout_s", "backoff_s")}
    files = {k: sha256(Path(config[k]).read_bytes()).hexdigest() for k in ("replay_file", "reviewed") if config[k]}
    probe = np.asarray(encode(["sinus rhythm", "prolonged QT interval"]), dtype=np.float32)
    return {
        "config": config | files,
        "corpus_sha256": corpus.hexdigest(),
        "reader": rules.version() if cfg.backend == "rules" else prompt.version(cfg.verify),
        "terminology": terminology_version(),
        "encoder": sha256(probe.tobytes()).hexdigest()[:16],
        "stages": sources("statements", "merge", "mapping", "labels"),
    }


def sources(*modules: str) -> str:
    """Hash of modules of this package: labels on disk that other code made are made anew."""
    folder = Path(__file__).parent
    return sha256(b"".join((folder / f"{name}.py").read_bytes() for name in modules)).hexdigest()[:12]


def _counts(found: Extraction, n_reports: int) -> dict:
    """What each stage came to."""
    mass, how = found.mass(), np.array([d.how for d in found.decisions])
    total = max(int(mass.sum()), 1)
    unread = np.array([not r.entities and not r.error for r in found.readings])
    n_statements = found.statements.table.n_occurrences.to_numpy(dtype=np.int64)
    counts = {"reports": n_reports, "statements": int(n_statements.sum()), "unique": len(found.readings)}
    counts |= {k: found.read_counts[k] for k in ("failed", "valid_share", "grounded_share", "nothing")}
    counts["nothing_share"] = float(n_statements[unread].sum() / max(n_statements.sum(), 1))
    counts |= {"names": len(found.merged.names), "clusters": len(found.decisions)}
    counts |= {f"clusters_{h}": int((how == h).sum()) for h in HOW}
    return counts | {f"mass_{h}": float(mass[how == h].sum() / total) for h in HOW}


def main(args: Sequence[str] | None = None) -> object:
    """Extract for a config and print every stage and a sample of the audit; or measure (--agreement, --thresholds)."""
    args = list(sys.argv[1:] if args is None else args)
    if "--agreement" in args:
        from supreme.agreement import print_agreement

        return print_agreement()
    if "--thresholds" in args:
        from supreme.thresholds import print_thresholds

        return print_thresholds()
    from supreme import audit
    from supreme.config import parse
    from supreme.prep import extracted, training_records

    cfg = parse(args)
    tree, table = training_records(cfg)
    labels = extracted(cfg, tree, table)
    print(audit.summary(labels))
    return labels


if __name__ == "__main__":
    main()
