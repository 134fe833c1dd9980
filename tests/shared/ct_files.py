"""Small CT files for the tests: a crude thorax in HU, NIfTI and DICOM writers, trees in the three official layouts."""

import csv
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

SHAPE = (40, 48, 44)  # z, y, x
SPACING = (4.0, 7.0, 8.0)  # z, y, x in mm
CODES_TO_RAS = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "S": (2, 1), "I": (2, -1)}


def thorax(shape=SHAPE, seed: int = 0) -> np.ndarray:
    """[D, H, W] int16 HU in LPS: body, lungs, spine behind, heart left, liver right below; every octant differs."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(y / 0.8) ** 2 + (x / 0.9) ** 2 < 1] = 40
    for side in (-1, 1):
        hu[((x - 0.42 * side) / 0.3) ** 2 + (y / 0.55) ** 2 + (z / 0.95) ** 2 < 1] = -820
    hu[((x - 0.15) / 0.25) ** 2 + ((y + 0.25) / 0.3) ** 2 + ((z + 0.3) / 0.3) ** 2 < 1] = 45  # heart: left, in front
    hu[(x < -0.1) & (z < -0.7) & ((y / 0.6) ** 2 + (x / 0.75) ** 2 < 1)] = 60  # liver: right, below
    hu[(x / 0.13) ** 2 + ((y - 0.6) / 0.14) ** 2 < 1] = 700  # spine
    hu[(x / 0.1) ** 2 + ((y + 0.72) / 0.05) ** 2 < 1] = 450  # sternum
    noisy = hu + np.random.default_rng(seed).normal(0, 8, shape)
    return np.maximum(np.rint(noisy), -1024).astype(np.int16)  # scanners cut at -1024


def head(shape=SHAPE) -> np.ndarray:
    """A skull with brain in air: HU, but no lung."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt((x / 0.8) ** 2 + (y / 0.85) ** 2 + (z / 0.95) ** 2)
    return np.where(radius < 0.85, 35, np.where(radius < 1, 900, -1000)).astype(np.int16)


def affine_of(code: str, spacing_zyx=SPACING) -> np.ndarray:
    """RAS affine (nibabel's) whose x, y, z indices grow towards the letters of `code`."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for index, (letter, step) in enumerate(zip(code, spacing_zyx[::-1], strict=True)):
        axis, sign = CODES_TO_RAS[letter]
        affine[axis, index] = sign * step
    affine[:3, 3] = (11.0, -7.0, 301.0)
    return affine


def stored_as(hu: np.ndarray, code: str) -> np.ndarray:
    """An LPS array [z, y, x] as the [x, y, z] array that a file of orientation `code` holds."""
    axis = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
    array = hu.transpose(2, 1, 0).transpose([axis[letter] for letter in code])
    return np.flip(array, [k for k, letter in enumerate(code) if letter in "RAI"])


def write_nifti(
    path: Path, hu: np.ndarray, code: str = "LPS", spacing=SPACING, qform: int = 1, sform: int = 1, scale=None
) -> Path:
    """hu: LPS [z, y, x]. spacing: (sz, sy, sx) in LPS. scale: (slope, intercept) that the header shall carry."""
    axis = {"L": 2, "R": 2, "P": 1, "A": 1, "S": 0, "I": 0}
    steps = [spacing[axis[letter]] for letter in code]
    affine = affine_of(code, steps[::-1])
    image = nib.Nifti1Image(np.ascontiguousarray(stored_as(hu, code)), affine)
    image.set_qform(affine if qform else None, qform)
    image.set_sform(affine if sform else None, sform)
    if not qform and not sform:
        image.header.set_zooms(steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    if scale:
        patch(path, 112, "<2f", *scale)
    return path


def patch(path: Path, offset: int, layout: str, *values) -> None:
    """Overwrite bytes of a NIfTI header, gzip or not."""
    import gzip

    content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    struct.pack_into(layout, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content), 1) if path.suffix == ".gz" else bytes(content))


def write_blank(path: Path, raw: np.ndarray) -> Path:
    """A CT-RATE v1 file: raw values in DICOM order under a blank header."""
    image = nib.Nifti1Image(np.ascontiguousarray(raw.transpose(2, 1, 0)), None)
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    image.header.set_zooms((1.0, 1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def write_dicom(
    folder: Path, hu: np.ndarray, spacing=SPACING, change=lambda k, tags: None, series: str = "1.2.3"
) -> Path:
    """One file per slice of an LPS array; raw = HU + 1024; `change(k, tags)` edits the tags of slice k."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(hu):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"{series}.{k + 1}"
        tags = pydicom.Dataset()
        tags.file_meta = meta
        tags.SOPClassUID, tags.SOPInstanceUID = CTImageStorage, f"{series}.{k + 1}"
        tags.SeriesInstanceUID, tags.StudyInstanceUID, tags.Modality = series, "1.2", "CT"
        tags.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        tags.ImagePositionPatient = [-30.0, 12.0, 100.0 + spacing[0] * k]
        tags.PixelSpacing, tags.InstanceNumber = [spacing[1], spacing[2]], len(hu) - k
        tags.Rows, tags.Columns = plane.shape
        tags.BitsAllocated = tags.BitsStored = 16
        tags.HighBit, tags.PixelRepresentation, tags.SamplesPerPixel = 15, 0, 1
        tags.PhotometricInterpretation = "MONOCHROME2"
        tags.RescaleSlope, tags.RescaleIntercept, tags.RescaleType = 1, -1024, "HU"
        tags.PixelData = (plane.astype(np.int32) + 1024).astype("<u2").tobytes()
        change(k, tags)
        tags.save_as(folder / f"{(7 * k) % len(hu):03d}-{k}.dcm", enforce_file_format=True)  # names out of order
    return folder


