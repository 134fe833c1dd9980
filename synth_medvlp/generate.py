"""The generation pipeline, stage by stage: `python -m synth_medvlp.generate --config synth_medvlp/configs/laptop.yaml`.

    A1 real pairs -> A2 screening -> A3 near-bad images -> A4 entities
    S1 requests -> S2, S3 FINDINGS and their check -> S4 IMPRESSION and its check -> S5, S6 images and their check -> S7

Every stage is a function of the config and keeps its result in a folder of CACHE_ROOT named by all that it depends on,
the code of the stage included:
a second call reads it, a killed one goes on from its manifest. Each folder holds `stats.json` with the statistics that
the reference asks for. Under `torchrun` or `accelerate launch` the processes share A2, A3 and S2 to S6, on one machine
or on several with a common CACHE_ROOT, each on its own GPU; the short stages are done by the first that comes. Without
a GPU the networks of the small tiers compute on one thread, so that what is made depends neither on the processes nor
on the cores.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from shared.locks import locked, write_whole
from shared.metrics.scorecard import dumps
from shared.runs.config import cache_root, hash_of
from shared.runs.processes import one_thread
from synth_medvlp import packing
from synth_medvlp.audit import near_bad
from synth_medvlp.config import Config, parse
from synth_medvlp.data import SET_OF
from synth_medvlp.datasets import mimic_cxr_jpg
from synth_medvlp.diffusion import generator
from synth_medvlp.entities import Pool, mine, ner
from synth_medvlp.image_check import check_images
from synth_medvlp.journal import worker
from synth_medvlp.pairs import Pairs, read_pairs, verify, write_pairs
from synth_medvlp.real import frontal_pairs
from synth_medvlp.sampler import OwnEntities, Sampler
from synth_medvlp.screening import Screener, features, screen, screener
from synth_medvlp.trees import tree
from synth_medvlp.writer import make, write_reports

STAGES = {
    "A1": "Real pairs", "A2": "Real images, screened", "A3": "Real images like those that A2 drops",
    "A4": "Entities of real reports", "S1": "Entities asked for", "S2": "FINDINGS, written", "S3": "FINDINGS, checked",
    "S4": "IMPRESSIONs, written and checked", "S5": "Images, drawn", "S6": "Images, checked", "S7": "Packed pairs",
}  # fmt: skip

# Files of this package that decide what a stage makes, beside what they are given.
_NER = ("lexicon.py", "lexicon.yaml", "dictionary_ner.py", "ner_model.py", "entities.py")
CODE = {
    "real": ("real.py", "pairs.py", "datasets/reading.py", "datasets/mimic_cxr_jpg.py"),
    "audit": ("screening.py", "audit.py", "quality.py", "mllm.py"),
    "pool": _NER,
    "reports": (*_NER, "sampler.py", "writer.py", "backends.py"),
    "images": ("diffusion.py", "oracle.py", "image_check.py"),
    "pairs": ("packing.py",),
}


def stage_folder(stage: str, *depends_on) -> Path:
    code = [(Path(__file__).parent / file).read_text(encoding="utf-8") for file in CODE.get(stage, ())]
    folder = cache_root() / "synth_medvlp" / f"{stage}-{hash_of([depends_on, code])}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep_stats(folder: Path, stats: dict) -> dict:
    """Of several processes the first one's, as times and replies are of one process."""
    file = folder / "stats.json"
    if worker()[0] == 0 or not file.exists():
        write_whole(file, dumps(stats))
    return stats


# --- A1 to A4 ---


def real(cfg: Config) -> Pairs:
    """A1: frontal images of the training part with their reports."""
    root, _ = tree(mimic_cxr_jpg.NAME, cfg.data.simulate)
    folder = stage_folder("real", root.name, cfg.data.size_px, cfg.data.geometry, cfg.data.split)
    with locked(folder / "lock"):
        pairs = frontal_pairs(root, folder, cfg.data.size_px, cfg.data.geometry, cfg.data.split)
    _verify_once(folder)
    keep_stats(folder, pairs.meta["made_from"]["stats"])
    return pairs


@dataclass
class Audit:
    """A2 and A3. dropped: bool [n], of the real pairs; bad_features: float32 [m, d] of the images that A2 found bad."""

    screener: Screener
    answers: np.ndarray
    dropped: np.ndarray
    max_sim: np.ndarray
    bad_features: np.ndarray
    threshold: float
    stats: dict


