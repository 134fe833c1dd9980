"""One CT series of DICOM files to `CtVolume` in LPS, through SimpleITK, with named errors for what is not sound.

SimpleITK stacks whatever file names it is given: slices that are missing, doubled, tilted against the stack or of
another scan would bend the volume in silence, so the headers are read and compared first.

Reasons of `CtReadError`: missing file · no series · several series · bad header · bad spacing · not CT · not HU · wrong
slope · mixed orientation · mixed size · mixed spacing · duplicate slices · missing slices · gantry tilt · truncated ·
corrupted, and those of ct_io.rescaled.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.ct.ct_io import check_spacing, missing, rescaled
from shared.ct.geometry import orientation_code, reorient
from shared.ct.volume import CtReadError, CtVolume

TAGS = (
    "SeriesInstanceUID Modality ImageOrientationPatient ImagePositionPatient PixelSpacing Rows Columns BitsAllocated "
    "RescaleSlope RescaleIntercept RescaleType"
).split()
ELEMENT_BYTES = 8  # at least, of tag and length before the pixels
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
    step = float(np.linalg.norm(slices[-1].position - slices[0].position)) / (len(slices) - 1)
    spacing = check_spacing(folder, (step, *slices[0].size[2:]), "(z, y, x)")
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
    origin = tuple(slices[0].position.tolist())
    return reorient(CtVolume(hu, spacing, origin, direction, orientation_code(direction), "header", **ids))


def _series(folder: Path, series_uid: str) -> list[_Slice]:
    """Headers of the one series that is meant."""
    if not folder.is_dir():
        raise missing(folder)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    slices = [found for path in files if (found := _header(path, series_uid))]
    uids = sorted({s.series for s in slices})
    if not uids:
        detail = f"no slice of series {series_uid}" if series_uid else "no DICOM image in the folder"
        raise CtReadError(folder, "no series", detail)
    if len(uids) > 1:
        raise CtReadError(folder, "several series", f"give series_uid, one of {', '.join(uids)}")
    if len(slices) < 2:
        raise CtReadError(folder, "missing slices", "one slice is no volume")
    return slices


def _read(path: Path):
    """(tags, bytes of pixels at most) of one file; None where it is plainly no DICOM, by content and by name."""
    import pydicom

    with open(path, "rb") as file:
        start = file.read(132)
        cut = len(start) < 132 and not start[:128].strip(b"\0")  # an empty file, or a piece of the preamble of zeros
        if start[128:] != b"DICM" and path.suffix.lower() != ".dcm" and not cut:
            return None
        file.seek(0)
        try:
            tags = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*TAGS, "SOPClassUID"])
            _ = (
                [tags.get(name) for name in TAGS],
                tags.file_meta.TransferSyntaxUID.is_compressed,
            )  # are parsed when read
        except Exception as error:  # struct.error, AttributeError ..: wherever the header ends or breaks
            detail = f"{path.stat().st_size} bytes, {error}; copy it again, or remove it where it is no slice"
            raise CtReadError(path, "bad header", detail) from error
        return tags, path.stat().st_size - file.tell() - ELEMENT_BYTES


def _header(path: Path, series_uid: str) -> _Slice | None:
    """What one file says; None for other series and for what is no image (DICOMDIR, structured reports, notes).

    A file that could be a slice and cannot be read is an error: without an end slice the others are still regular.
    """
    found = _read(path)
    if found is None:
        return None
    tags, n_bytes = found
    kind = tags.file_meta.get("MediaStorageSOPClassUID") or tags.get("SOPClassUID")
    if "Rows" not in tags and kind and "Image Storage" not in kind.name:
        return None
    if "Rows" in tags and series_uid and tags.get("SeriesInstanceUID") != series_uid:
        return None
    absent = [name for name in TAGS[:8] if tags.get(name) in (None, "")]
    if absent:
        raise CtReadError(path, "bad header", f"no {', '.join(absent)}; cut, or written by no scanner")
    if tags.Modality != "CT":
        raise CtReadError(path, "not CT", f"modality {tags.Modality}")
    expected = tags.Rows * tags.Columns * tags.BitsAllocated // 8
    if not tags.file_meta.TransferSyntaxUID.is_compressed and n_bytes < expected:
        raise CtReadError(path, "truncated", f"{n_bytes} bytes of pixels, {expected} expected")
    if tags.get("RescaleType") not in (None, "", "HU"):
        raise CtReadError(path, "not HU", f"RescaleType {tags.RescaleType}")
    slope, intercept = tags.get("RescaleSlope"), tags.get("RescaleIntercept")
    if slope is None or intercept is None or not float(slope) > 0 or not math.isfinite(float(intercept)):
        raise CtReadError(path, "wrong slope", f"RescaleSlope {slope}, RescaleIntercept {intercept}")
    orientation, position, spacing = (
        _numbers(path, tags, name, n)
        for name, n in (("ImageOrientationPatient", 6), ("ImagePositionPatient", 3), ("PixelSpacing", 2))
    )
    spacing = check_spacing(path, tuple(spacing.tolist()), "(y, x)")
    return _Slice(path, str(tags.SeriesInstanceUID), orientation, position, (tags.Rows, tags.Columns, *spacing))


def _numbers(path: Path, tags, name: str, n: int) -> np.ndarray:
    """The n numbers of a tag."""
    try:
        values = np.array(tags[name].value, float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (n,) or not np.isfinite(values).all():
        raise CtReadError(path, "bad header", f"{name} {tags[name].value}; {n} numbers expected")
    return values


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
