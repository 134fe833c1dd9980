"""What the packed synthetic set is like (reference: S7), and the funnel from requests to pairs."""

from collections import Counter
from hashlib import sha256

import numpy as np

from synth_medvlp.entities import CLINICAL, RULES, Ner, Pool, entities, gini
from synth_medvlp.pairs import Pairs
from synth_medvlp.screening import Screener

_BLOCK = 2048


def fingerprint(images: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


def statistics(pairs: Pairs, real: Pairs, pool: Pool, ner: Ner, screener: Screener) -> dict:
    """Entities against the real pool (KL, Gini), repeated texts, and how near each image is to a real training image.

    nearest_real: quantiles of the largest cosine of an image to a real one; nearest_real_of_real: the same of real
    images to those of other patients, which is what memorisation would have to exceed.
    """
    texts = (pairs.table.findings + " " + pairs.table.impression).tolist()
    used: Counter = Counter()
    for mentions in ner(texts):
        used.update(entities(mentions))
    stats: dict = {"pairs": len(pairs), "repeated_texts": len(texts) - len(set(texts))}
    stats["repeated_prompts"] = int(pairs.table.impression.duplicated().sum())
    for kind in CLINICAL:
        names = sorted(set(pool.get(kind, ())) | {name for name, k in used if k == kind})
        ours, theirs = np.array([used[n, kind] for n in names]), np.array([pool[kind][n] for n in names])
        stats[kind] = {"kl_from_real": _kl(ours, theirs), "gini": gini(ours), "gini_real": gini(theirs)}
    mine, others = screener.features(np.asarray(pairs.images)), screener.features(np.asarray(real.images))
    stats["nearest_real"] = _quantiles(nearest(mine, others))
    patients = real.table.patient.to_numpy()
    stats["nearest_real_of_real"] = _quantiles(nearest(others, others, patients, patients))
    return stats


def nearest(a: np.ndarray, b: np.ndarray, a_of: np.ndarray | None = None, b_of: np.ndarray | None = None) -> np.ndarray:
    """Largest cosine of each row of a to a row of b (both L2-normalised), of another patient where those are given."""
    found = []
    for start in range(0, len(a), _BLOCK):
        block = a[start : start + _BLOCK] @ b.T
        if a_of is not None:
            block[a_of[start : start + _BLOCK, None] == b_of[None]] = -1
        found.append(block.max(1))
    return np.concatenate(found)


def _kl(ours: np.ndarray, theirs: np.ndarray) -> float:
    """KL(ours || real) in nats, with one more mention of each string on both sides, so that none is impossible."""
    p, q = (ours + 1) / (ours + 1).sum(), (theirs + 1) / (theirs + 1).sum()
    return float((p * np.log(p / q)).sum())


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {f"{q:g}": float(np.quantile(values, q)) for q in (0.05, 0.5, 0.95, 0.99)}


def _common(attempts: list[dict]) -> list[dict]:
    """The first attempts, as long as one in twenty of the texts gets there."""
    return [tried for tried in attempts if 20 * tried["n"] >= attempts[0]["n"]]


def funnel_rows(a1: dict, audit: dict, a4: dict, text: dict, image: dict, s7: dict) -> list[list]:
    """(stage, what, number) from the statistics of the stages; shares name what they are shares of."""
    rows: list[list] = [
        ["A1", "images of the training hospital", a1["images"]],
        ["A1", "frontal pairs kept", a1["pairs"]],
    ]
    rows += [["A1", f"left out: {reason}", n] for reason, n in a1["dropped"].items() if n]
    rows += [["A2", f"dropped by rule {audit['A2']['rule']}", audit["A2"]["dropped"]]]
    rows += [["A2", f"would be dropped by {rule}", n] for rule, n in audit["A2"]["bad_by_rule"].items()]
    rows += [["A3", f"dropped, cosine above {audit['A3']['threshold']:.3f} to a bad image", audit["A3"]["dropped"]]]
    rows += [["A4", f"distinct strings, {kind}", of["unique"]] for kind, of in a4["types"].items()]
    s1 = text["sampler"]
    rows += [
        ["S1", "requests drawn", s1["drawn"]],
        ["S1", "requests with a contradictory pair", s1["contradictory_requests"]],
    ]
    rows += [["S1", f"Gini of use, {kind} (real {s1['gini_real'][kind]:.2f})", s1["gini"][kind]] for kind in CLINICAL]
    for stage, name in (("findings", "S3"), ("impression", "S4")):
        for number, tried in enumerate(_common(text[stage]["pass_rate_by_attempt"]), 1):
            what = f"{stage.upper()} at attempt {number}: {tried['n']} texts, share that passes"
            rows += [[name, f"{what}, {rule}", tried[rule]] for rule in RULES]
    rows += [["S4", "reports accepted", text["accepted"]]]
    rows += [["S4", f"requests rejected: {reason}", n] for reason, n in text["rejected"].items()]
    made, check = image["S5"], image["S6"]
    rows += [["S5", "images drawn", made["made"]], ["S5", "seconds per image", made["seconds_per_image"]]]
    rows += [["S5", "prompts cut at the text encoder's limit", made["prompts_truncated"]]]
    for attempt in check["attempts"]:
        rows.append(
            ["S6", f"images that pass at attempt {attempt['attempt']}, of {attempt['images']}", attempt["rate"]]
        )
    rows += [["S6", f"failed on {name}", n] for name, n in check["failed_questions"].items() if n]
    rows += [["S6", "failed by similarity to a bad image", check["failed_similarity"]]]
    rows += [["S6", "prompts rejected for good", check["rejected"]]]
    rows += [["S7", "pairs", s7["pairs"]], ["S7", "repeated reports", s7["repeated_texts"]]]
    rows += [["S7", f"KL of entities from the real pool, {kind}, nats", s7[kind]["kl_from_real"]] for kind in CLINICAL]
    for key, what in (("nearest_real", "synthetic"), ("nearest_real_of_real", "real, of other patients")):
        rows.append(["S7", f"cosine to the nearest real training image, 95th percentile, {what}", s7[key]["0.95"]])
    return rows
