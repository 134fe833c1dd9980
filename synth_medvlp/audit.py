"""Images that look like bad ones (reference: A3): the largest cosine to any bad image, above a threshold.

The paper's 0.5 [recalled] is doubtful: it depends on the encoder. So the similarities are reported, how many images
each threshold would drop, and the threshold that drops a given share (2.6 % in the reference).
"""

import numpy as np

GRID = tuple(round(0.05 * k, 2) for k in range(0, 21))
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def max_similarity(features: np.ndarray, bad: np.ndarray, batch: int = 4096) -> np.ndarray:
    """float32 [n]: largest cosine of each row of features [n, d] to a row of bad [m, d], both L2-normalised; -1 where
    there is no bad one."""
    if not len(bad):
        return np.full(len(features), -1.0, np.float32)
    parts = [(features[i : i + batch] @ bad.T).max(axis=1) for i in range(0, len(features), batch)]
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


def threshold_for(similarity: np.ndarray, share: float) -> float:
    """The threshold above which this share of the images lies (rounded down to whole images)."""
    if not 0 <= share <= 1:
        raise ValueError(f"audit.share={share}: a share lies in 0..1")
    n = int(share * len(similarity))
    ordered = np.sort(similarity)
    return float(ordered[len(ordered) - n - 1]) if n < len(ordered) else float(np.nextafter(ordered[0], -2))


def near_bad(features: np.ndarray, bad: np.ndarray, threshold: float | None, share: float = 0.026,
             seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict]:  # fmt: skip
    """Which of the images that passed stage A2 look like bad ones.

    features: float32 [n, d] of all images; bad: bool [n]; threshold: of the cosine, None = the one that drops `share`
    of the images that are not bad. Returns (drop bool [n], never true of a bad image; max_sim float32 [n], 1 of bad
    ones; stats).
    """
    bad = np.asarray(bad, bool)
    rest, reference = features[~bad], features[bad]
    similarity = max_similarity(rest, reference)
    calibrated = threshold_for(similarity, share) if len(similarity) else 1.0
    used = calibrated if threshold is None else threshold
    dropped = similarity > used
    drop, max_sim = np.zeros(len(features), bool), np.ones(len(features), np.float32)
    drop[~bad], max_sim[~bad] = dropped, similarity
    rng = np.random.default_rng(seed)
    pairs = rng.integers(len(rest), size=(2, 2000)) if len(rest) else np.zeros((2, 0), int)
    random = (rest[pairs[0]] * rest[pairs[1]]).sum(axis=1)
    stats = {
        "images": len(rest), "bad": len(reference), "threshold": used, "dropped": int(dropped.sum()),
        "share": float(dropped.mean()) if len(rest) else 0.0, "calibrated_threshold": calibrated,
        "calibrated_share": share,
        "dropped_at": {f"{t:.2f}": int((similarity > t).sum()) for t in GRID},
        "similarity_to_bad": {"kept": quantiles(similarity[~dropped]), "dropped": quantiles(similarity[dropped])},
        "random_pairs": quantiles(random),
    }  # fmt: skip
    return drop, max_sim, stats


def quantiles(values: np.ndarray) -> dict:
    """Quantile -> value; {} of nothing."""
    return {f"{q:.2f}": float(np.quantile(values, q)) for q in _QUANTILES} if len(values) else {}
