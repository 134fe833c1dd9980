"""What the packed synthetic set is like (reference: S7), and the funnel from requests to pairs."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from synth_medvlp.entities import CLINICAL, RULES, TYPES, Ner, Pool, entities, gini
from synth_medvlp.pairs import Pairs
from synth_medvlp.sampler import head_of
from synth_medvlp.screening import Screener

_BLOCK = 2048
_SHOWN = 8  # of the images that are nearest to a real one


def fingerprint(images: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


def statistics(pairs: Pairs, real: Pairs, pool: Pool, ner: Ner, screener: Screener) -> dict:
    """Entities against the real pool (KL, Gini), repeated texts, and how near each image is to a real training image.

    near_duplicates: reports as `near_duplicates` has them. nearest_real: quantiles of the largest cosine of an image to
    a real one; nearest_real_of_real: the same of real images to those of other patients, which is what memorisation
    would have to exceed; nearest_rows: (row, real row) of the images that are nearest to a real one.
    """
    texts = (pairs.table.findings + " " + pairs.table.impression).tolist()
    used: Counter = Counter()
    for mentions in ner(texts):
        used.update(entities(mentions))
    stats: dict = {"pairs": len(pairs), "repeated_texts": len(texts) - len(set(texts))}
    stats["repeated_prompts"] = int(pairs.table.impression.duplicated().sum())
    stats["near_duplicates"] = int(near_duplicates(texts).sum())
    for kind in TYPES:
        names = sorted(set(pool.get(kind, ())) | {name for name, k in used if k == kind})
        ours, theirs = np.array([used[n, kind] for n in names]), np.array([pool[kind][n] for n in names])
        stats[kind] = {"kl_from_real": _kl(ours, theirs), "gini": gini(ours), "gini_real": gini(theirs)}
    mine, others = screener.features(np.asarray(pairs.images)), screener.features(np.asarray(real.images))
    cosines, rows = nearest(mine, others)
    stats["nearest_real"] = _quantiles(cosines)
    patients = real.table.patient.to_numpy()
    stats["nearest_real_of_real"] = _quantiles(nearest(others, others, patients, patients)[0])
    stats["nearest_rows"] = [[int(i), int(rows[i])] for i in np.argsort(-cosines, kind="stable")[:_SHOWN]]
    return stats


def near_duplicates(texts: Sequence[str], n: int = 5, least: float = 0.8) -> np.ndarray:
    """bool [len(texts)]: texts that another comes before whose n-grams of words overlap by at least this Jaccard index.

    Exact, without comparing all pairs: two sets as alike as that share one of their rarest grams, |x| - ceil(least |x|)
    + 1 of each, so only texts that meet there are compared (prefix filtering). Shorter texts are one gram.
    """
    words = [re.findall(r"[a-z0-9]+", text.lower()) for text in texts]
    sets = [{tuple(w[i : i + n]) for i in range(max(len(w) - n, 0) + 1)} for w in words]
    often = Counter(gram for grams in sets for gram in grams)
    met: dict[tuple, list[int]] = defaultdict(list)
    found = np.zeros(len(texts), bool)
    for i, grams in enumerate(sets):
        rare = sorted(grams, key=lambda gram: (often[gram], gram))[: len(grams) - math.ceil(least * len(grams)) + 1]
        others = {j for gram in rare for j in met[gram]}
        found[i] = any(len(grams & sets[j]) >= least * len(grams | sets[j]) for j in others)
        for gram in rare:
            met[gram].append(i)
    return found


def nearest(
    a: np.ndarray, b: np.ndarray, a_of: np.ndarray | None = None, b_of: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Largest cosine of each row of a to a row of b (both L2-normalised), of another patient where those are given, and
    which row of b that is."""
    found, rows = [], []
    for start in range(0, len(a), _BLOCK):
        block = a[start : start + _BLOCK] @ b.T
        if a_of is not None:
            block[a_of[start : start + _BLOCK, None] == b_of[None]] = -1
        found.append(block.max(1))
        rows.append(block.argmax(1))
    return np.concatenate(found), np.concatenate(rows)


