"""Hand-written small trees in the official layouts of the chest X-ray sets, for the tests of the loaders."""

import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

from synth_medvlp.datasets.labels import CHEXPERT_CLASSES

DATA_ROOT = Path(os.environ.get("DATA_ROOT", "data/official"))
SIDE = 32


def real(name: str) -> Path:
    """Folder of a real data set, or a skip that says which one is missing."""
    if not (DATA_ROOT / name).is_dir():
        pytest.skip(f"{DATA_ROOT / name} is not there; set DATA_ROOT to a folder with the official release")
    return DATA_ROOT / name


def film(seed: int = 0, shape=(SIDE, SIDE), high: int = 255, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high + 1, shape).astype(dtype)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_dicom(path: Path, stored: np.ndarray, jpeg: bool = False, bits: int | None = None, **tags) -> Path:
    """stored: [H, W] of the stored integers; tags: further elements of the header; jpeg: compressed inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", generate_uid()
    header = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.Rows, header.Columns = stored.shape[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = stored.dtype.itemsize * 8
    header.BitsStored = bits or header.BitsAllocated
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in tags.items():
        setattr(header, name, value)
    if jpeg:
        buffer = io.BytesIO()
        Image.fromarray(stored).save(buffer, "JPEG", quality=95)
        header.PixelData = encapsulate([buffer.getvalue()])
        header["PixelData"].VR = "OB"
    else:
        header.PixelData = stored.tobytes()
        header["PixelData"].VR = "OB" if header.BitsAllocated == 8 else "OW"
    pydicom.dcmwrite(path, header, enforce_file_format=True)
    return path


def write_csv(path: Path, rows: list[dict], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False, **options)
    return path


REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  History: ___F with cough.

 FINDINGS:

 The lungs are clear. There is no
 pleural effusion.

 IMPRESSION:

 No acute process.
"""


def write_mimic(root: Path, reports=(REPORT, REPORT, None, " WET READ: pending\n"), labels=True) -> Path:
    """Four studies of three patients, two images in the first; the last images are lateral, validate and test."""
    rows = [
        ("d1", "10000032", "50000001", "PA", "train"),
        ("d2", "10000032", "50000001", "LATERAL", "train"),
        ("d3", "10000032", "50000002", "AP", "train"),
        ("d4", "11000033", "50000003", "AP", "validate"),
        ("d5", "12000034", "50000004", "PA", "test"),
    ]
    names = ("dicom_id", "subject_id", "study_id", "ViewPosition", "split")
    table = pd.DataFrame(rows, columns=names)
    table.drop(columns="split").to_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    table.drop(columns="ViewPosition").to_csv(root / "mimic-cxr-2.0.0-split.csv", index=False)
    for number, row in enumerate(table.itertuples()):
        folder = root / f"files/p{row.subject_id[:2]}/p{row.subject_id}"
        save(folder / f"s{row.study_id}/{row.dicom_id}.jpg", film(number, (40, 30)))
        text = reports[int(row.study_id[-1]) - 1]
        if text is not None:
            (folder / f"s{row.study_id}.txt").write_text(text)
    if labels:
        blank = dict.fromkeys(CHEXPERT_CLASSES, "")
        studies = table[["subject_id", "study_id"]].drop_duplicates().to_dict("records")
        cells = [{"Edema": "-1.0"}, {"No Finding": "1.0"}, {"Pneumonia": "0.0", "Edema": "1.0"}]
        write_csv(
            root / "mimic-cxr-2.0.0-chexpert.csv",
            [study | blank | cell for study, cell in zip(studies, cells, strict=False)],
        )
    return root


def chexpert_row(path: str, view="AP", **cells) -> dict:
    frontal = "Frontal" if "frontal" in path else "Lateral"
    row = {"Path": path, "Sex": "Male", "Age": "60", "Frontal/Lateral": frontal, "AP/PA": view}
    return row | dict.fromkeys(CHEXPERT_CLASSES, "") | cells


def write_chexpert(root: Path, n_patients: int = 40, prefix: str = "CheXpert-v1.0-small/") -> Path:
    """Two frontal studies and one lateral per training patient; 3 validation and 4 test patients. No image files."""
    train = []
    for patient in range(1, n_patients + 1):
        folder = f"{prefix}train/patient{patient:05d}"
        uncertain = "-1.0" if patient % 5 == 0 else "1.0" if patient % 2 else ""
        for study in (1, 2):
            train.append(chexpert_row(f"{folder}/study{study}/view1_frontal.jpg", Edema=uncertain, Cardiomegaly=""))
        train.append(chexpert_row(f"{folder}/study1/view2_lateral.jpg", view=""))
    valid = [chexpert_row(f"{prefix}valid/patient9000{i}/study1/view1_frontal.jpg", "PA", Edema="0.0") for i in "123"]
    test = [chexpert_row(f"test/patient9100{i}/study1/view1_frontal.jpg", Edema="1.0") for i in "1234"]
    write_csv(root / "train.csv", train)
    write_csv(root / "valid.csv", valid)
    drop = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
    write_csv(root / "test_labels.csv", [{k: v for k, v in row.items() if k not in drop} for row in test])
    return root


