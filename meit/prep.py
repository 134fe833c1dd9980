"""Official layout -> packed store + splits + manifest: `python -m meit.prep --config meit/configs/laptop.yaml`.

With `data.simulate` the tree is first written by the simulator, in the official layout, under CACHE_ROOT; the same
loaders then read it. Everything is cached: a second call returns at once.
"""

import json

from meit.config import Config, parse
from shared.ecg.prepare import Prepared, packed, with_split


def prepare(cfg: Config) -> Prepared:
    """Simulate (where asked), pack and split; from the cache where done before."""
    data = cfg.data
    tree = packed(data.dataset, data.fs_hz, data.simulate)
    if not tree.store.records.report.str.len().any():
        raise ValueError(f"{tree.root}: no record has a report; MEIT needs mimic-iv-ecg or ptb-xl")
    return with_split(tree, data.split, data.split_seed)


def main(args: list[str] | None = None) -> Prepared:
    cfg: Config = parse(args)
    prepared = prepare(cfg)
    counts = {part: len(ids) for part, ids in prepared.splits.items()}
    summary = {"source": prepared.source, "records": len(prepared.store), "data_hash": prepared.data_hash, **counts}
    print(json.dumps(summary))
    return prepared


if __name__ == "__main__":
    main()
