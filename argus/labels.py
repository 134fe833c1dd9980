"""What a ViT that was pre-trained on labels sees, without a language model: AUROC over the labels, and reports that
name those it is sure of. So a reader can tell what the ViT misses from what the language model does.
"""

import numpy as np
import pandas as pd
import torch

from argus.config import Config
from argus.data import PretrainDataset, read_volumes
from argus.prep import Prepared
from argus.pretrain import EncoderPretraining
from shared.metrics.classification import auroc_per_class
from shared.metrics.ct_findings import asserted

SAID = {  # label, in the order of CT_RATE_LABELS -> (what a report says of it, the finding that is read there)
    "Medical material": ("central venous catheter", "central_line"),
    "Arterial wall calcification": ("aortic calcification", "aortic_calcification"),
    "Cardiomegaly": ("cardiomegaly", "cardiomegaly"),
    "Pericardial effusion": ("pericardial effusion", "pericardial_effusion"),
    "Coronary artery wall calcification": ("coronary artery calcification", "coronary_calcification"),
    "Hiatal hernia": ("hiatal hernia", "hiatal_hernia"),
    "Lymphadenopathy": ("mediastinal lymphadenopathy", "lymphadenopathy"),
    "Emphysema": ("emphysema", "emphysema"),
    "Atelectasis": ("atelectasis", "atelectasis"),
    "Lung nodule": ("nodule", "nodule"),
    "Lung opacity": ("ground-glass opacity", "ground_glass"),
    "Pulmonary fibrotic sequela": ("fibrosis", "fibrosis"),
    "Pleural effusion": ("pleural effusion", "pleural_effusion"),
    "Mosaic attenuation pattern": ("mosaic attenuation", "mosaic_attenuation"),
    "Peribronchial thickening": ("peribronchial thickening", "peribronchial_thickening"),
    "Consolidation": ("consolidation", "consolidation"),
    "Bronchiectasis": ("bronchiectasis", "bronchiectasis"),
    "Interlobular septal thickening": ("interlobular septal thickening", "septal_thickening"),
}


@torch.inference_mode()
def label_scores(cfg: Config, prepared: Prepared, model: EncoderPretraining, records: pd.DataFrame) -> np.ndarray:
    """Logits [n, 18] of a supervised ViT for these records."""
    rows, size = records.row.to_numpy(), cfg.eval.batch
    batches = [read_volumes(prepared, rows[i : i + size], cfg.data.slice_only) for i in range(0, len(rows), size)]
    return torch.cat([model(volume=b.to(model.device)).logits.float().cpu() for b in batches]).numpy()


def label_auroc(cfg: Config, prepared: Prepared, model: EncoderPretraining) -> dict[str, float]:
    """Mean AUROC over CT-RATE's labels, on the first training and the test volumes, as many of both: far apart, the ViT
    has learnt its training volumes by heart."""
    test = PretrainDataset(prepared, "test", limit=cfg.data.n_test)
    found = {}
    for part, dataset in (("train", PretrainDataset(prepared, "train", limit=len(test))), ("test", test)):
        scores = label_scores(cfg, prepared, model, dataset.records)
        found[part] = round(float(np.nanmean(auroc_per_class(dataset.labels, scores))), 4)
    return found


def label_reports(cfg: Config, prepared: Prepared, model: EncoderPretraining) -> tuple[pd.DataFrame, list[str]]:
    """(Test records, a report of each): one sentence per label whose score is above a threshold.

    Thresholds are those at which the labels agree best (F1) with the findings of validation reports: of those of the
    source, or of all where it has none; infinity where they never state one. ValueError without validation records.
    """
    val, test = prepared.records("val"), prepared.records("test").head(cfg.data.n_test or None)
    if val.empty:
        raise ValueError("data: no validation record, which thresholds need; ask for more patients")
    findings = [finding for _, finding in SAID.values()]
    stated = np.array([[(f,) in found for f in findings] for found in map(asserted, val.target)])
    of_val, of_test = (label_scores(cfg, prepared, model, part) for part in (val, test))
    said = np.zeros((len(test), len(SAID)), bool)
    for source in test.source.unique():
        in_val, in_test = (part.source.to_numpy() == source for part in (val, test))
        in_val = in_val if in_val.any() else ~in_val
        for k in range(len(SAID)):
            said[in_test, k] = of_test[in_test, k] >= best_threshold(of_val[in_val, k], stated[in_val, k])
    words = np.array([f"There is {words}." for words, _ in SAID.values()])
    return test, [" ".join(words[row]) for row in said]


def best_threshold(scores: np.ndarray, stated: np.ndarray) -> float:
    """The score from which on calling a record positive gives the highest F1; infinity without positives. Both [n]."""
    if not stated.any():
        return np.inf
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * np.cumsum(stated[order]) / (np.arange(1, len(scores) + 1) + stated.sum())
    return float(scores[order][f1.argmax()])
