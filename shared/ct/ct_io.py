"""NIfTI files to `CtVolume` in LPS, through SimpleITK, with named errors for what is not sound (dicom.py: series).

Serves Argus (reference: "SimpleITK rules" 1 and 2). SimpleITK decides the geometry of a NIfTI file, but
its voxels are decompressed here: ITK reads a truncated or damaged .nii.gz without an error and leaves zeros, and
ISA-L checks length and CRC in half of zlib's time.

Reasons of `CtReadError`, as they are counted in a store's manifest:
missing file · truncated · corrupted · bad header · not 3-D · bad spacing · blank header · mixed orientation · mixed
spacing · gantry tilt · unknown orientation · wrong slope · already rescaled · not finite · constant · not HU · not a
chest CT · path outside the root.
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from isal import igzip, isal_zlib

from shared.ct.geometry import orientation_code, reorient
from shared.ct.volume import IDENTITY, CtReadError, CtVolume

NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
HEADER_BYTES = 348
SPACING_MM = (0.05, 30.0)  # outside: metres, micrometres, or nonsense
PIECE_BYTES = 1 << 20
SAMPLED_VOXELS = 500_000  # plausibility looks at about as many, on a regular grid
SPINE_HU, SPINE_SHARE, SPINE_SHIFT = 100, 0.7, 0.1  # denser than, in this share of slices, off the body's middle by
# Shares a chest CT with its surroundings must have (air: reference; the others are ours).
AIR_SHARE, SOFT_SHARE, LUNG_SHARE = (0.05, 0.95), 0.05, 0.05


@dataclass(frozen=True)
class TableHeader:
    """What a table says in place of a blank header. spacing_mm: (sz, sy, sx); origin_mm: (x, y, z)."""

    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True)
class FileHeader:
    """What a NIfTI file says of itself. shape: [D, H, W]; orientation: "" where both form codes are 0."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]
    orientation: str


def resolve(root: Path, relative: str) -> Path:
    """`root`/`relative`; CtReadError where the path of a table leaves the root."""
    path = PurePosixPath(str(relative).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in str(path) or not path.parts:
        raise CtReadError(relative, "path outside the root", "the tables of the data set must hold relative paths")
    return Path(root) / path


# ---------------------------------------------------------------------------------------------------------- NIfTI


def read_nifti(path: Path, table: TableHeader | None = None, **ids: str) -> CtVolume:
    """One .nii or .nii.gz as HU in LPS. int16 where the file holds unscaled int16, else float32.

    table: geometry and rescale where the header is blank (CT-RATE v1); the file must then carry no rescale of its own.
    ids: volume_id, patient_id, study_id. Raises CtReadError; the module docstring lists the reasons.
    """
    path = Path(path)
    content = _content(path)
    values, slope, intercept = _values(path, content)
    if table is None:
        header = _file_header(path, content)
    else:
        if (slope, intercept) != (1.0, 0.0):
            raise CtReadError(path, "already rescaled", f"the file says slope {slope:g}, intercept {intercept:g}")
        slope, intercept = table.slope, table.intercept
        code = orientation_code(table.direction)
        header = FileHeader(values.shape, table.spacing_mm, table.origin_mm, table.direction, code)
    hu = rescaled(path, values, slope, intercept)
    source = "header" if table is None else "table"
    if not header.orientation:
        hu, source = _by_anatomy(path, hu), "anatomy"
    code = header.orientation or orientation_code(header.direction)
    volume = CtVolume(hu, header.spacing_mm, header.origin_mm, header.direction, code, source, **ids)
    return reorient(volume)


def read_header(path: Path) -> FileHeader:
    """Shape, spacing and orientation of a NIfTI file; its voxels are not read. Raises CtReadError."""
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = file.read(HEADER_BYTES)
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, EOFError, zlib.error) as error:
        raise CtReadError(path, "corrupted", str(error)) from error
    return _file_header(path, start)