def failed_by_finding(checks: list[dict], ner: Ner, least: int = 30) -> list[tuple[str, int, float]]:
    """(finding, prompts that affirm it, share of their first images that the check refuses), the most refused first;
    checks: the records of S6. Findings of fewer than `least` prompts are left out."""
    tried: dict[str, list[bool]] = {}
    for check, mentions in zip(checks, ner([check["prompt"] for check in checks]), strict=True):
        for name in {head_of(name) for name, kind in entities(mentions) if kind in ("ABNORMALITY", "DISEASE")} - {""}:
            tried.setdefault(name, []).append(bool(check["tries"][0]["reason"]))
    found = [(name, len(failed), float(np.mean(failed))) for name, failed in tried.items() if len(failed) >= least]
    return sorted(found, key=lambda row: (-row[2], row[0]))


def _kl(ours: np.ndarray, theirs: np.ndarray) -> float:
    """KL(ours || real) in nats, with one more mention of each string on both sides, so that none is impossible."""
    p, q = (ours + 1) / (ours + 1).sum(), (theirs + 1) / (theirs + 1).sum()
    return float((p * np.log(p / q)).sum())


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {f"{q:g}": float(np.quantile(values, q)) for q in (0.05, 0.5, 0.95, 0.99, 1)}


# Keys of the writer's statistics -> what they are called.
_WRITTEN = {
    "prompts": "prompts", "tokens_in": "tokens in", "tokens_out": "tokens out", "mean_attempts": "attempts, mean"
}  # fmt: skip


def _common(attempts: list[dict]) -> list[dict]:
    """The first attempts, as long as one in twenty of the texts gets there."""
    return [tried for tried in attempts if 20 * tried["n"] >= attempts[0]["n"]]


def funnel_rows(
    a1: dict, audit: dict, a4: dict, text: dict, image: dict, failed: list[tuple[str, int, float]], s7: dict
) -> list[list]:
    """(stage, what, number) from the statistics of the stages; shares name what they are shares of. failed: of
    `failed_by_finding`, of which the most and the least refused are shown."""
    return [*_real_rows(a1, audit, a4), *_text_rows(text), *_image_rows(image, failed, s7)]


def _real_rows(a1: dict, audit: dict, a4: dict) -> list[list]:
    """A1 to A4."""
    a2, a3, types = audit["A2"], audit["A3"], a4["types"]
    rows: list[list] = [
        ["A1", "images of the training hospital", a1["images"]],
        ["A1", "frontal pairs kept", a1["pairs"]],
    ]
    rows += [["A1", f"left out: {reason}", n] for reason, n in a1["dropped"].items() if n]
    rows += [["A2", f"dropped by rule {a2['rule']}", a2["dropped"]]]
    rows += [["A2", f"would be dropped by {rule}", n] for rule, n in a2["bad_by_rule"].items()]
    rows += [["A2", f"share of YES, {question}", rate] for question, rate in a2["yes_rate"].items()]
    rows += [["A3", f"dropped, cosine above {a3['threshold']:.3f} to a bad image", a3["dropped"]]]
    rows += [["A4", f"distinct strings, {kind}", of["unique"]] for kind, of in types.items()]
    for n in (10, 100):
        what = f"share of the mentions that the {n} most frequent strings make up"
        rows += [["A4", f"{what}, {kind}", of["coverage"][str(n)]] for kind, of in types.items() if of["unique"] > n]
    rows += [["A4", f"strings with one mention, {kind}", of["singletons"]] for kind, of in types.items()]
    return [*rows, ["A4", "strings found under several types", a4["of_several_types"]]]


