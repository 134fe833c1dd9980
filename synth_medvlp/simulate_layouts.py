"""Files of the simulated hospitals in the official layouts of the data sets that they stand in for.

| data set | images | tables |
| --- | --- | --- |
| mimic-cxr-jpg | files/pNN/pSUBJECT/sSTUDY/DICOM.jpg; report files/pNN/pSUBJECT/sSTUDY.txt | mimic-cxr-2.0.0-metadata, -split, -chexpert .csv.gz |
| chexpert | {train,valid,test}/patientNNNNN/studyN/viewN_{frontal,lateral}.jpg | train.csv, valid.csv (Path, Sex, Age, Frontal/Lateral, AP/PA, 14 labels), test_labels.csv (Path, 14 labels) |
| nih-cxr | images_001/images/PPPPPPPP_FFF.png | Data_Entry_2017_v2020.csv, BBox_List_2017.csv (on 1024 px), train_val_list.txt, test_list.txt |
| padchest | 0/IMAGEID.png, 16 bit | PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv |
| rsna-pneumonia | stage_2_train_images/ID.dcm | stage_2_train_labels.csv (boxes on 1024 px), stage_2_detailed_class_info.csv, pneumonia-challenge-dataset-mappings_2018.json |
| siim-acr | dicom-images-train/STUDY/SERIES/ID.dcm | train-rle.csv (ImageId, " EncodedPixels": relative, column-major, on 1024 px) |
| covidx-cxr2 | {train,val,test}/FILE.png | train.txt, val.txt, test.txt: id file class source |
| covid-rural | jpgs/STEM.jpg, pngs_masks/STEM.png | none |

Images have the size asked for instead of the official one; boxes and run lengths refer to 1024 px, as in the releases.
Beside them lies truth.parquet, one row per image: image_id (the loaders'), patient, view, defect, findings with side,
place and extent, boxes and masks in pixels of the stored image, what the report mentions.
"""  # noqa: E501

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import label as components

from synth_medvlp.datasets.labels import CHEXPERT_CLASSES
from synth_medvlp.datasets.masks import encode_rle
from synth_medvlp.lesions import box
from synth_medvlp.simulate import HOSPITALS, LEVELS, Cxr, simulate_patient
from synth_medvlp.simulate_reports import NEGATIVE, POSITIVE, UNCERTAIN
from synth_medvlp.simulate_vocabulary import CHEXPERT, CHEXPERT_DEVICES, NIH_BOXES, nih_labels, padchest_labels

FRAME = 1024  # pixels that boxes and run lengths of the releases refer to
CHUNK = 16  # patients written together
_MIMIC_META = (
    "dicom_id subject_id study_id PerformedProcedureStepDescription ViewPosition Rows Columns StudyDate StudyTime "
    "ProcedureCodeSequence_CodeMeaning ViewCodeSequence_CodeMeaning PatientOrientationCodeSequence_CodeMeaning"
).split()
_PADCHEST_COLUMNS = (
    "ImageID ImageDir StudyDate_DICOM StudyID PatientID PatientBirth PatientSex_DICOM ViewPosition_DICOM Projection "
    "MethodProjection Pediatric Modality_DICOM Manufacturer_DICOM PhotometricInterpretation_DICOM "
    "PixelRepresentation_DICOM PixelAspectRatio_DICOM SpatialResolution_DICOM BitsStored_DICOM WindowCenter_DICOM "
    "WindowWidth_DICOM Rows_DICOM Columns_DICOM XRayTubeCurrent_DICOM Exposure_DICOM ExposureInuAs_DICOM ExposureTime "
    "RelativeXRayExposure_DICOM ReportID Report MethodLabel Labels Localizations LabelsLocalizationsBySentence "
    "labelCUIS LocalizationsCUIS"
).split()


# ------------------------------------------------------------------------------------------------------- labels


def chexpert_labels(status: dict) -> dict:
    """finding -> positive | uncertain | negative  ->  the 14 CheXpert classes: 1.0, -1.0, 0.0 or "" (blank)."""
    value = {POSITIVE: 1.0, UNCERTAIN: -1.0, NEGATIVE: 0.0}
    row = dict.fromkeys(CHEXPERT_CLASSES, "")
    for name, said in status.items():
        for column in CHEXPERT.get(name, ()):
            known = row[column]
            row[column] = value[said] if known == "" or abs(value[said]) > abs(known) or value[said] == 1 else known
    if all(said == NEGATIVE or name in CHEXPERT_DEVICES for name, said in status.items()):
        row["No Finding"] = 1.0
    return row


