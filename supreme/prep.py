"""Official layouts -> what training and evaluation read: `python -m supreme.prep --config supreme/configs/laptop.yaml`.

Pre-training: packed store, split, labels extracted once from the reports (reference: M2), a vector per term and per
distinct report. Downstream: stores and labels of the six tasks. Everything is cached; a second call returns at once.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from shared.ecg.downstream import downstream_hash
from shared.ecg.prepare import Packed, packed, with_split
from shared.ecg.store import EcgStore
from shared.runs.config import cache_root, hash_of
from shared.runs.tasks import prepare_tasks
from supreme import extract
from supreme.config import Config, parse
from supreme.extract import Labels
from supreme.terminology import Term, terminology
from supreme.text import embed
from supreme.truth import truth_labels


@dataclass
class Pretraining:
    """Training records: item i of every array belongs to the same record."""

    stores: list[EcgStore]
    store_of: np.ndarray  # int [n], index into `stores`
    rows: np.ndarray  # int [n], row of that store
    patients: np.ndarray  # int [n], equal for records of one patient
    terms: list[Term]  # L; of a supervised model: none
    y: np.ndarray  # float32 [n, L]
    mask: np.ndarray  # bool [n, L], False = not in the loss
    term_vectors: np.ndarray  # float32 [L, d_text]
    text_vectors: np.ndarray  # float32 [n_distinct, d_text], one per distinct report; one row where no model reads any
    text_of: np.ndarray  # int [n], row of text_vectors
    split_sha256: str
    data_hash: str
    source: str
    counts: dict  # of the extraction


def prepare(cfg: Config) -> Pretraining:
    """Pack, split, extract labels from the training reports, embed each term and each distinct report once."""
    if cfg.model.method == "supervised":
        return labelled(cfg)
    tree, table = training_records(cfg)
    split = with_split(tree, cfg.data.split, cfg.data.split_seed)
    labels = extracted(cfg, tree, table)
    y, mask = labels.y, labels.mask
    if cfg.data.permute_labels:
        order = np.random.default_rng(cfg.seed).permutation(len(y))
        y, mask = y[order], mask[order]
    vectors = text_encoder(cfg)
    distinct, text_of = [""], np.zeros(len(table), int)  # only MERL reads whole reports
    if cfg.model.method == "merl":
        distinct, text_of = np.unique(np.array(table.report, dtype=object), return_inverse=True)
    term_vectors, text_vectors = vectors([t.preferred for t in labels.terms]), vectors(list(distinct))
    content = hashlib.sha256(b"".join(a.tobytes() for a in (y, mask, term_vectors, text_vectors))).hexdigest()
    return Pretraining(
        stores=[tree.store],
        store_of=np.zeros(len(table), int),
        rows=table.row.to_numpy(),
        patients=pd.factorize(table.patient_id)[0],
        terms=labels.terms,
        y=y,
        mask=mask,
        term_vectors=term_vectors,
        text_vectors=text_vectors,
        text_of=text_of,
        split_sha256=split.split_sha256,
        data_hash=hash_of([split.data_hash, cfg.data.share, [t.id for t in labels.terms], content]),
        source=tree.source,
        counts=labels.counts,
    )


def training_records(cfg: Config) -> tuple[Packed, pd.DataFrame]:
    """The packed release and the training records that have a report, of `data.share` of the patients.

    A smaller share is part of a larger one. Raises ValueError for a release without reports.
    """
    tree = packed(cfg.data.dataset, cfg.data.fs_hz, cfg.data.simulate)
    table = with_split(tree, cfg.data.split, cfg.data.split_seed).records("train")
    table = table[table.report != ""]
    if not len(table):
        raise ValueError(f"{tree.root}: no training record has a report; SuPreME needs mimic-iv-ecg or ptb-xl")
    patients = np.random.default_rng(cfg.data.split_seed).permutation(np.unique(table.patient_id))
    kept = patients[: max(1, round(cfg.data.share * len(patients)))]
    return tree, table[table.patient_id.isin(kept)]


def extracted(cfg: Config, tree: Packed, table: pd.DataFrame) -> Labels:
    """Labels of the records by `data.labels`, kept beside the store."""
    if cfg.data.labels == "truth":
        if tree.source != "simulated":
            raise ValueError("data.labels=truth: only simulated records come with what was drawn")
        return truth_labels(tree.root, table.record_id.tolist(), cfg.extract.min_records)
    if cfg.data.labels != "extracted":
        raise ValueError(f"data.labels={cfg.data.labels!r}: extracted or truth")
    key = hash_of([table.record_id.tolist(), hash_of(vars(cfg.extract)), hash_of(vars(cfg.text))])
    return extract.run(cfg.extract, table.report.tolist(), tree.folder / f"labels-{key}", text_encoder(cfg))


def text_encoder(cfg: Config):
    """Function from texts to vectors [n, d_text] of the frozen text encoder.

    The small one is fitted on the reports of all training patients, whatever share of them is used, so that runs that
    are compared ask in the same words.
    """
    tree = packed(cfg.data.dataset, cfg.data.fs_hz, cfg.data.simulate)
    table = with_split(tree, cfg.data.split, cfg.data.split_seed).records("train")
    fit_on = sorted(set(table.report) - {""})
    return lambda texts: embed(texts, cfg.text, cache_root() / "text", fit_on=fit_on)


def labelled(cfg: Config) -> Pretraining:
    """The training parts of all tasks in place of reports: supervised from scratch, one logit per class slot.

    A record has labels for the tasks it is in; the other slots are masked. `data.share`: published few-label subsets.
    """
    downstream = prepare_tasks(cfg)
    start, parts = 0, []
    n_slots = sum(len(release.class_names()) for release in downstream.values())
    for number, release in enumerate(downstream.values()):
        records = release.packed.store.records
        y = np.zeros((len(records), n_slots), np.float32)
        mask = np.zeros((len(records), n_slots), bool)
        row_of = dict(zip(records.record_id, range(len(records)), strict=True))
        for task in release.tasks.values():
            slots = slice(start, start + len(task.classes))
            start += len(task.classes)
            few = task.few_label_rows(cfg.data.share) if cfg.data.share < 1 else task.part_rows("train")
            rows = [row_of[task.record_ids[i]] for i in few]
            y[rows, slots], mask[rows, slots] = task.labels[few], True
        rows = np.flatnonzero(mask.any(1))
        parts.append((np.full(len(rows), number), rows, records.patient_id.to_numpy()[rows], y[rows], mask[rows]))
    store_of, rows, patients, y, mask = (np.concatenate(p) for p in zip(*parts, strict=True))
    if not len(rows):
        raise ValueError(f"data.share {cfg.data.share:g}: no record of {', '.join(cfg.eval.tasks)} is left; raise it")
    key = hash_of([downstream_hash(downstream), cfg.data.share])
    none = np.zeros((1, 1), np.float32)  # no text takes part
    return Pretraining(
        stores=[release.packed.store for release in downstream.values()],
        store_of=store_of,
        rows=rows,
        patients=pd.factorize(patients)[0],
        terms=[],
        y=y,
        mask=mask,
        term_vectors=none,
        text_vectors=none,
        text_of=np.zeros(len(rows), int),
        split_sha256=key,
        data_hash=key,
        source=next(iter(downstream.values())).packed.source,
        counts={},
    )


def main(args: list[str] | None = None) -> None:
    cfg = parse(args)
    data = prepare(cfg)
    summary = {"source": data.source, "records": len(data.rows), "patients": int(data.patients.max()) + 1}
    summary |= {"terms": len(data.terms), "of the terminology's": len(terminology()), "data_hash": data.data_hash}
    print(json.dumps(summary | data.counts, default=str))
    for release in prepare_tasks(cfg).values():
        for name, task in release.tasks.items():
            print(f"\n{name} ({release.packed.source}), left out: {task.left_out}\n{task.counts().to_string()}")


if __name__ == "__main__":
    main()