@one_thread()
def audited(cfg: Config) -> Audit:
    """A2: six questions about each real image. A3: what looks like an image that A2 found bad."""
    pairs, a = real(cfg), cfg.audit
    folder = stage_folder("audit", pairs.sha256, asdict(a))
    with locked(folder / "lock"):  # the laptop tier's is taught here
        asked = screener(a, cfg.data.size_px, folder)
    bad, answers, screened = screen(pairs.images, asked, a.rule, folder)
    found = features(pairs.images, asked, folder)
    near, max_sim, expanded = near_bad(found, bad, a.threshold, a.share)
    stats = keep_stats(folder, {"A2": screened, "A3": expanded})
    return Audit(asked, answers, bad | near, max_sim, found[bad], expanded["threshold"], stats)


def entity_pool(cfg: Config) -> tuple[Pool, dict]:
    """A4: typed entities of the reports whose images passed the audit, with their counts."""
    pairs, kept = real(cfg), ~audited(cfg).dropped
    folder = stage_folder("pool", pairs.sha256, hash_of(np.packbits(kept).tolist()), asdict(cfg.ner))
    file = folder / "pool.json"
    with locked(folder / "lock"):
        if not file.exists():
            texts = (pairs.table.findings + " " + pairs.table.impression)[kept].tolist()
            pool, stats = mine(texts, ner(cfg.ner), cfg.ner.min_count)
            keep_stats(folder, stats)
            write_whole(file, json.dumps(pool))
    pool = {kind: Counter(counts) for kind, counts in json.loads(file.read_text()).items()}
    return pool, json.loads((folder / "stats.json").read_text())


# --- S1 to S7 ---


def reports(cfg: Config) -> tuple[list[dict], dict]:
    """S1 to S4: records of all requests, accepted or not; of the regime real_image for the real reports' entities."""
    pool, _ = entity_pool(cfg)
    sampler, n = Sampler(pool, cfg.sampler), cfg.data.n_synthetic
    if SET_OF.get(cfg.data.regime) == "real_image":
        pairs = real(cfg)
        texts = (pairs.table.findings + " " + pairs.table.impression).tolist()
        sampler, n = OwnEntities(pool, cfg.sampler, ner(cfg.ner)(texts)), len(pairs)
    sections = [asdict(section) for section in (cfg.sampler, cfg.writer, cfg.ner)]
    folder = stage_folder("reports", pool, sections, n, type(sampler).__name__)
    records, stats = write_reports(sampler, n, make(cfg.writer), ner(cfg.ner), cfg.writer, folder)
    return records, keep_stats(folder, stats)


@one_thread()
def images(cfg: Config, prompts: list[str]) -> tuple[np.ndarray, list[dict], dict]:
    """S5 and S6: an image per prompt, drawn again where the check finds a defect; records say what was accepted."""
    audit, a = audited(cfg), cfg.audit
    made_by = generator(cfg.image, cfg.data.size_px)
    parts = [
        hash_of(prompts),
        asdict(cfg.image),
        made_by.name,
        asdict(a),
        cfg.data.size_px,
        packing.fingerprint(audit.bad_features),
    ]
    folder = stage_folder("images", *parts)
    made, records, stats = check_images(
        prompts,
        list(range(len(prompts))),
        made_by,
        audit.screener if cfg.image.check else None,
        audit.bad_features,
        cfg.image,
        folder,
        a.image_rule,
        audit.threshold,
    )
    return made, records, keep_stats(folder, stats)


def synthetic(cfg: Config) -> Pairs:
    """S7: the pairs of a regime that are not all real, packed with checksums.

    synthetic, mix: generated texts and images; real_text: images generated from the real reports; real_image: texts
    generated from the real reports' entities, beside their images.
    """
    asked = set_of(cfg) + str(cache_root())
    if asked not in _MADE or not _MADE[asked].is_dir():
        kind = SET_OF.get(cfg.data.regime, cfg.data.regime)
        made = {"real_text": _real_text, "real_image": _real_image}.get(kind, _generated)(cfg)
        _MADE[asked] = stage_folder_of(made)
        _verify_once(_MADE[asked])
    return read_pairs(_MADE[asked])


# Of this process, whose runs follow each other: all stages are read again, and all sums are checked, only once.
_MADE: dict[str, Path] = {}
_VERIFIED: set[Path] = set()


def _verify_once(folder: Path) -> None:
    """ValueError where a file of packed pairs is not the one that was written: its hash names the data of a run."""
    if folder not in _VERIFIED:
        verify(folder)
        _VERIFIED.add(folder)


def set_of(cfg: Config) -> str:
    """The same for two configs whose stages make the same pairs, whatever regime reads them."""
    d = cfg.data
    kind = SET_OF.get(d.regime, d.regime)
    stages = cfg.audit, cfg.ner, cfg.sampler, cfg.writer, cfg.image
    return repr([kind, d.simulate, d.size_px, d.geometry, d.split, d.n_synthetic, stages])