def _text_rows(text: dict) -> list[list]:
    """S1 to S4."""
    s1 = text["sampler"]
    rows: list[list] = [
        ["S1", "requests drawn", s1["drawn"]],
        ["S1", "requests with a contradictory pair", s1["contradictory_requests"]],
        ["S1", "draws refused as the request has the string already", s1["duplicate_rejections"]],
        ["S1", "draws that fell back to another type", sum(s1["fallback_draws"].values())],
    ]
    rows += [["S1", f"draws that fell back from {kind}", n] for kind, n in s1["fallback_draws"].items()]
    rows += [["S1", f"strings used up, {kind}", n] for kind, n in s1["exhausted_strings"].items() if n]
    if text["stopped"]:
        rows += [["S1", f"accepted reports of {text['asked']:,}: {text['stopped']}", text["accepted"]]]
    gone = ", ".join(s1["exhausted_types"]) or "none"
    rows += [["S1", f"types used up: {gone}", len(s1["exhausted_types"])]]
    rows += [["S1", f"Gini of use, {kind} (real {s1['gini_real'][kind]:.2f})", s1["gini"][kind]] for kind in CLINICAL]
    for stage, wrote, name in (("findings", "S2", "S3"), ("impression", "S4", "S4")):
        of, title = text[stage], stage.upper()
        rows += [[wrote, f"{title}: {what}", of[key]] for key, what in _WRITTEN.items()]
        rows += [[wrote, f"{title}: unusable, {error}", n] for error, n in of["errors"].items() if n]
        for number, tried in enumerate(_common(of["pass_rate_by_attempt"]), 1):
            what = f"{title} at attempt {number}: {tried['n']} texts, share that passes"
            rows += [[name, f"{what}, {rule}", tried[rule]] for rule in RULES]
        rows += [[name, f"{title}: {side}, {kind}", n] for side in ("missing", "extra")
                 for kind, n in of[side]["per_type"].items() if n]  # fmt: skip
        rows += [[name, f"{title}: type flips, {flip}", n] for flip, n in list(of["type_flips"].items())[:5]]
    rows += [["S4", "share of IMPRESSIONs longer than the image model reads", text["impression"]["over_prompt_tokens"]]]
    rows += [["S4", "FINDINGS written anew as no IMPRESSION passed", text["sent_back"]]]
    rows += [["S4", "reports accepted", text["accepted"]]]
    rows += [["S4", "seconds per accepted report", text["seconds_per_report"]]]
    return rows + [["S4", f"requests rejected: {reason}", n] for reason, n in text["rejected"].items()]


def _image_rows(image: dict, failed: list[tuple[str, int, float]], s7: dict) -> list[list]:
    """S5 to S7."""
    rows: list[list] = []
    made, check = image["S5"], image["S6"]
    rows += [["S5", "images drawn", made["made"]], ["S5", "seconds per image", made["seconds_per_image"]]]
    rows += [["S5", "prompts cut at the text encoder's limit", made["prompts_truncated"]]]
    for attempt in check["attempts"]:
        rows.append(
            ["S6", f"images that pass at attempt {attempt['attempt']}, of {attempt['images']}", attempt["rate"]]
        )
    rows += [["S6", f"share of YES, {name}", rate] for name, rate in check["answers"]["yes_rate"].items()]
    rows += [["S6", f"failed on {name}", n] for name, n in check["failed_questions"].items() if n]
    rows += [["S6", "failed by similarity to a bad image", check["failed_similarity"]]]
    ends = failed[:3] + failed[3:][-3:]
    rows += [["S6", f"first images that fail, of {n} prompts that affirm {what}", share] for what, n, share in ends]
    rows += [["S6", "prompts rejected for good", check["rejected"]]]
    rows += [["S7", "pairs", s7["pairs"]], ["S7", "repeated reports", s7["repeated_texts"]]]
    rows += [["S7", "reports that share 80 % of their 5-grams with one before", s7["near_duplicates"]]]
    rows += [["S7", f"KL of entities from the real pool, {kind}, nats", s7[kind]["kl_from_real"]] for kind in TYPES]
    for key, what in (("nearest_real", "synthetic"), ("nearest_real_of_real", "real, of other patients")):
        for q, words in (("0.95", "95th percentile"), ("0.99", "99th percentile"), ("1", "largest")):
            rows.append(["S7", f"cosine to the nearest real training image, {words}, {what}", s7[key][q]])
    return rows
