"""Findings on radiographs and CT: empty masks, patients in two parts, a rescale done twice."""

import numpy as np
import pandas as pd

from docs.audit.ecg import published
from docs.audit.row import LAPTOP, SEEDS, Row, compare, exact, need, over_draws, predictions
from shared.ct.ct_io import read_nifti
from shared.ct.simulate import simulate_patient
from shared.ecg.splits import split
from shared.metrics.classification import macro_auroc
from shared.metrics.interval import mean_scores
from shared.metrics.segmentation import metrics_of_rows
from shared.runs.config import data_root
from synth_medvlp.datasets import chestxray14, splits

MASKS = {"RSNA": "rsna", "SIIM": "siim", "COVID Rural": "covid-rural"}
NIH = "NIH ChestX-ray14, full label table"
CLIP_HU = (-1000.0, 1000.0)
OFFSETS_HU = (-1024.0, -8192.0)  # intercepts of the metadata table of CT-RATE
CROP = "totalseg-chest-ct/pulmonary/ct_cropped.nii.gz"
N_CT, N_SPLITS = 8, 20


def empty_masks() -> list[Row]:
    """Dice over all images, a correctly empty mask counting 1, against Dice over images that have a mask."""
    tables = [predictions("synth_medvlp", "ground-real-masks", seed) for seed in SEEDS]
    rows = []
    for label, task in MASKS.items():
        parts = [t[(t.task == task) & (t.input == "grounding:image")] for t in tables]
        metrics = [metrics_of_rows(part) for part in parts]
        patients = parts[0].patient
        sides = ([m[name] for m in metrics] for name in ("dice_published", "dice"))
        rows.append(compare(f"{label}, model: Dice", *sides, patients, LAPTOP))
        empty = metrics[0]["dice_all_empty"]
        on_masks = mean_scores("dice", 1, np.zeros(empty.n_items))  # an empty mask meets no pixel of a mask
        rows.append(compare(f"{label}, a mask that is always empty: Dice", [empty], [on_masks], patients, LAPTOP))
    return rows


# --- leaking splits ---------------------------------------------------------------------------------------------------


def leaking_splits() -> list[Row]:
    """How much of a validation part drawn by image, or by record, has its patient in training, and what that is worth.

    The score knows no image: it is the mean label of the patient's training images. A part drawn by patient leaves it
    nothing to know, hence 0.5.
    """
    root = need(data_root() / "nih-cxr", "`make data-nih-cxr`")
    index = chestxray14.read_index(root)
    shares = {"val": chestxray14.VALID_SHARE, "train": 1 - chestxray14.VALID_SHARE}
    parts = [splits.by_row(index.image_id.tolist(), shares, 0), splits.by_group(index, index.patient_id, shares, 0)]
    found = []
    labels = pd.DataFrame(index["labels"].to_list(), index=index.image_id)[list(chestxray14.CLASSES)]
    patient = index.set_index("image_id").patient_id
    for part in parts:
        train, val = labels.loc[part["train"]], labels.loc[part["val"]]
        memory = train.groupby(patient[train.index].to_numpy()).mean()
        of_val = patient[val.index]
        known = of_val.isin(memory.index).to_numpy()
        scores = memory.reindex(of_val).fillna(train.mean()).to_numpy()
        shared = mean_scores("shared", 1, known.astype(float))
        found.append(([shared, macro_auroc(val.to_numpy(), scores)], of_val.to_numpy()))
    (by_image, patients), (by_patient, _) = found
    names = ("our draw by image: validation images whose patient is in training, share",
             "our draw by image: a score that knows the patient and no image, macro AUROC")  # fmt: skip
    rows = []
    for what, image, fixed in zip(names, by_image, by_patient, strict=True):  # of parts without shared patients: exact
        constant = mean_scores("exact", 1, np.full(image.n_items, fixed.value))
        rows.append(compare(what, [image], [constant], patients, NIH))
    return [*rows, _ptb_xl()]


def _ptb_xl() -> Row:
    """The record-level split of MEIT's public code (90/10, a tenth of the tenth scored), on patients of PTB-XL."""
    table = pd.concat(published("ptb-xl-rhythm").values())[["ecg_id", "patient_id"]]
    table = table.rename(columns={"ecg_id": "record_id"})
    patient, shares = table.set_index("record_id").patient_id, []
    for seed in range(N_SPLITS):
        parts = split(table, "as_published", seed)
        shares.append(patient[parts["test"]].isin(patient[parts["train"]]).mean())
    what, value = "PTB-XL, record-level: test records whose patient is in training, share", over_draws(shares)
    return Row(what, value, exact(0), value, f"PTB-XL, {len(table):,} records with a rhythm statement")


# --- double rescale ---------------------------------------------------------------------------------------------------


def double_rescale() -> list[Row]:
    """HU once, against the offset of the metadata table applied again; then the window of the model."""
    volumes = {"simulated chest CTs": [simulate_patient("ct-rate", 0, k)[0].volume.hu for k in range(N_CT)]}
    crop = need(data_root() / CROP, "the contrast chest CT of TotalSegmentator, Wasserthal et al. 2023")
    volumes["one real contrast chest CT (crop)"] = [read_nifti(crop).hu]
    rows = []
    for data, all_hu in volumes.items():
        once = [_at_the_floor(hu) for hu in all_hu], [_spread(hu) for hu in all_hu]
        for offset in OFFSETS_HU:
            twice = [hu.astype(np.float32) + offset for hu in all_hu]
            for name, of, right in (("voxels at the lower bound, share", _at_the_floor, once[0]),
                                    ("standard deviation in the window, HU", _spread, once[1])):  # fmt: skip
                wrong = [of(hu) for hu in twice]
                sides = [[mean_scores("ct", 1, values)] for values in (wrong, right)]
                what = f"offset {offset:.0f} HU once more: {name}"
                if len(all_hu) > 1:
                    rows.append(compare(what, *sides, np.arange(len(all_hu)), f"{len(all_hu)} {data}"))
                else:
                    rows.append(Row(what, *map(exact, (wrong[0], right[0], wrong[0] - right[0])), data))
    return rows


def _at_the_floor(hu: np.ndarray) -> float:
    return float((hu <= CLIP_HU[0]).mean())


def _spread(hu: np.ndarray) -> float:
    return float(np.clip(hu, *CLIP_HU).std(dtype=np.float64))