def write_nih(root: Path, n_patients: int = 30, images_per_patient: int = 4, lists=True) -> Path:
    """Every tenth patient is test; the first image is on disk at 32 x 32 with one box of the 1024 frame."""
    rows, part = [], {"train_val_list.txt": [], "test_list.txt": []}
    findings = ("No Finding", "Effusion", "Cardiomegaly|Edema", "Pleural_Thickening")
    for patient in range(1, n_patients + 1):
        for number in range(images_per_patient):
            name = f"{patient:08d}_{number:03d}.png"
            rows.append({"Image Index": name, "Finding Labels": findings[number % 4], "Follow-up #": number})
            rows[-1] |= {"Patient ID": patient, "Patient Age": 50, "View Position": "AP" if number % 2 else "PA"}
            part["test_list.txt" if patient % 10 == 0 else "train_val_list.txt"].append(name)
    write_csv(root / "Data_Entry_2017_v2020.csv", rows)
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    (root / "BBox_List_2017.csv").write_text(header + "00000001_000.png,Infiltrate,256,512,128,64,,,\n")
    if lists:
        for name, names in part.items():
            (root / name).write_text("\n".join(names) + "\n")
    save(root / "images_001/images/00000001_000.png", film(1))
    return root


def padchest_row(name: str, labels: str, patient="P1", method="Physician", view="PA", photometric="MONOCHROME2"):
    row = {"ImageID": f"{name}.png", "ImageDir": 0, "StudyID": f"S{name}", "PatientID": patient, "Projection": view}
    row |= {"PhotometricInterpretation_DICOM": photometric, "Report": "sin hallazg", "MethodLabel": method}
    return row | {"Labels": labels}


def write_padchest(root: Path, rows: list[dict] | None = None) -> Path:
    if rows is None:
        rows = [padchest_row(f"a{i}", "['normal']", f"P{i}") for i in range(20)]
        rows += [
            padchest_row("b1", "['pleural effusion', ' cardiomegaly ', 'pleural effusion']", "P1", view="L"),
            padchest_row("b2", "['unchanged']", "P2", view="AP_horizontal", photometric="MONOCHROME1"),
            padchest_row("b3", "['nodule']", "P3", method="RNN_model", view="COSTAL"),
            padchest_row("b4", "", "P4"),
        ]
    save(root / "0/a0.png", film(3, (40, 20), 4095, np.uint16))
    write_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", rows)
    return root


def rsna_row(name: str, target: int, box=("", "", "", "")) -> dict:
    return {"patientId": name, **dict(zip(("x", "y", "width", "height"), box, strict=True)), "Target": target}


def write_rsna(root: Path, rows: list[dict] | None = None, mapping=None) -> Path:
    rows = rows or [
        rsna_row("r0", 1, ("256.0", "512.0", "128.0", "64.0")),
        rsna_row("r0", 1, ("512.0", "512.0", "128.0", "64.0")),
        rsna_row("r1", 0),
    ]
    write_csv(root / "stage_2_train_labels.csv", rows)
    save_dicom(root / "stage_2_train_images/r0.dcm", film(5), jpeg=True, ViewPosition="AP")
    if mapping:
        (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(mapping)
    return root


def write_siim(root: Path, rows=(("i0", " 10 5 1019 5"), ("i0", " 5000 7"), ("i1", " -1"))) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    lines = ["ImageId, EncodedPixels", *(f"{name},{code}" for name, code in rows)]
    (root / "train-rle.csv").write_text("\n".join(lines) + "\n")
    save_dicom(root / "dicom-images-train/1.2/1.3/i0.dcm", film(6, (64, 64)), ViewPosition="PA")
    return root


def write_covidx(root: Path, **lines: list[str]) -> Path:
    default = {
        "train": ["p1 a.png positive stonybrook", "p2 b.png negative rsna", "p3 c.png positive ricord"],
        "val": ["p1 d.png positive stonybrook", "p4 e.png negative rsna"],
        "test": ["p1 f.png positive stonybrook", "p5 g.png negative rsna"],
    }
    for part, rows in (default | lines).items():
        (root / f"{part}.txt").write_text("\n".join(rows) + "\n")
    save(root / "train/a.png", np.stack([film(7)] * 3, axis=-1))
    return root


def write_rural(root: Path, n_patients: int = 12) -> Path:
    """Three images a patient, the third without opacity."""
    for patient in range(n_patients):
        for day in range(3):
            stem = f"COVID-19-AR-1640{patient:04d}_01-0{day + 1}-2012-XR"
            mask = np.zeros((20, 24), np.uint8)
            mask[5:9, 6:12] = 255 * (day < 2)
            save(root / f"jpgs/{stem}.jpg", film(patient, (20, 24)))
            save(root / f"pngs_masks/{stem}.png", mask)
    return root
