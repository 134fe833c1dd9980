"""Official layouts -> what training and evaluation read: `python -m kmerl.prep --config kmerl/configs/laptop.yaml`.

Pre-training: packed store, split, entity labels and one vector per distinct report. Downstream: the stores and labels
of the six tasks. What was packed, read and embedded is kept; labels are put together again.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from kmerl import extract
from kmerl.config import Config, parse
from kmerl.extract import Entities
from kmerl.text import embed
from shared.ecg.prepare import Prepared, packed, with_split
from shared.ecg.tasks import TASKS
from shared.runs.config import cache_root, hash_of
from shared.runs.tasks import prepare_tasks


@dataclass
class Pretraining:
    """Training part of the report data: row i of every member is the same record."""

    records: Prepared
    rows: np.ndarray  # int [n], rows of the store
    entities: Entities  # labels int8 [n, E]: 1 affirmed, 0 absent, -1 left out of the loss
    entity_vectors: np.ndarray  # float32 [E, d_text]
    text_vectors: np.ndarray  # float32 [n_distinct, d_text], one per distinct report
    text_of: np.ndarray  # int [n], row of text_vectors
    data_hash: str


def prepare(cfg: Config) -> Pretraining:
    """Pack, split, extract entities from the training reports, embed each distinct report and entity name once."""
    if cfg.model.method == "supervised":
        return labelled(cfg)
    tree = packed(cfg.data.dataset, cfg.data.fs_hz, cfg.data.simulate)
    split = with_split(tree, cfg.data.split, cfg.data.split_seed)
    table = split.records("train")
    table = table[table.report != ""].head(cfg.data.n_train or None)
    if not len(table):
        raise ValueError(f"{tree.root}: no training record has a report; K-MERL needs mimic-iv-ecg or ptb-xl")
    reports = table.report.tolist()
    key = hash_of([split.data_hash, cfg.data.n_train, asdict(cfg.extract)])
    entities = extract.run(cfg.extract, reports, tree.folder / f"entities-{key}")
    distinct, text_of = np.unique(np.array(reports, dtype=object), return_inverse=True)
    vectors = text_encoder(cfg, reports)
    return Pretraining(
        records=split,
        rows=table.row.to_numpy(),
        entities=entities,
        entity_vectors=vectors(entities.names),
        text_vectors=vectors(distinct.tolist()),
        text_of=text_of,
        data_hash=hash_of([split.data_hash, entities.names, hashlib.sha256(entities.labels.tobytes()).hexdigest()]),
    )


def labelled(cfg: Config) -> Pretraining:
    """The training part of the one task that is also scored, in place of reports: supervised from scratch."""
    if len(cfg.eval.tasks) != 1:
        raise ValueError(f"a supervised model trains on one task: name it alone in eval.tasks, not {cfg.eval.tasks}")
    name = cfg.eval.tasks[0]
    release = prepare_tasks(cfg)[TASKS[name].dataset]
    task, store = release.tasks[name], release.packed.store
    row_of = dict(zip(store.records.record_id, range(len(store)), strict=True))
    train = task.part_rows("train")
    ids = {part: [task.record_ids[i] for i in task.part_rows(part)] for part in ("train", "val", "test")}
    key = hash_of([list(release.packed.sha256.values()), ids, task.labels.tolist()])
    none = np.zeros((1, 1), np.float32)  # no text takes part
    return Pretraining(
        records=Prepared(store, ids, key, key, release.packed.source),
        rows=np.array([row_of[r] for r in ids["train"]]),
        entities=Entities([c.description for c in task.classes], task.labels[train].astype(np.int8), {}),
        entity_vectors=none,
        text_vectors=none,
        text_of=np.zeros(len(train), int),
        data_hash=key,
    )


def text_encoder(cfg: Config, reports: list[str]):
    """Function from texts to vectors [n, d_text] of the frozen text encoder; a small one is fitted on the reports."""
    fit_on = sorted(set(reports))
    return lambda texts: embed(texts, cfg.text, cache_root() / "text", fit_on=fit_on)


def main(args: list[str] | None = None) -> None:
    cfg = parse(args)
    data = prepare(cfg)
    summary = {"source": data.records.source, "records": len(data.rows), "data_hash": data.data_hash}
    summary |= {"entities": len(data.entities.names), "distinct reports": len(data.text_vectors)}
    print(json.dumps(summary))
    for release in prepare_tasks(cfg).values():
        for name, task in release.tasks.items():
            print(f"\n{name} ({release.packed.source}), left out: {task.left_out}\n{task.counts().to_string()}")


if __name__ == "__main__":
    main()