def _generated(cfg: Config) -> Pairs:
    records, _ = reports(cfg)
    accepted = [r for r in records if r["status"] == "accepted"]
    if not accepted:
        raise ValueError(f"none of {len(records)} reports passed the check: look at stats.json of stage reports")
    pictures, drawn, _ = images(cfg, [r["impression"] for r in accepted])
    table = pd.DataFrame({
        "id": [f"syn{r['id']}" for r in accepted], "findings": [r["findings"] for r in accepted],
        "impression": [r["impression"] for r in accepted],
        "clinical": [json.dumps(r["clinical"]) for r in accepted],
    })  # fmt: skip
    return _pack(cfg, "synthetic", pictures, drawn, table)


def _real_text(cfg: Config) -> Pairs:
    pairs = real(cfg)
    table = pairs.table.assign(id="txt-" + pairs.table.id)
    pictures, drawn, _ = images(cfg, table.impression.where(table.impression != "", table.findings).tolist())
    return _pack(cfg, "real_text", pictures, drawn, table)


def real_id(half_real: str) -> str:
    """Of the real pair that a pair of real_text or real_image has its half from."""
    return half_real.partition("-")[2]


def _real_image(cfg: Config) -> Pairs:
    pairs, (records, _) = real(cfg), reports(cfg)
    accepted = [r for r in records if r["status"] == "accepted"]
    rows = [r["id"] for r in accepted]
    table = pairs.table.iloc[rows].assign(
        id="img-" + pairs.table.id.iloc[rows], findings=[r["findings"] for r in accepted],
        impression=[r["impression"] for r in accepted],
    )  # fmt: skip
    drawn = [{"status": "accepted"}] * len(rows)
    return _pack(cfg, "real_image", pairs.images[rows], drawn, table)


@one_thread()
def _pack(cfg: Config, source: str, pictures: np.ndarray, drawn: list[dict], table: pd.DataFrame) -> Pairs:
    """Write what was accepted, once; the statistics of S7 beside it."""
    kept = np.array([d["status"] == "accepted" for d in drawn], bool)
    if not kept.any():
        raise ValueError(f"none of {len(kept)} generated images passed the check: look at stats.json of stage images")
    known = {"patient": table.id, "study": table.id, "view": "PA"}
    table = table.assign(**{k: v for k, v in known.items() if k not in table}, source=source)[kept]
    folder = stage_folder("pairs", source, hash_of(table.to_dict("list")), packing.fingerprint(pictures[kept]))
    (pool, _), audit = entity_pool(cfg), audited(cfg)
    with locked(folder / "lock"):
        if (folder / "meta.json").exists() and (folder / "stats.json").exists():
            return read_pairs(folder)
        made = {"stage": "S7", "set": source}
        pairs = write_pairs(folder, np.ascontiguousarray(pictures[kept]), table, made)
        stats = packing.statistics(pairs, real(cfg), pool, ner(cfg.ner), audit.screener)
        keep_stats(folder, {"texts": len(drawn), "accepted": int(kept.sum())} | stats)
    return pairs


# --- what came of it ---


def funnel(cfg: Config) -> list[list]:
    """Rows (stage, what, number) of all stages of the regime `synthetic`, pass rates with what they are shares of."""
    a1 = real(cfg).meta["made_from"]["stats"]
    audit, (_, a4), (records, text) = audited(cfg), entity_pool(cfg), reports(cfg)
    _, checks, image = images(cfg, [r["impression"] for r in records if r["status"] == "accepted"])
    failed = packing.failed_by_finding(checks, ner(cfg.ner))
    s7 = json.loads((stage_folder_of(synthetic(cfg)) / "stats.json").read_text())
    return packing.funnel_rows(a1, audit.stats, a4, text, image, failed, s7)


def stage_folder_of(pairs: Pairs) -> Path:
    return Path(pairs.images.filename).parent


def main(args: list[str] | None = None) -> None:
    cfg = parse(args)
    pairs = synthetic(cfg)
    if worker()[0]:
        return
    if SET_OF.get(cfg.data.regime, "synthetic") == "synthetic":  # the others lack stages; the other processes have left
        before = ""
        for stage, what, number in funnel(cfg):
            if stage != before:
                print(f"\n{stage}  {STAGES[stage]}")
            before = stage
            print(f"    {what:<84} {number:.3f}" if isinstance(number, float) else f"    {what:<84} {number:,}")
    print(f"{len(pairs)} pairs in {stage_folder_of(pairs)}")


if __name__ == "__main__":
    main()