def missing(path: Path) -> CtReadError:
    """The error for a file that is not there."""
    return CtReadError(path, "missing file", "download it, or set DATA_ROOT to where the data set lies")


def _content(path: Path) -> memoryview:
    """The whole file, decompressed and checked."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(2)
            file.seek(max(size - 4, 0))
            announced = int.from_bytes(file.read(4), "little")  # length modulo 2^32 of the last gzip member: a hint
    except (FileNotFoundError, IsADirectoryError):
        raise missing(path) from None
    if path.suffix != ".gz":
        return memoryview(path.read_bytes())
    if start != b"\x1f\x8b":
        raise CtReadError(path, "bad header", "not a gzip file; download it again")
    try:
        return _inflated(path, min(announced, 16 * size))
    except (isal_zlib.error, zlib.error, EOFError, OSError) as error:
        reason = "truncated" if "truncated" in str(error) or "end-of-stream" in str(error) else "corrupted"
        raise CtReadError(path, reason, f"{error}; download it again") from error


def _inflated(path: Path, expected: int) -> memoryview:
    """A gzip file of about `expected` bytes, in pieces that stay in the cache, into NumPy's (huge-page) memory."""
    whole, n = memoryview(np.empty(expected, np.uint8)), 0
    with igzip.open(path) as file:
        while n < expected and (n_read := file.readinto(whole[n : n + PIECE_BYTES])):
            n += n_read
        rest = file.read()  # of further members; at the end of the last one its length and CRC are checked
    return memoryview(bytes(whole[:n]) + rest) if rest else whole[:n]


def _order(path: Path, content: memoryview) -> str:
    """Byte order of a NIfTI-1 file, as struct writes it."""
    if len(content) < HEADER_BYTES:
        raise CtReadError(path, "truncated", f"{len(content)} bytes; a NIfTI header has {HEADER_BYTES}")
    for order in "<>":
        if struct.unpack_from(order + "i", content)[0] == HEADER_BYTES and content[344:347] == b"n+1":
            return order
    raise CtReadError(path, "bad header", "not a NIfTI-1 file (.nii or .nii.gz)")


def _values(path: Path, content: memoryview) -> tuple[np.ndarray, float, float]:
    """Voxels as stored [D, H, W] (a view of `content`), slope and intercept."""
    order = _order(path, content)
    n_dims, *dims = struct.unpack_from(order + "8h", content, 40)
    if not 3 <= n_dims <= 7 or any(n != 1 for n in dims[3:n_dims]) or min(dims[:3]) < 2:
        raise CtReadError(path, "not 3-D", f"dimensions {dims[: max(n_dims, 0)]}")
    (kind,) = struct.unpack_from(order + "h", content, 70)
    if kind not in NIFTI_TYPES:
        raise CtReadError(path, "bad header", f"data type {kind} is not a scalar of at most 64 bits")
    offset, slope, intercept = struct.unpack_from(order + "3f", content, 108)
    if not math.isfinite(slope) or not math.isfinite(intercept) or slope < 0:
        raise CtReadError(path, "wrong slope", f"slope {slope}, intercept {intercept} in the header")
    if slope == 0:  # the standard's way to say "not scaled"
        slope, intercept = 1.0, 0.0
    dtype, n_values = np.dtype(order + NIFTI_TYPES[kind]), dims[0] * dims[1] * dims[2]
    if not HEADER_BYTES <= offset < 1 << 24:
        raise CtReadError(path, "bad header", f"voxels announced at byte {offset}")
    if len(content) < int(offset) + n_values * dtype.itemsize:
        expected = int(offset) + n_values * dtype.itemsize
        raise CtReadError(path, "truncated", f"{len(content)} of {expected} bytes; download it again")
    values = np.frombuffer(content, dtype, n_values, int(offset)).reshape(dims[2], dims[1], dims[0])
    return values, slope, intercept


