"""Which leads a model may see, and what stands in place of the others.

Serves the partial-lead evaluation (reference: Evaluation protocols, "Partial leads"; Controls). K-MERL drops the tokens
of missing leads and needs no fill; MERL needs 12 rows, so missing ones are filled in mV, before the model normalises.
Everything here is NumPy: signals float [B, 12, T] in mV, leads bool [12], rows in the order of LEADS.
"""

from collections.abc import Sequence
from math import comb

import numpy as np

from shared.ecg.record import LEADS

LIMB = ("I", "II", "III", "aVR", "aVL", "aVF")
PRECORDIAL = ("V1", "V2", "V3", "V4", "V5", "V6")
# The clinical sets (reference: Partial leads; the paper's own combinations are not known).
CLINICAL_SETS: dict[str, tuple[str, ...]] = {
    "I": ("I",),
    "II": ("II",),
    "I+II": ("I", "II"),
    "I+II+V2": ("I", "II", "V2"),
    "I+II+III+V2": ("I", "II", "III", "V2"),
    "limb": LIMB,
    "I+II+V1-V6": ("I", "II", *PRECORDIAL),  # the 8 independent leads
    "12 leads": LEADS,
}
# Limb leads from (I, II), rows in the order of LIMB: Einthoven (II = I + III) and Goldberger (augmented leads). Any two
# rows are linearly independent, so any two limb leads determine the other four.
FROM_I_AND_II = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])
FILLS = ("zero", "minimum", "record_mean", "median", "lead_mean")
EINTHOVEN = "einthoven"


def lead_mask(leads: Sequence[str]) -> np.ndarray:
    """Names -> bool [12]. Case does not matter. ValueError for none, an unknown or a repeated name."""
    rows = {name.lower(): i for i, name in enumerate(LEADS)}
    unknown = [name for name in leads if name.lower() not in rows]
    if unknown or not leads:
        raise ValueError(f"leads: {', '.join(unknown) or 'none'} given; choose among {', '.join(LEADS)}")
    chosen = [rows[name.lower()] for name in leads]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"leads: a name occurs twice in {', '.join(leads)}")
    return np.isin(np.arange(len(LEADS)), chosen)


def random_sets(per_count: int = 10, seed: int = 0, counts: Sequence[int] = range(1, 12)) -> dict[str, tuple[str, ...]]:
    """`per_count` different random sets for every number of leads: "3-random-0" -> names in the order of LEADS.

    The sets of one count depend on seed and count only. ValueError where there are fewer different sets than asked for.
    """
    sets = {}
    for count in counts:
        if not 1 <= count <= len(LEADS) or per_count > comb(len(LEADS), count):
            raise ValueError(f"{per_count} different sets of {count} leads do not exist: ask for fewer sets per count")
        rng = np.random.default_rng([seed, count])
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < per_count:
            drawn[tuple(sorted(rng.choice(len(LEADS), count, replace=False).tolist()))] = None
        sets |= {f"{count}-random-{k}": tuple(LEADS[i] for i in rows) for k, rows in enumerate(drawn)}
    return sets


def lead_means(signal_mv: np.ndarray) -> np.ndarray:
    """Mean of each lead [12] in mV over training records [B, 12, T]: the `training_mean` of fill "lead_mean"."""
    return np.asarray(signal_mv).mean(axis=(0, 2), dtype=np.float64)


def fill(signal_mv: np.ndarray, leads: np.ndarray, how: str, training_mean: np.ndarray | None = None) -> np.ndarray:
    """A copy [B, 12, T] in which what was in the missing leads is replaced; available leads are left as they are.

    leads: bool [12], True = available. how: one of FILLS, or "einthoven+<one of FILLS>", which first completes the limb
    leads wherever two of them are available; the rest is filled. Each fill is constant in time, for the filled row must
    carry no waveform:
    zero         0 mV, near the isoelectric line of a high-passed ECG
    minimum      least available value of the record: what a zero AFTER min-max normalisation amounts to
    record_mean  mean of all available samples of the record, one number per record
    median       their median, the best guess of the isoelectric line
    lead_mean    mean of that lead over the training set, `training_mean` [12] in mV (`lead_means`)
    Errors: ValueError for an unknown fill, wrong shapes, no available lead, or a missing training_mean.
    """
    signal_mv, leads = _checked(signal_mv, leads)
    first, _, rest = how.rpartition("+")
    if rest not in FILLS or first not in ("", EINTHOVEN):
        raise ValueError(f"fill {how!r}: use one of {', '.join(FILLS)}, or {EINTHOVEN}+ and one of them")
    filled, missing = signal_mv.copy(), ~leads
    if not missing.any():
        return filled
    seen = signal_mv[:, leads]
    if rest == "lead_mean":
        if training_mean is None or np.shape(training_mean) != (len(LEADS),):
            raise ValueError("fill lead_mean: give training_mean [12], the mean of each lead in mV (`lead_means`)")
        filled[:, missing] = np.asarray(training_mean)[missing, None]
    elif rest != "zero":
        statistic = {"minimum": np.min, "record_mean": np.mean, "median": np.median}[rest]
        filled[:, missing] = statistic(seen, axis=(1, 2))[:, None, None]
    else:
        filled[:, missing] = 0.0
    rows = np.flatnonzero(derivable(leads))
    if first == EINTHOVEN and len(rows):
        filled[:, rows] = derive_limb_leads(signal_mv, leads)[:, rows]
    return filled


def derivable(leads: np.ndarray) -> np.ndarray:
    """Rows (bool [12]) that are missing but follow exactly from the available limb leads; none with fewer than two."""
    limb = np.isin(LEADS, LIMB)
    return limb & ~leads if (leads & limb).sum() >= 2 else np.zeros(len(LEADS), dtype=bool)


def derive_limb_leads(signal_mv: np.ndarray, leads: np.ndarray) -> np.ndarray:
    """The six limb leads [B, 6, T] by Einthoven's and Goldberger's equations from those available, at least two.

    With more than two, (I, II) are their least-squares solution: recorded leads agree up to rounding only.
    """
    seen = np.flatnonzero(leads[: len(LIMB)])
    if len(seen) < 2:
        raise ValueError(f"two limb leads determine the others; available: {[LIMB[i] for i in seen] or 'none'}")
    weights = FROM_I_AND_II @ np.linalg.pinv(FROM_I_AND_II[seen])  # [6, number seen]
    return np.einsum("ls,bst->blt", weights.astype(signal_mv.dtype), signal_mv[:, seen])


def _checked(signal_mv: np.ndarray, leads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    signal_mv, leads = np.asarray(signal_mv), np.asarray(leads)
    if signal_mv.ndim != 3 or signal_mv.shape[1] != len(LEADS):
        raise ValueError(f"signal_mv must be [B, 12, T] with rows in the order of LEADS, not {signal_mv.shape}")
    if leads.shape != (len(LEADS),) or leads.dtype != bool or not leads.any():
        raise ValueError("leads must be bool [12] with at least one True (see `lead_mask`)")
    return signal_mv, leads
