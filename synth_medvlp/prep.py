"""Official layouts -> what training and evaluation read: `python -m synth_medvlp.prep --config ..`.

Pre-training: pairs of the regime (real ones: stage A1; others: all stages of synth_medvlp/generate.py). Downstream:
test hospitals. Everything is cached; a second call returns at once.
"""

import json
from dataclasses import dataclass

import numpy as np

from shared.runs.config import hash_of
from synth_medvlp.config import Config, parse
from synth_medvlp.data import REAL_OF, REAL_ONLY
from synth_medvlp.generate import audited, real, real_id, synthetic
from synth_medvlp.pairs import Pairs


@dataclass
class Pretraining:
    """Training pairs of one or two folders; keep: for each a mask bool [n], or None for all. real: the real pairs,
    whose texts a new tokeniser learns, so that all regimes read by one."""

    pairs: list[Pairs]
    keep: list[np.ndarray | None]
    real: Pairs
    data_hash: str
    split_sha256: str
    source: str


def prepare(cfg: Config) -> Pretraining:
    """The pairs of `data.regime`."""
    regime = cfg.data.regime
    pairs, keep = [], []
    if regime in (*REAL_ONLY, "mix"):
        pairs.append(real(cfg))
        keep.append(~audited(cfg).dropped if regime == "clean" else None)
    elif regime in REAL_OF:
        pairs.append(real(cfg))
        keep.append(real(cfg).table.id.isin(synthetic(cfg).table.id.map(real_id)).to_numpy())
    if regime not in (*REAL_ONLY, *REAL_OF):
        pairs.append(synthetic(cfg))
        keep.append(None)
    kept = [None if mask is None else np.packbits(mask).tolist() for mask in keep]
    data_hash = hash_of([[p.sha256 for p in pairs], kept])
    of_hospital, source = real(cfg), "simulated" if cfg.data.simulate else "mimic-cxr-jpg"
    return Pretraining(pairs, keep, of_hospital, data_hash, of_hospital.sha256, source)


def prepare_tasks(cfg: Config) -> None:
    """Test hospitals of `eval.tasks` and of all tasks with masks, packed."""
    from synth_medvlp.downstream import MASKED, load_tasks

    names = list(dict.fromkeys([*cfg.eval.tasks, *MASKED]))
    load_tasks(names, cfg.data.size_px, cfg.data.geometry, cfg.eval.simulate, cfg.eval.variant, cfg.eval.all_records)


def main(args: list[str] | None = None) -> None:
    cfg = parse(args)
    data = prepare(cfg)
    sizes = {
        p.table.source.iloc[0]: int(len(p) if k is None else k.sum())
        for p, k in zip(data.pairs, data.keep, strict=True)
    }
    print(json.dumps({"regime": cfg.data.regime, "source": data.source, "pairs": sizes, "data_hash": data.data_hash}))


if __name__ == "__main__":
    main()