def rescaled(path: Path, values: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """slope * values + intercept in float32, or the values themselves where they are unscaled int16; checked."""
    if not math.isfinite(slope) or not math.isfinite(intercept) or slope <= 0:
        raise CtReadError(path, "wrong slope", f"slope {slope}, intercept {intercept}")
    if values.dtype == np.int16 and (slope, intercept) == (1.0, 0.0):
        hu = values
    else:
        hu = values.astype(np.float32)
        if slope != 1.0:
            hu *= np.float32(slope)
        if intercept:
            hu += np.float32(intercept)
    some = hu[len(hu) // 2] if hu.dtype == np.int16 else hu  # int16 has no NaN, and a slice that varies is enough
    low, high = some.min(), some.max()  # NaN and infinities show in these
    if low == high:
        low, high = hu.min(), hu.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise CtReadError(path, "not finite", f"{int((~np.isfinite(hu)).sum())} voxels are NaN or infinite")
    if low == high:
        raise CtReadError(path, "constant", f"every voxel is {low:g}")
    return hu


def _file_header(path: Path, content: memoryview | bytes) -> FileHeader:
    """SimpleITK's reading of the header, after what it would overlook: sheared, contradictory and blank forms."""
    import SimpleITK as sitk

    order = _order(path, content)
    pixdim = struct.unpack_from(order + "3f", content, 80)
    qform, sform = struct.unpack_from(order + "2h", content, 252)
    if not sform and not all(math.isfinite(step) and step > 0 for step in pixdim):
        raise CtReadError(path, "bad spacing", f"{pixdim} in the header")
    if qform <= 0 and sform <= 0 and pixdim == (1.0, 1.0, 1.0):
        raise CtReadError(path, "blank header", "no spacing, no orientation; read it with the table of its release")
    affine = np.reshape(struct.unpack_from(order + "12f", content, 280), (3, 4))[:, :3] if sform > 0 else None
    if affine is not None:
        _check_shear(path, affine)
        if qform > 0:
            qfac, b, c, d = struct.unpack_from(order + "f", content, 76) + struct.unpack_from(
                order + "3f", content, 256
            )
            _check_forms(path, affine, _rotation(b, c, d) * [1, 1, -1 if qfac < 0 else 1] * pixdim)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = "gantry tilt" if "orthonormal" in str(error) else "bad header"
        raise CtReadError(path, reason, str(error).strip().splitlines()[-1]) from error
    n, spacing, cosines = reader.GetSize(), reader.GetSpacing()[:3], reader.GetDirection()
    if reader.GetDimension() > 3:  # trailing dimensions of size 1
        side = reader.GetDimension()
        cosines = tuple(np.reshape(cosines, (side, side))[:3, :3].ravel().tolist())
    check_spacing(path, spacing, "(x, y, z)")
    code = orientation_code(cosines) if qform > 0 or sform > 0 else ""
    return FileHeader(tuple(n[2::-1]), tuple(spacing[::-1]), tuple(reader.GetOrigin()[:3]), tuple(cosines), code)


def check_spacing(path: Path, spacing_mm: tuple, axes: str) -> tuple:
    """spacing_mm, if every step is one that a CT may have, else CtReadError. axes: their order, for the message."""
    if not all(SPACING_MM[0] <= step <= SPACING_MM[1] for step in spacing_mm):
        raise CtReadError(path, "bad spacing", f"{spacing_mm} {axes}; {SPACING_MM[0]} to {SPACING_MM[1]} mm expected")
    return spacing_mm


def _check_shear(path: Path, affine: np.ndarray) -> None:
    """affine: [3, 3], columns = steps along x, y, z. A sheared grid (gantry tilt not undone) is no grid of voxels."""
    length = np.linalg.norm(affine, axis=0)
    if not np.isfinite(affine).all() or (length == 0).any():
        raise CtReadError(path, "bad spacing", f"sform steps of {length} mm")
    cosines = np.abs((affine / length).T @ (affine / length) - np.eye(3)).max()
    if cosines > 0.01:
        degrees = math.degrees(math.asin(min(cosines, 1.0)))
        raise CtReadError(path, "gantry tilt", f"axes are {degrees:.1f} degrees off the right angle; resample it first")


def _rotation(b: float, c: float, d: float) -> np.ndarray:
    """[3, 3] rotation of the unit quaternion (a, b, c, d), a >= 0 (NIfTI-1, "method 2")."""
    a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _check_forms(path: Path, sform: np.ndarray, qform: np.ndarray) -> None:
    """[3, 3] each, columns = steps in mm. They must tell one story; SimpleITK would follow one of them in silence."""
    to_lps = np.diag([-1.0, -1.0, 1.0])
    codes = [orientation_code(tuple((to_lps @ form).ravel())) for form in (sform, qform)]
    if codes[0] != codes[1]:
        raise CtReadError(path, "mixed orientation", f"the sform says {codes[0]}, the qform {codes[1]}")
    lengths = [np.linalg.norm(form, axis=0) for form in (sform, qform)]
    if not np.allclose(*lengths, rtol=0.01):
        detail = " and ".join(" x ".join(f"{step:.3g}" for step in length) for length in lengths)
        raise CtReadError(path, "mixed spacing", f"sform and qform disagree: {detail} mm")


def _by_anatomy(path: Path, hu: np.ndarray) -> np.ndarray:
    """The array in LPS where both form codes are 0.

    SimpleITK takes such a file for LPS, nibabel for LAS: they agree but for front and back. The reading that puts the
    spine behind is taken, and without a clear answer the volume is refused. The spine is what stays dense along the
    whole scan; the reference's rule (bone above 300 HU lies mostly behind) would mistake a heart full of contrast.
    """
    step = max(1, round((hu.size / SAMPLED_VOXELS) ** (1 / 3)))
    sample = hu[::step, ::step, ::step]
    spine = ((sample > SPINE_HU).mean(axis=0) > SPINE_SHARE).sum(axis=1)  # per row, front to back if LPS
    body = (sample > -300).sum(axis=(0, 2))
    rows = np.arange(len(body))
    if spine.any():
        present = np.flatnonzero(body > 0.05 * body.max())
        extent = max(present[-1] - present[0], 1)
        shift = (rows @ spine / spine.sum() - rows @ body / body.sum()) / extent
        if abs(shift) >= SPINE_SHIFT:
            return hu if shift > 0 else hu[:, ::-1]
    raise CtReadError(path, "unknown orientation", "both form codes are 0 and no spine tells front from back")


# ---------------------------------------------------------------------------------------------------- plausibility


def check_chest(volume: CtVolume, path: Path | str) -> CtVolume:
    """The volume, if its values look like a chest in HU with its surroundings, else CtReadError.

    Catches a rescale that was forgotten, done twice or with the wrong slope ("not HU") and scans without lungs, such as
    heads ("not a chest CT"). Not for crops: air around the body must be in view.
    """
    step = max(1, round((volume.hu.size / SAMPLED_VOXELS) ** (1 / 3)))
    sample = volume.hu[::step, ::step, ::step]
    air = float((sample < -900).mean())
    soft = float(((sample >= -200) & (sample <= 300)).mean())
    shares = f"{air:.0%} of voxels below -900 HU, {soft:.0%} in -200..300 HU"
    if not AIR_SHARE[0] <= air <= AIR_SHARE[1] or soft < SOFT_SHARE:
        raise CtReadError(path, "not HU", f"{shares}: rescaled twice, not at all, or with a wrong slope?")
    lung = float(((sample >= -950) & (sample <= -600)).sum() / max((sample > -950).sum(), 1))
    if lung < LUNG_SHARE:
        raise CtReadError(path, "not a chest CT", f"lung is {lung:.1%} of what is not air")
    return volume


def read_row(root: Path, row, table: TableHeader | None = None) -> CtVolume:
    """The volume of an index row (Series or dict) as HU in LPS; CtReadError where it is broken or no chest in HU."""
    path = resolve(root, row["path"])
    ids = {name: row[name] for name in ("volume_id", "patient_id", "study_id")}
    return check_chest(read_nifti(path, table, **ids), path)
