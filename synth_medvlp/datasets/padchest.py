"""PadChest (Bustos et al., Med Image Anal 2020): 160,868 images of 67,625 patients, Hospital San Juan de Alicante.

| file below the root | columns or content |
| --- | --- |
| PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv(.gz) | ImageID, ImageDir, StudyID, PatientID, Projection, PhotometricInterpretation_DICOM, Report (Spanish), MethodLabel (Physician, RNN_model), Labels (a printed Python list), ... |
| IMAGEDIR/IMAGEID | PNG, 16 bit; images that lie flat are found too |

MethodLabel Physician marks the human-annotated subset (n = 39,053) that the reference tests on. SEEN, RARE and UNSEEN are
MAVL's lists (Zero-shot_classification/test.py); UNSEEN holds RARE, as there. A label means presence; a class that is not
listed is absent, except that "unchanged" refers to an earlier study and "exclude" to an image without use.
The PNG are taken as stored: whether the release inverted MONOCHROME1 films is not documented; such rows are noted.
Serves zero-shot classification of the reference.
"""  # noqa: E501

import ast
from pathlib import Path

import pandas as pd

from synth_medvlp.datasets import splits, tables
from synth_medvlp.datasets.labels import check_protocol
from synth_medvlp.record import CxrReadError

NAME = "padchest"
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "MethodLabel", "Labels")
METHODS = {"Physician": "physician", "RNN_model": "model"}
UNKNOWN_CONTENT = ("exclude", "unchanged")
SEEN = (
    "normal", "pleural effusion", "pacemaker", "atelectasis", "pneumonia", "consolidation", "cardiomegaly", "emphysema",
    "nodule", "edema", "pneumothorax", "fracture", "mass", "catheter")  # fmt: skip
RARE = (
    "suture material", "sternotomy", "supra aortic elongation", "metal", "abnormal foreign body",
    "central venous catheter via jugular vein", "vertebral anterior compression", "diaphragmatic eventration",
    "calcified densities", "volume loss", "single chamber device", "vertebral compression", "bullas",
    "axial hyperostosis", "aortic button enlargement", "calcified granuloma", "clavicle fracture",
    "dual chamber device", "mediastinic lipomatosis", "esophagic dilatation", "azygoesophageal recess shift",
    "breast mass", "round atelectasis", "surgery humeral", "aortic aneurysm", "nephrostomy tube",
    "sternoclavicular junction hypertrophy", "pulmonary artery hypertension", "pleural mass", "empyema",
    "external foreign body", "respiratory distress", "total atelectasis", "ventriculoperitoneal drain tube",
    "right sided aortic arch", "aortic endoprosthesis", "cyst", "pulmonary venous hypertension",
    "double J stent")  # fmt: skip
UNSEEN = tuple(dict.fromkeys((
    "hypoexpansion basal", "non axial articular degenerative changes", "central venous catheter via jugular vein",
    "multiple nodules", "COPD signs", "calcified densities", "mediastinal shift", "hiatal hernia", "volume loss",
    "mediastinic lipomatosis", "central venous catheter", "ground glass pattern", "surgery lung", "miliary opacities",
    "sclerotic bone lesion", "pleural plaques", "osteosynthesis material", "calcified mediastinal adenopathy",
    "apical pleural thickening", "aortic elongation", "major fissure thickening", "callus rib fracture",
    "pulmonary venous hypertension", "cervical rib", "loculated pleural effusion", "flattened diaphragm",
    *RARE)))  # fmt: skip
CLASSES = tuple(dict.fromkeys((*SEEN, *UNSEEN)))


def read_index(root: Path) -> pd.DataFrame:
    """One row per usable row of the table, with INDEX_COLUMNS; source is "physician" or "model", who made the labels.

    findings = the Spanish report as released (one text, stemmed by the release). labels: the listed names, all 1.
    Left out and noted: "no labels" (blank Labels). Noted: "repeated row", "MONOCHROME1 film, PNG as stored".
    Raises CxrReadError: missing file, bad csv, bad label (no list of words, unknown MethodLabel), duplicate id.
    """
    root, notes = Path(root), tables.Notes()
    source = tables.table_path(root, TABLE)
    rows = tables.read_table(source, COLUMNS, optional=("PhotometricInterpretation_DICOM",))
    rows = tables.drop_repeats(rows, "ImageID", notes, source)
    blank = rows.Labels.str.strip().isin(("", "nan"))
    notes.add("no labels", rows.ImageID[blank])
    rows = rows[~blank].reset_index(drop=True)
    if "PhotometricInterpretation_DICOM" in rows:
        dark = rows.PhotometricInterpretation_DICOM.str.strip() == "MONOCHROME1"
        notes.add("MONOCHROME1 film, PNG as stored", rows.ImageID[dark])
    wrong = rows[~rows.MethodLabel.isin(list(METHODS))]
    if len(wrong):
        detail = f"{wrong.ImageID.iloc[0]}: MethodLabel {wrong.MethodLabel.iloc[0]!r}; {', '.join(METHODS)} expected"
        raise CxrReadError(source, "bad label", detail)
    dicts = {text: _labels(source, rows, text) for text in rows.Labels.unique()}
    here = tables.find_files(root, ".png")
    columns = {
        "image_id": rows.ImageID.str.removesuffix(".png"),
        "study_id": rows.StudyID,
        "patient_id": rows.PatientID,
        "path": [here.get(name, f"{folder}/{name}") for name, folder in rows[["ImageID", "ImageDir"]].to_numpy()],
        "view": rows.Projection.map(tables.view).replace("", "other"),
        "findings": [" ".join(text.split()) for text in rows.Report],
        "labels": [dicts[text] for text in rows.Labels],
        "source": rows.MethodLabel.map(METHODS),
    }
    return tables.make_index(columns, source, notes)


def split(index: pd.DataFrame, root: Path, protocol: str = "corrected", seed: int = 0) -> pd.DataFrame:
    """Images labelled by physicians; the others are in no part.

    as_published (MAVL): all are test, thresholds included. corrected: 20 % of the patients are validation, and images
    whose labels say "exclude" or "unchanged" are left out, since absence cannot be concluded from them.
    """
    check_protocol(protocol)
    read_by_people = index[index.source == "physician"]
    if protocol == "as_published":
        return splits.table(index, {"test": read_by_people.image_id}, "MethodLabel Physician")
    vague = read_by_people.labels.map(lambda record: any(name in record for name in UNKNOWN_CONTENT))
    usable = read_by_people[~vague.astype(bool)]
    parts = splits.by_group(usable, usable.patient_id, {"val": 0.2, "test": 0.8}, seed)
    return splits.table(index, parts, f"MethodLabel Physician, validation by patient, seed {seed}")


def _labels(source: Path, rows: pd.DataFrame, text: str) -> dict[str, int]:
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        where = rows.loc[rows.Labels == text, "ImageID"].iloc[0]
        raise CxrReadError(source, "bad label", f"{where}: {text!r}; a list of quoted words expected")
    return {name.strip(): 1 for name in names if name.strip()}
