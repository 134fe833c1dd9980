"""Files of the simulated chest CTs in the official layouts of CT-RATE, BIMCV-R and INSPECT (reference: "Data").

| data set | volumes | tables and columns |
| --- | --- | --- |
| ct-rate | dataset/{train,valid}_fixed/train_1/train_1_a/train_1_a_1.nii.gz: HU, LPS header; with version="v1" in | dataset/metadata/{train,validation}_metadata.csv: `_METADATA`; radiology_text_reports/{train,validation}_reports.csv: |
| | dataset/{train,valid}/: raw values under a blank header, HU = raw * RescaleSlope + RescaleIntercept of the table | VolumeName, ClinicalInformation_EN, Technique_EN, Findings_EN, Impressions_EN; multi_abnormality_labels/{train,valid}_predicted_labels.csv: VolumeName + 18 labels |
| bimcv-r | CT1/ct/sub-S1_ses-E1_run-1_bp-chest_ct.nii.gz: HU, most headers LAS, some LPS | curated_ct_report_path_En.csv: path, Report_en, Report (Spanish), PatientID |
| inspect | CTPA/IMAGE.nii.gz: HU, headers LPS or RAS | Final_metadata.csv: image_id, impression_id, person_id; Final_splits.csv: impression_id, split; Final_Impressions.csv: impression_id, impressions; Final_labels.csv: impression_id, pe_positive_nlp |

Column names that the reference does not establish (Report, person_id, impressions, pe_positive_nlp, the clinical
columns of CT-RATE's reports) are defaults. Beside each tree stands truth.parquet, one row per volume, of what was
drawn.
"""  # noqa: E501

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.ct.simulate import LAPTOP_SHAPE, SOURCES, Rendered, Study, draw_studies, render, study_grid
from shared.ct.simulate_findings import labels

CHUNK = 8  # patients in one job
VERSIONS = ("fixed", "v1")
_METADATA = (
    "VolumeName", "Manufacturer", "SeriesDescription", "ManufacturerModelName", "PatientSex", "PatientAge",
    "ReconstructionDiameter", "ConvolutionKernel", "PatientPosition", "ImagePositionPatient", "ImageOrientationPatient",
    "Rows", "Columns", "XYSpacing", "RescaleIntercept", "RescaleSlope", "NumberofSlices", "ZSpacing",
    "StudyDate")  # fmt: skip
_MAKERS = (  # manufacturer, model, soft and sharp kernel, rescale intercept of v1
    ("Siemens Healthineers", "SOMATOM go.Top", "Br40f", "Br60f", -8192),
    ("Philips", "Ingenuity CT", "B", "YB", -1024),
    ("PNMS", "Brilliance 64", "B", "YC", -1024),
)
_DIRECTIONS = {"LPS": (1, 1, 1), "LAS": (1, -1, 1), "RAS": (-1, -1, 1)}  # of x, y, z in LPS space


