"""One CT series of DICOM files to `CtVolume` in LPS, through SimpleITK, with named errors for what is not sound.

SimpleITK stacks whatever file names it is given: slices that are missing, doubled, tilted against the stack or of
another scan would bend the volume in silence, so the headers are read and compared first.

Reasons of `CtReadError`: missing file · no series · several series · bad header · not CT · not HU · wrong slope · mixed
orientation · mixed size · mixed spacing · duplicate slices · missing slices · gantry tilt · truncated · corrupted, and
those of ct_io.rescaled.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.ct.ct_io import missing, rescaled
from shared.ct.geometry import orientation_code, reorient
from shared.ct.volume import CtReadError, CtVolume

TAGS = (
    "SeriesInstanceUID Modality ImageOrientationPatient ImagePositionPatient PixelSpacing Rows Columns BitsAllocated "
    "RescaleSlope RescaleIntercept RescaleType"
).split()
TILT_DEGREES = 0.5  # more between the stack's direction and the slices' normal: a sheared grid
STEP_TOLERANCE = 0.05  # of the slice distance; rounding of positions stays below it


@dataclass(frozen=True)
class _Slice:
    path: Path
    series: str
    orientation: np.ndarray  # [6] cosines of rows and columns
    position: np.ndarray  # [3] mm
    size: tuple  # rows, columns, row spacing, column spacing


def read_dicom(folder: Path, series_uid: str = "", **ids: str) -> CtVolume:
    """The CT series in `folder` as HU in LPS, slices ordered by position; int16 where exact, else float32.

    series_uid: SeriesInstanceUID, needed where the folder holds several. ids: volume_id, patient_id, study_id.
    Raises CtReadError; the module docstring lists the reasons.
    """
    import SimpleITK as sitk

    folder = Path(folder)
    slices = _in_order(folder, _series(folder, series_uid))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(s.path) for s in slices])
    reader.SetOutputPixelType(sitk.sitkFloat32)  # the type of the first slice could cut the others' decimals
    try:
        values = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise CtReadError(folder, "corrupted", str(error).strip().splitlines()[-1]) from error
    whole = values.astype(np.int16) if np.abs(values).max() < 32768 else values
    hu = rescaled(folder, whole if np.array_equal(whole, values) else values, 1.0, 0.0)
    rows, columns = slices[0].orientation[:3], slices[0].orientation[3:]
    normal = np.cross(rows, columns)
    direction = tuple(np.stack([rows, columns, normal], axis=1).ravel().tolist())
    step = float(np.linalg.norm(slices[-1].position - slices[0].position)) / (len(slices) - 1)
    spacing = (step, *slices[0].size[2:])
    origin = tuple(slices[0].position.tolist())
    return reorient(CtVolume(hu, spacing, origin, direction, orientation_code(direction), "header", **ids))


def _series(folder: Path, series_uid: str) -> list[_Slice]:
    """Headers of the one series that is meant."""
    if not folder.is_dir():
        raise missing(folder)
    slices = [found for path in sorted(folder.iterdir()) if path.is_file() and (found := _header(path, series_uid))]
    uids = sorted({s.series for s in slices})
    if not uids:
        detail = f"no slice of series {series_uid}" if series_uid else "no DICOM image in the folder"
        raise CtReadError(folder, "no series", detail)
    if len(uids) > 1:
        raise CtReadError(folder, "several series", f"give series_uid, one of {', '.join(uids)}")
    if len(slices) < 2:
        raise CtReadError(folder, "missing slices", "one slice is no volume")
    return slices


def _header(path: Path, series_uid: str) -> _Slice | None:
    """What one file says; None for other series and for what is no DICOM image (DICOMDIR, notes)."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
    except InvalidDicomError:
        return None
    if "Rows" not in tags or (series_uid and tags.get("SeriesInstanceUID") != series_uid):
        return None
    absent = [name for name in TAGS[:8] if tags.get(name) in (None, "")]
    if absent:
        raise CtReadError(path, "bad header", f"no {', '.join(absent)}")
    if tags.Modality != "CT":
        raise CtReadError(path, "not CT", f"modality {tags.Modality}")
    if tags.get("RescaleType") not in (None, "", "HU"):
        raise CtReadError(path, "not HU", f"RescaleType {tags.RescaleType}")
    slope, intercept = tags.get("RescaleSlope"), tags.get("RescaleIntercept")
    if slope is None or intercept is None or not float(slope) > 0 or not math.isfinite(float(intercept)):
        raise CtReadError(path, "wrong slope", f"RescaleSlope {slope}, RescaleIntercept {intercept}")
    expected = tags.Rows * tags.Columns * tags.BitsAllocated // 8
    if not tags.file_meta.TransferSyntaxUID.is_compressed and path.stat().st_size < expected:
        raise CtReadError(path, "truncated", f"{path.stat().st_size} bytes, {expected} of them pixels expected")
    return _Slice(
        path,
        str(tags.SeriesInstanceUID),
        np.array(tags.ImageOrientationPatient, float),
        np.array(tags.ImagePositionPatient, float),
        (tags.Rows, tags.Columns, *map(float, tags.PixelSpacing)),
    )


def _in_order(folder: Path, slices: list[_Slice]) -> list[_Slice]:
    """The slices along their normal, if they are one regular, upright stack."""
    first = slices[0]
    for s in slices[1:]:
        if np.abs(s.orientation - first.orientation).max() > 0.01:
            detail = f"{first.path.name} and {s.path.name} lie in different planes"
            raise CtReadError(folder, "mixed orientation", detail)
        if s.size[:2] != first.size[:2]:
            raise CtReadError(
                folder, "mixed size", f"{s.path.name} is {s.size[:2]}, {first.path.name} {first.size[:2]}"
            )
        if not np.allclose(s.size[2:], first.size[2:], rtol=1e-3):
            raise CtReadError(folder, "mixed spacing", f"{s.size[2:]} and {first.size[2:]} mm")
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    slices = sorted(slices, key=lambda s: float(normal @ s.position))
    steps = np.diff([float(normal @ s.position) for s in slices])
    usual = float(np.median(steps))
    if (steps < max(STEP_TOLERANCE * usual, 1e-3)).any():
        k = int(np.argmin(steps))
        raise CtReadError(folder, "duplicate slices", f"{slices[k].path.name} and {slices[k + 1].path.name}")
    if np.abs(steps - usual).max() > max(STEP_TOLERANCE * usual, 0.01):
        k = int(np.argmax(np.abs(steps - usual)))
        detail = f"{steps[k]:.2f} mm between {slices[k].path.name} and {slices[k + 1].path.name}, else {usual:.2f} mm"
        raise CtReadError(folder, "missing slices", detail)
    along = slices[-1].position - slices[0].position
    tilt = math.degrees(math.acos(min(1.0, float(normal @ along) / float(np.linalg.norm(along)))))
    if tilt > TILT_DEGREES:
        raise CtReadError(folder, "gantry tilt", f"{tilt:.1f} degrees; undo the tilt by resampling first")
    return slices