def _read_by_people(cxr: Cxr) -> dict:
    """The 14 classes as radiologists label an image: all of them, 1.0 or 0.0."""
    row = chexpert_labels(dict.fromkeys(cxr.names, POSITIVE))
    return {name: 1.0 if value == 1.0 else 0.0 for name, value in row.items()}


# -------------------------------------------------------------------------------------------------------- files


def _hex(cxr: Cxr, n: int) -> str:
    return np.random.default_rng(cxr.wording).bytes(n // 2).hex()


def _save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def _save_dicom(cxr: Cxr, path: Path, uid: str) -> None:
    """8-bit MONOCHROME2 DICOM with the view in its header; stored as it is, where the releases use JPEG."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture
    meta.MediaStorageSOPInstanceUID = uid
    meta.ImplementationClassUID = "1.2.826.0.1.3680043.8.498.1"
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid
    ds.PatientID, ds.PatientSex, ds.PatientAge = str(cxr.patient_id), "M" if cxr.male else "F", f"{int(cxr.age):03d}Y"
    ds.Modality, ds.ViewPosition, ds.BodyPartExamined = "CR", cxr.view, "CHEST"
    ds.Rows, ds.Columns = cxr.image.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = cxr.image.tobytes() + b"\0" * (cxr.image.size % 2)
    ds.save_as(path, enforce_file_format=True)


def _on_frame(mask: np.ndarray) -> np.ndarray:
    """A mask [n, n] on FRAME x FRAME pixels, nearest neighbour."""
    at = (np.arange(FRAME) + 0.5) * len(mask) / FRAME
    return mask[at.astype(int)[:, None], at.astype(int)]


def _scaled(at, n: int) -> list[float]:
    return [round(value * FRAME / n, 3) for value in at]


def _parts(mask: np.ndarray) -> list[tuple]:
    """Boxes of the separate pieces of a mask, specks left out."""
    pieces, n = components(mask, np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel())
    return [box(pieces == k) for k in range(1, n + 1) if sizes[k] >= max(3, 0.15 * sizes[1:].max())]


# ---------------------------------------------------------------------------------- one image of each data set
# Each writes the image (k-th of its patient) and returns {"image_id", "path", "rows": {table: [row, ...]}}.


def _mimic(cxr: Cxr, k: int, root: Path) -> dict:
    subject, rng = 10_000_032 + 37 * cxr.patient_id, np.random.default_rng(cxr.wording)
    study = 50_000_014 + 8 * cxr.patient_id + cxr.study
    words = _hex(cxr, 40)
    dicom = "-".join(words[i : i + 8] for i in range(0, 40, 8))
    folder = f"files/p{str(subject)[:2]}/p{subject}/s{study}"
    _save(cxr.image, root / folder / f"{dicom}.jpg")
    report = cxr.report.text(cxr.view if cxr.view in ("PA", "AP") else "PA")
    if cxr.view != "LATERAL":
        (root / f"{folder}.txt").write_text(report)
    meta = dict.fromkeys(_MIMIC_META, "") | {
        "dicom_id": dicom, "subject_id": subject, "study_id": study, "Rows": len(cxr.image),
        "Columns": len(cxr.image), "ViewPosition": cxr.view, "StudyDate": 21_500_101 + 100 * int(rng.integers(12)),
        "StudyTime": round(float(rng.uniform(0, 235_959)), 3),
        "PerformedProcedureStepDescription": "CHEST (PORTABLE AP)" if cxr.view == "AP" else "CHEST (PA AND LAT)",
        "ViewCodeSequence_CodeMeaning": {"AP": "antero-posterior", "PA": "postero-anterior"}.get(cxr.view, "lateral"),
        "PatientOrientationCodeSequence_CodeMeaning": "Erect",
    }  # fmt: skip
    part = {0: "validate", 1: "test"}.get(cxr.patient_id % 20, "train")
    split = {"dicom_id": dicom, "study_id": study, "subject_id": subject, "split": part}
    labels = {"subject_id": subject, "study_id": study} | chexpert_labels(cxr.report.mentions)
    rows = {"metadata": [meta], "split": [split], "chexpert": [labels] if cxr.view != "LATERAL" else []}
    return {"image_id": dicom, "path": f"{folder}/{dicom}.jpg", "rows": rows}


def _chexpert(cxr: Cxr, k: int, root: Path) -> dict:
    part = {0: "valid", 1: "test", 2: "test"}.get(cxr.patient_id % 10, "train")
    lateral = cxr.view == "LATERAL"
    kind = "lateral" if lateral else "frontal"
    name = f"{part}/patient{cxr.patient_id + 1:05d}/study{cxr.study + 1}/view{1 + lateral}_{kind}"
    _save(cxr.image, root / f"{name}.jpg")
    labels = chexpert_labels(cxr.report.mentions) if part == "train" else _read_by_people(cxr)
    row = {"Path": f"CheXpert-v1.0-small/{name}.jpg"}
    if part != "test":
        row |= {"Sex": "Male" if cxr.male else "Female", "Age": int(cxr.age), "Frontal/Lateral": kind.capitalize(),
                "AP/PA": "" if lateral else cxr.view}  # fmt: skip
    return {"image_id": name, "path": f"{name}.jpg", "rows": {part: [row | labels]}}


def _nih(cxr: Cxr, k: int, root: Path) -> dict:
    name, n = f"{cxr.patient_id + 1:08d}_{k:03d}", len(cxr.image)
    path = f"images_001/images/{name}.png"
    _save(cxr.image, root / path)
    labels = nih_labels(cxr.findings)
    row = {
        "Image Index": f"{name}.png", "Finding Labels": "|".join(sorted(labels)) or "No Finding", "Follow-up #": k,
        "Patient ID": cxr.patient_id + 1, "Patient Age": int(cxr.age), "Patient Gender": "M" if cxr.male else "F",
        "View Position": cxr.view, "OriginalImage[Width": 2500, "Height]": 2048,
        "OriginalImagePixelSpacing[x": 0.168, "y]": 0.168,
    }  # fmt: skip
    part = "test" if cxr.patient_id % 4 == 0 else "train_val"
    boxes = []
    for finding in cxr.findings if part == "test" else ():
        for label_ in nih_labels([finding]):
            if label_ in NIH_BOXES and finding.name in cxr.boxes:
                boxes.append([f"{name}.png", NIH_BOXES[label_], *_scaled(cxr.boxes[finding.name], n)])
    return {"image_id": name, "path": path, "rows": {"entries": [row], "boxes": boxes, part: [f"{name}.png"]}}


def _padchest(cxr: Cxr, k: int, root: Path) -> dict:
    rng = np.random.default_rng(cxr.wording)
    number = 216_840_111_366_964_012_373_310_883_942 + cxr.patient_id
    name = f"{number}{2_009_100_000_000 + 100 * cxr.study + k}_00-{cxr.patient_id % 1000:03d}-{k:03d}"
    _save(cxr.image.astype(np.uint16), root / f"0/{name}.png")
    labels = padchest_labels(cxr.findings) or ["normal"]
    projection = {"LATERAL": "L", "AP": "AP"}.get(cxr.view, "PA")
    row = dict.fromkeys(_PADCHEST_COLUMNS, "") | {
        "ImageID": f"{name}.png", "ImageDir": 0, "StudyDate_DICOM": 20_140_915, "StudyID": f"{number}{cxr.study}",
        "PatientID": number, "PatientBirth": 2014 - int(cxr.age), "PatientSex_DICOM": "M" if cxr.male else "F",
        "ViewPosition_DICOM": "LATERAL" if projection == "L" else "POSTEROANTERIOR", "Projection": projection,
        "MethodProjection": "Manual review of DICOM fields", "Pediatric": "No", "Modality_DICOM": "DX",
        "PhotometricInterpretation_DICOM": "MONOCHROME2", "BitsStored_DICOM": 12, "Rows_DICOM": len(cxr.image),
        "Columns_DICOM": len(cxr.image), "ReportID": 4_765_777 + 8 * cxr.patient_id + cxr.study,
        "Report": " . ".join(labels), "MethodLabel": "Physician" if rng.random() < 0.7 else "RNN_model",
        "Labels": str(labels), "Localizations": "[]",
    }  # fmt: skip
    return {"image_id": name, "path": f"0/{name}.png", "rows": {"labels": [row]}}


def _rsna(cxr: Cxr, k: int, root: Path) -> dict:
    words = _hex(cxr, 32)
    name, n = "-".join((words[:8], words[8:12], words[12:16], words[16:20], words[20:])), len(cxr.image)
    path = f"stage_2_train_images/{name}.dcm"
    _save_dicom(cxr, root / path, f"1.2.276.0.7230010.3.1.4.8323329.{cxr.patient_id + 1}.{k + 1}")
    boxes = _parts(cxr.masks["consolidation"]) if "consolidation" in cxr.boxes else []
    rows = [[name, *_scaled(at, n), 1] for at in boxes] or [[name, "", "", "", "", 0]]
    kind = "Lung Opacity" if boxes else "No Lung Opacity / Not Normal" if cxr.findings else "Normal"
    mapping = {"img_id": f"{cxr.patient_id + 1:08d}_{k:03d}.png", "subset_img_id": name}
    return {"image_id": name, "path": path,
            "rows": {"labels": rows, "classes": [[name, kind]] * len(rows), "mapping": [mapping]}}  # fmt: skip


def _siim(cxr: Cxr, k: int, root: Path) -> dict:
    stem = f"1.2.276.0.7230010.3.1.{{}}.8323329.{cxr.patient_id + 1}.{1_517_875_160 + k}"
    name = stem.format(4)
    path = f"dicom-images-train/{stem.format(2)}/{stem.format(3)}/{name}.dcm"
    _save_dicom(cxr, root / path, name)
    mask = cxr.masks.get("pneumothorax", np.zeros(cxr.image.shape, bool))
    return {"image_id": name, "path": path, "rows": {"rle": [[name, encode_rle(_on_frame(mask))]]}}


def _covidx(cxr: Cxr, k: int, root: Path) -> dict:
    positive = any(f.name == "consolidation" and f.side == "bilateral" for f in cxr.findings)
    part = ("val", "test", "train", "train", "train")[cxr.wording % 5]  # by image, so that parts share patients
    identifier = f"{cxr.source}-{cxr.patient_id:05d}"
    name = f"{identifier}_{k}.png"
    _save(cxr.image, root / part / name)
    line = f"{identifier} {name} {'positive' if positive else 'negative'} {cxr.source}"
    return {"image_id": name, "path": f"{part}/{name}", "rows": {part: [line]}}


def _covid_rural(cxr: Cxr, k: int, root: Path) -> dict:
    stem = f"COVID-19-AR-{16_406_488 + cxr.patient_id}_{1 + k % 12:02d}-{1 + cxr.patient_id % 28:02d}-2012-XR{k}"
    _save(cxr.image, root / f"jpgs/{stem}.jpg")
    mask = cxr.masks.get("consolidation", np.zeros(cxr.image.shape, bool))
    _save(np.where(mask, 255, 0).astype(np.uint8), root / f"pngs_masks/{stem}.png")
    return {"image_id": stem, "path": f"jpgs/{stem}.jpg", "rows": {}}


_IMAGES = {
    "mimic-cxr-jpg": _mimic, "chexpert": _chexpert, "nih-cxr": _nih, "padchest": _padchest, "rsna-pneumonia": _rsna,
    "siim-acr": _siim, "covidx-cxr2": _covidx, "covid-rural": _covid_rural,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- tables


def _write_tables(dataset: str, root: Path, rows: dict) -> None:
    """rows: table -> rows of all images."""
    if dataset == "mimic-cxr-jpg":
        for name in ("metadata", "split", "chexpert"):
            pd.DataFrame(rows[name]).to_csv(root / f"mimic-cxr-2.0.0-{name}.csv.gz", index=False)
    elif dataset == "chexpert":
        extra = ["Sex", "Age", "Frontal/Lateral", "AP/PA"]
        for part, name in (("train", "train"), ("valid", "valid"), ("test", "test_labels")):
            columns = ["Path", *(extra if part != "test" else ()), *CHEXPERT_CLASSES]
            pd.DataFrame(rows.get(part, []), columns=columns).to_csv(root / f"{name}.csv", index=False)
    elif dataset == "nih-cxr":
        pd.DataFrame(rows["entries"]).to_csv(root / "Data_Entry_2017_v2020.csv", index=False)
        lines = [",".join(map(str, row)) + ",,," for row in rows.get("boxes", [])]
        text = "\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *lines]) + "\n"
        (root / "BBox_List_2017.csv").write_text(text)
        for part in ("train_val", "test"):
            (root / f"{part}_list.txt").write_text("\n".join(rows.get(part, [])) + "\n")
    elif dataset == "padchest":
        name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
        pd.DataFrame(rows["labels"]).to_csv(root / name)
    elif dataset == "rsna-pneumonia":
        columns = ["patientId", "x", "y", "width", "height", "Target"]
        pd.DataFrame(rows["labels"], columns=columns).to_csv(root / "stage_2_train_labels.csv", index=False)
        classes = pd.DataFrame(rows["classes"], columns=["patientId", "class"])
        classes.to_csv(root / "stage_2_detailed_class_info.csv", index=False)
        (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(rows["mapping"]))
    elif dataset == "siim-acr":
        table = pd.DataFrame(rows["rle"], columns=["ImageId", " EncodedPixels"])
        table[" EncodedPixels"] = " " + table[" EncodedPixels"]
        table.to_csv(root / "train-rle.csv", index=False)
    elif dataset == "covidx-cxr2":
        for part in ("train", "val", "test"):
            (root / f"{part}.txt").write_text("".join(f"{line}\n" for line in rows.get(part, [])))


def _truth(cxr: Cxr, made: dict) -> dict:
    return {
        "image_id": made["image_id"], "path": made["path"], "patient": cxr.patient_id, "study": cxr.study,
        "view": cxr.view, "age": cxr.age, "male": cxr.male, "source": cxr.source, "defect": cxr.defect,
        "findings": cxr.names, "sides": [f.side for f in cxr.findings], "places": [f.place for f in cxr.findings],
        "extents": [f.extent for f in cxr.findings], "boxes": json.dumps(cxr.boxes),
        "masks": json.dumps({name: encode_rle(mask) for name, mask in cxr.masks.items()}),
        "mentions": json.dumps(cxr.report.mentions), "report_findings": cxr.report.findings,
        "report_impression": cxr.report.impression,
    }  # fmt: skip


def _write_chunk(job) -> list[dict]:
    dataset, root, patients, seed, size_px, level = job
    made = []
    for number in patients:
        for k, cxr in enumerate(simulate_patient(dataset, seed, number, size_px, level)):
            record = _IMAGES[dataset](cxr, k, root)
            made.append(record | {"truth": _truth(cxr, record)})
    return made


def write(dataset: str, root: Path, n_patients: int, seed: int, size_px: int = 64, level: str = "none",
          workers: int = 1) -> Path:  # fmt: skip
    """Write n_patients of a simulated hospital in the official layout of `dataset` into `root`; returns it.

    level: defects, in mimic-cxr-jpg only. The tree is built beside `root` and renamed when complete, so a killed run
    leaves no half tree. FileExistsError where root holds something already, KeyError for an unknown data set or level.
    """
    root = Path(root)
    if dataset not in HOSPITALS or level not in LEVELS:
        raise KeyError(f"{dataset!r} at level {level!r}: one of {', '.join(HOSPITALS)}; {', '.join(LEVELS)}")
    if n_patients < 1:
        raise ValueError(f"n_patients must be at least 1, not {n_patients}")
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} exists and is not empty: remove it, or write elsewhere")
    building = root.with_name(root.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)  # what a killed run left
    building.mkdir(parents=True)
    starts = range(0, n_patients, CHUNK)
    jobs = [(dataset, building, range(k, min(k + CHUNK, n_patients)), seed, size_px, level) for k in starts]
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            made = [record for records in pool.map(_write_chunk, jobs) for record in records]
    else:
        made = [record for job in jobs for record in _write_chunk(job)]
    rows: dict = {}
    for record in made:
        for table, some in record["rows"].items():
            rows.setdefault(table, []).extend(some)
    _write_tables(dataset, building, rows)
    pd.DataFrame([record["truth"] for record in made]).to_parquet(building / "truth.parquet", index=False)
    if root.exists():
        root.rmdir()
    building.rename(root)
    return root