# ----------------------------------------------------------------------------------------------- official layouts


def write_csv(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


TEXT = "Both lungs are clear. There is a small nodule in the right upper lobe."


def ct_rate(root: Path, names: list[str], fixed: bool = True, intercept: int = -1024, **cells) -> Path:
    """A CT-RATE tree. names: "train_1_a_1" ...; cells: column -> {name: text} over the defaults."""
    rows: dict[str, list] = {}
    for seed, name in enumerate(names):
        split, patient, scan, _ = name.split("_")
        folder = (
            root
            / "dataset"
            / (f"{split}_fixed" if fixed else split)
            / f"{split}_{patient}"
            / f"{split}_{patient}_{scan}"
        )
        hu = thorax(seed=seed)
        if fixed:
            write_nifti(folder / f"{name}.nii.gz", hu)
        else:
            write_blank(folder / f"{name}.nii.gz", (hu.astype(np.int32) - intercept).astype(np.int16))
        rows.setdefault(split, []).append(name)
    for split, members in rows.items():
        prefix = {"train": "train", "valid": "validation"}[split]
        default = {
            "Findings_EN": TEXT,
            "Impressions_EN": "Not given.",
            "SeriesDescription": "Thorax 1.5",
            "NumberofSlices": str(SHAPE[0]),
            "XYSpacing": f"[{SPACING[2]}, {SPACING[1]}]",
            "ZSpacing": str(SPACING[0]),
            "ImagePositionPatient": "[-11.0, 7.0, 301.0]",
            "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
            "RescaleIntercept": str(intercept),
            "RescaleSlope": "1",
        }
        full = [
            {"VolumeName": f"{m}.nii.gz"} | {c: cells.get(c, {}).get(m, v) for c, v in default.items()} for m in members
        ]
        reports = ("VolumeName", "Findings_EN", "Impressions_EN")
        base = root / "dataset"
        write_csv(base / "radiology_text_reports" / f"{prefix}_reports.csv", [{c: r[c] for c in reports} for r in full])
        metadata = [{c: v for c, v in r.items() if c not in reports[1:]} for r in full]
        write_csv(base / "metadata" / f"{prefix}_metadata.csv", metadata)
        labels = [{"VolumeName": f"{m}.nii.gz", "Lung nodule": "1", "Cardiomegaly": "0"} for m in members]
        write_csv(base / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", labels)
    return root


def bimcv_r(root: Path, n: int, code: str = "LAS", texts: dict[int, str] | None = None) -> Path:
    rows = []
    for k in range(n):
        name = f"sub-S{k // 2:03d}_ses-E{k:03d}_run-1_bp-chest_ct.nii.gz"
        write_nifti(root / f"CT{k % 2}" / "ct" / name, thorax(seed=100 + k), code)
        rows.append(
            {
                "PatientID": f"sub-S{k // 2:03d}",
                "Report": f"no se observan nodulos en el parenquima pulmonar numero {k} .",
                "Labels": "['normal', ' nodule']",
                "path": f"/elsewhere/mod-rx/{name}",
                "Report_en": (texts or {}).get(k, f"No nodules are seen in the lung parenchyma number {k}."),
            }
        )
    write_csv(root / "meta" / "curated_ct_report_path_En.csv", rows)
    return root


def inspect(root: Path, n: int, splits=("train", "valid", "test")) -> Path:
    keys = [str(9000 + 7 * k) for k in range(n)]
    for k in range(n):
        write_nifti(root / "CTPA" / f"PE{k:03d}.nii.gz", thorax(seed=200 + k), "RAS")
    rows = [{"image_id": f"PE{k:03d}.nii.gz", "impression_id": key, "person_id": f"p{k}"} for k, key in enumerate(keys)]
    write_csv(root / "Final_metadata.csv", rows)
    write_csv(
        root / "Final_splits.csv",
        [{"impression_id": key, "split": splits[k % len(splits)]} for k, key in enumerate(keys)],
    )
    texts = [{"impression_id": key, "impressions": f"1. No acute pulmonary embolism, case {key}."} for key in keys]
    write_csv(root / "Final_Impressions.csv", texts)
    labels = [{"impression_id": key, "pe_positive": "True", "1_month_mortality": "Censored"} for key in keys]
    write_csv(root / "Final_labels.csv", labels)
    return root


def cut(path: Path, n_bytes: int) -> None:
    """Keep the first n bytes; below 0, all but so many."""
    path.write_bytes(path.read_bytes()[:n_bytes])