def save_nifti(path: Path, values: np.ndarray, spacing_mm, origin_mm, code: str = "LPS", blank: bool = False) -> None:
    """Write [D, H, W] values that run z up, y back, x left as gzip NIfTI whose header says `code`; the array is flipped
    to match. origin_mm: (x, y, z) of voxel (0, 0, 0). blank: as v1 of CT-RATE: the array as it is under an identity
    affine."""
    signs = _DIRECTIONS[code]
    flips = tuple(slice(None, None, sign) for sign in signs[::-1])
    image = sitk.GetImageFromArray(np.ascontiguousarray(values[flips]))
    if blank:
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # LPS of ITK for an identity affine in the RAS of NIfTI
    else:
        spacing = np.array(spacing_mm[::-1], float)
        size = np.array(values.shape[::-1])
        last = np.where(np.array(signs) < 0, (size - 1) * spacing, 0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin((np.array(origin_mm) + last).tolist())
        image.SetDirection(np.diag(signs).astype(float).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)


def _origin(volume: Rendered) -> tuple:
    return tuple(round(float(v), 4) for v in volume.grid.first_mm[::-1])


def _truth(study: Study, volume: Rendered, volume_id: str, study_id: str, patient_id: str, split: str) -> dict:
    rows = [
        asdict(f) | {"box": list(box), "volume_mm3": float(mm3)}
        for f, box, mm3 in zip(study.findings, volume.boxes, volume.volume_mm3, strict=True)
    ]
    return {
        "volume_id": volume_id, "study_id": study_id, "patient_id": patient_id, "split": split,
        "number": study.number, "study": study.index, "phase": study.scan.phase, "kernel": study.scan.kernel,
        "age": study.patient.age, "male": study.patient.male, "names": sorted({f.name for f in study.findings}),
        "findings": rows, "mentions": json.dumps(study.report.mentions),
    }  # fmt: skip


def _ct_rate(root: Path, study: Study, volumes: list[Rendered], version: str) -> list[dict]:
    rng = np.random.default_rng([study.scan.seed, 1])
    split = "valid" if study.number % 7 == 6 else "train"
    patient_id = f"{split}_{study.number + 1}"
    study_id = f"{patient_id}_{'abcdefgh'[study.index]}"
    maker, model, soft, sharp, intercept = _MAKERS[int(rng.choice(3, p=(0.3, 0.5, 0.2)))]
    date = 20_150_101 + int(rng.integers(0, 6)) * 10_000 + int(rng.integers(0, 12)) * 100 + int(rng.integers(0, 28))
    out = []
    for k, volume in enumerate(volumes, 1):
        name = f"{study_id}_{k}.nii.gz"
        kernel = study.scan.kernel if k == 1 else {"soft": "sharp", "sharp": "soft"}[study.scan.kernel]
        folder = root / "dataset" / (f"{split}_fixed" if version == "fixed" else split) / patient_id / study_id
        sz, sy, sx = volume.grid.spacing_mm
        origin = _origin(volume)
        if version == "fixed":
            save_nifti(folder / name, volume.hu, volume.grid.spacing_mm, origin)
        else:
            raw = volume.hu.astype(np.float32) - intercept
            if intercept == -8192:  # these scanners leave 0 outside the circle of reconstruction
                _, h, w = raw.shape
                y, x = np.ogrid[:h, :w]
                raw[:, ((y - (h - 1) / 2) / (h / 2)) ** 2 + ((x - (w - 1) / 2) / (w / 2)) ** 2 > 1] = 0
            save_nifti(folder / name, raw, None, None, blank=True)
        meta = {
            "VolumeName": name, "Manufacturer": maker,
            "SeriesDescription": f"THORAX {'MEDIASTEN' if kernel == 'soft' else 'AKCIGER'}",
            "ManufacturerModelName": model, "PatientSex": "M" if study.patient.male else "F",
            "PatientAge": f"{study.patient.age:03d}Y", "ReconstructionDiameter": round(study.scan.fov_mm, 1),
            "ConvolutionKernel": soft if kernel == "soft" else sharp, "PatientPosition": "HFS",
            "ImagePositionPatient": str(list(origin)), "ImageOrientationPatient": "[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]",
            "Rows": volume.hu.shape[1], "Columns": volume.hu.shape[2], "XYSpacing": f"[{sx:.7f}, {sy:.7f}]",
            "RescaleIntercept": intercept, "RescaleSlope": 1, "NumberofSlices": volume.hu.shape[0],
            "ZSpacing": round(sz, 7), "StudyDate": date,
        }  # fmt: skip
        report = study.report
        texts = {"VolumeName": name, "ClinicalInformation_EN": "Not given.",
                 "Technique_EN": "Non-contrast thoracic CT.", "Findings_EN": report.findings,
                 "Impressions_EN": report.impression}  # fmt: skip
        truth = _truth(study, volume, name.removesuffix(".nii.gz"), study_id, patient_id, split)
        found = {"VolumeName": name} | labels(list(study.findings))
        out.append(
            {"truth": truth | {"kernel": kernel}, "split": split, "metadata": meta, "reports": texts, "labels": found}
        )
    return out


def _bimcv_r(root: Path, study: Study, volumes: list[Rendered], version: str) -> list[dict]:
    rng = np.random.default_rng([study.scan.seed, 1])
    patient_id, session = f"sub-S{3000 + study.number:05d}", f"ses-E{6000 + 10 * study.number + study.index:06d}"
    code = "LAS" if rng.random() < 0.85 else "LPS"
    out = []
    for k, volume in enumerate(volumes, 1):
        name = f"{patient_id}_{session}_run-{k}_bp-chest_ct.nii.gz"
        relative = f"CT{1 + study.number % 3}/ct/{name}"
        save_nifti(root / relative, volume.hu, volume.grid.spacing_mm, _origin(volume), code)
        row = {
            "path": relative,
            "Report_en": study.report.findings,
            "Report": study.report.original,
            "PatientID": patient_id,
        }
        truth = _truth(study, volume, name.removesuffix(".nii.gz"), f"{patient_id}_{session}", patient_id, "")
        out.append({"truth": truth, "table": row})
    return out


def _inspect(root: Path, study: Study, volumes: list[Rendered], version: str) -> list[dict]:
    rng = np.random.default_rng([study.scan.seed, 1])
    person = 115_000_000 + 61 * study.number
    impression_id = f"{20_000_000 + 97 * study.number + study.index}"
    split = {8: "valid", 9: "test"}.get(study.number % 10, "train")
    code = "LPS" if rng.random() < 0.7 else "RAS"
    out = []
    for k, volume in enumerate(volumes):
        image_id = f"PE{rng.integers(16**7):07x}{study.number:05x}{k}"
        save_nifti(root / "CTPA" / f"{image_id}.nii.gz", volume.hu, volume.grid.spacing_mm, _origin(volume), code)
        embolism = any(f.name == "pulmonary_embolism" for f in study.findings)
        out.append({
            "truth": _truth(study, volume, image_id, impression_id, str(person), split),
            "Final_metadata": {"image_id": f"{image_id}.nii.gz", "impression_id": impression_id, "person_id": person},
            "Final_splits": {"impression_id": impression_id, "split": split},
            "Final_Impressions": {"impression_id": impression_id, "impressions": study.report.impression},
            "Final_labels": {"impression_id": impression_id, "pe_positive_nlp": embolism},
        })  # fmt: skip
    return out


_WRITERS = {"ct-rate": _ct_rate, "bimcv-r": _bimcv_r, "inspect": _inspect}


def simulator_hash() -> str:
    """Of the simulator's source: trees of another version are never taken for this one's."""
    files = sorted(set(Path(__file__).parent.glob("simulate*.py")) - {Path(__file__).with_name("simulate_sheet.py")})
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:8]


def _write_chunk(job) -> Path:
    """Draw and write some patients, then the file of their table rows; runs in a worker process."""
    dataset, root, seed, numbers, shape, version, reconstructions = job
    rows = []
    for number in numbers:
        for study in draw_studies(dataset, seed, number):
            scans = [study.scan]
            if reconstructions > 1:
                other = "soft" if study.scan.kernel == "sharp" else "sharp"
                scans.append(replace(study.scan, kernel=other, seed=study.scan.seed + 1))
            volumes = [render(study.patient, study.findings, scan, study_grid(scan, shape)) for scan in scans]
            rows += _WRITERS[dataset](root, study, volumes, version)
    file = _rows_file(root, numbers)
    file.with_suffix(".part").write_text(json.dumps(rows, default=lambda value: value.item()))
    os.replace(file.with_suffix(".part"), file)
    return file


def _rows_file(root: Path, numbers: range) -> Path:
    return root / ".rows" / f"{numbers.start:06d}.json"


def _write_chunks(jobs: list, workers: int) -> Iterable[Path]:
    if workers > 1 and len(jobs) > 1:
        with ProcessPoolExecutor(min(workers, len(jobs))) as pool:
            yield from pool.map(_write_chunk, jobs)
    else:
        yield from map(_write_chunk, jobs)


def _write_tables(dataset: str, root: Path, rows: list[dict]) -> None:
    def save(key: str, path: Path, chosen) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame([row[key] for row in chosen]).drop_duplicates().to_csv(path, index=False)

    if dataset == "ct-rate":
        for split, long_name in (("train", "train"), ("valid", "validation")):
            chosen = [row for row in rows if row["split"] == split]
            folder = root / "dataset"
            if chosen:
                save("metadata", folder / "metadata" / f"{long_name}_metadata.csv", chosen)
                save("reports", folder / "radiology_text_reports" / f"{long_name}_reports.csv", chosen)
                save("labels", folder / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", chosen)
    elif dataset == "bimcv-r":
        save("table", root / "curated_ct_report_path_En.csv", rows)
    else:
        for key in ("Final_metadata", "Final_splits", "Final_Impressions", "Final_labels"):
            save(key, root / f"{key}.csv", rows)


def write(dataset: str, root: Path, n_patients: int, seed: int, shape=LAPTOP_SHAPE, workers: int = 1,
          version: str = "fixed", reconstructions: int = 1) -> Path:  # fmt: skip
    """Write n patients in the official layout of `dataset` (a name of SOURCES) into `root`, with truth.parquet:
    volume_id, study_id, patient_id, split, names, findings (list of name, side, place, size_mm, density_hu, form,
    detail, box (z0, y0, x0, z1, y1, x1) in voxels of the LPS array, volume_mm3), mentions (JSON), phase, kernel,
    age, male.

    shape: (D, H, W) voxels. version: of CT-RATE's files, "fixed" or "v1". reconstructions: 2 = each scan with both
    kernels. The tree is built beside `root` and renamed when complete; a run that was killed is taken up where it
    stopped. KeyError: no such data set. FileExistsError: `root` is not empty. ValueError: n_patients, version,
    reconstructions.
    """
    root = Path(root)
    if dataset not in SOURCES:
        raise KeyError(f"unknown data set {dataset!r}: one of {', '.join(SOURCES)}")
    if n_patients < 1 or reconstructions not in (1, 2) or version not in VERSIONS:
        raise ValueError(f"n_patients={n_patients} (1 or more), reconstructions={reconstructions} (1 or 2), "
                         f"version={version!r} (one of {', '.join(VERSIONS)})")  # fmt: skip
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} exists and is not empty: remove it, or write elsewhere")
    building = root.with_name(root.name + ".tmp")
    _take_up(building, [dataset, n_patients, seed, *shape, version, reconstructions, simulator_hash()])
    chunks = [range(k, min(k + CHUNK, n_patients)) for k in range(0, n_patients, CHUNK)]
    jobs = [(dataset, building, seed, numbers, shape, version, reconstructions)
            for numbers in chunks if not _rows_file(building, numbers).exists()]  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        done = sum(map(len, chunks)) - sum(len(job[3]) for job in jobs)
        task = progress.add_task(f"simulating {dataset}, patients", total=n_patients, completed=done)
        for job, _ in zip(jobs, _write_chunks(jobs, workers), strict=True):
            progress.update(task, advance=len(job[3]))
    rows = [row for numbers in chunks for row in json.loads(_rows_file(building, numbers).read_text())]
    _write_tables(dataset, building, rows)
    pd.DataFrame([row["truth"] for row in rows]).to_parquet(building / "truth.parquet", index=False)
    shutil.rmtree(building / ".rows")
    if root.exists():
        root.rmdir()
    building.rename(root)
    return root


def _take_up(building: Path, job: list) -> None:
    """Make the folder of an unfinished tree ready: as it is where it is of the same job, else empty."""
    note = building / ".rows" / "job.json"
    if not note.exists() or json.loads(note.read_text()) != job:
        shutil.rmtree(building, ignore_errors=True)
        note.parent.mkdir(parents=True)
        note.with_suffix(".part").write_text(json.dumps(job))
        os.replace(note.with_suffix(".part"), note)
