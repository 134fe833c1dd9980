"""Pixels of PNG, JPG and DICOM files: 8 or 16 bit, one channel, bright = dense. Serves every loader.

Reasons of CxrReadError: missing file, truncated, unreadable, not greyscale, bit depth, too large.
"""

from pathlib import Path

import numpy as np

from synth_medvlp.record import CxrReadError

DICOM_SUFFIXES = (".dcm", ".dicom")


def read_pixels(path: Path) -> tuple[np.ndarray, str]:
    """([H, W] uint8 or uint16, view as the DICOM header writes it, "" elsewhere). Raises CxrReadError.

    Colour PNG and JPG files (a few hundred of ChestX-ray14 are RGBA, many of COVIDx RGB) become luminance.
    """
    path = Path(path)
    if not path.is_file():
        raise CxrReadError(path, "missing file", "fetch it again, or drop the row with datasets.present")
    if not path.stat().st_size:
        raise CxrReadError(path, "truncated", "0 bytes")
    return _read_dicom(path) if path.suffix.lower() in DICOM_SUFFIXES else (_read_picture(path), "")


# ------------------------------------------------------------------------------------------------ PNG and JPG


def _read_picture(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            deep = image.mode.startswith("I") or image.mode == "F"
            pixels = np.asarray(image if deep or image.mode == "L" else image.convert("L"))
    except UnidentifiedImageError as error:
        raise CxrReadError(path, "unreadable", "no PNG or JPG") from error
    except Image.DecompressionBombError as error:
        raise CxrReadError(path, "too large", str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow raises all of these for damaged files
        reason = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "unreadable"
        raise CxrReadError(path, reason, str(error)) from error
    return _sixteen_bits(path, pixels) if deep else pixels


def _sixteen_bits(path: Path, pixels: np.ndarray) -> np.ndarray:
    """uint16 from Pillow's modes I;16 (uint16) and I (int32, how it opens some 16-bit PNG files)."""
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65_535:
        detail = f"{pixels.dtype} values {pixels.min()} to {pixels.max()}; 8 or 16 bit unsigned expected"
        raise CxrReadError(path, "bit depth", detail)
    return pixels.astype(np.uint16)


# ------------------------------------------------------------------------------------------------------ DICOM


def _read_dicom(path: Path) -> tuple[np.ndarray, str]:
    """Rescale, window (or VOI table) and inversion of MONOCHROME1 applied, in the order of DICOM PS3.4 N.2.

    Without rescale, window and sign the stored values themselves; else the full range of 8 or 16 bits.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(path)
    except InvalidDicomError as error:
        raise CxrReadError(path, "unreadable", "no DICOM file") from error
    except Exception as error:  # a damaged header fails in many ways: EOFError, struct.error, NotImplementedError ...
        reason = "truncated" if isinstance(error, EOFError) else "unreadable"
        raise CxrReadError(path, reason, f"{type(error).__name__}: {error}") from error
    if "PixelData" not in header:
        raise CxrReadError(path, "truncated", "the file ends before the pixels")
    photometric = str(header.get("PhotometricInterpretation", "")).strip()
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or int(header.get("NumberOfFrames") or 1) != 1:
        detail = f"{photometric or 'no PhotometricInterpretation'}, {header.get('NumberOfFrames') or 1} frames"
        raise CxrReadError(path, "not greyscale", f"{detail}; one monochrome frame expected")
    bits = int(header.get("BitsStored") or 0)
    if not 1 <= bits <= 16:
        raise CxrReadError(path, "bit depth", f"{bits} bits stored; 1 to 16 expected")
    stored = _stored_values(path, header)
    image = _grey_values(path, header, stored, bits, inverted=photometric == "MONOCHROME1")
    return image, str(header.get("ViewPosition") or "").strip()


def _stored_values(path: Path, header) -> np.ndarray:
    """[H, W] integers as stored. Raises CxrReadError: truncated, unreadable."""
    n_bytes = int(header.get("Rows", 0)) * int(header.get("Columns", 0)) * int(header.get("BitsAllocated", 8)) // 8
    syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
    if not (syntax and syntax.is_compressed) and len(header.PixelData) < n_bytes:
        raise CxrReadError(path, "truncated", f"{len(header.PixelData)} of {n_bytes} bytes of pixels")
    try:
        return header.pixel_array
    except Exception as error:  # decoders raise whatever their codec does
        raise CxrReadError(path, _codec_reason(str(error)), f"{type(error).__name__}: {error}") from error


def _codec_reason(message: str) -> str:
    words = ("truncated", "unexpected end", "number of bytes", "not enough", "premature")
    return "truncated" if any(word in message.lower() for word in words) else "unreadable"


def _grey_values(path: Path, header, stored: np.ndarray, bits: int, inverted: bool) -> np.ndarray:
    """Stored values -> uint8 (at most 8 bits) or uint16, bright = dense."""
    signed = int(header.get("PixelRepresentation", 0)) == 1
    slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
    depth = np.uint8 if bits <= 8 else np.uint16
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    window = _window(path, header)
    if window is None and not signed and (slope, intercept) == (1, 0) and "VOILUTSequence" not in header:
        return (high - stored if inverted else stored).astype(depth)
    values = stored * slope + intercept
    if window is not None:
        share = windowed(values, *window)
    elif "VOILUTSequence" in header:
        share = _table_share(path, header, values.astype(stored.dtype))
    else:
        low, high = sorted((low * slope + intercept, high * slope + intercept))
        share = (values - low) / (high - low)
    if inverted:
        share = 1 - share
    return np.rint(np.clip(share, 0, 1) * np.iinfo(depth).max).astype(depth)


def windowed(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Share 0..1 of the grey range that a DICOM window gives (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    LINEAR subtracts 0.5 from the centre and 1 from the width, LINEAR_EXACT does not, SIGMOID is the logistic curve.
    """
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:
        return (values > centre - 0.5).astype(float)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _window(path: Path, header) -> tuple[float, float, str] | None:
    """(centre, width, function) of the first window of the header; None where it has none."""
    centres, widths = header.get("WindowCenter"), header.get("WindowWidth")
    if centres in (None, "") or widths in (None, ""):
        return None
    centre, width = (float(v[0]) if hasattr(v, "__getitem__") else float(v) for v in (centres, widths))
    function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width < 1 - (function != "LINEAR") or width <= 0:
        raise CxrReadError(path, "unreadable", f"window {function} with centre {centre:g}, width {width:g}")
    return centre, width, function


def _table_share(path: Path, header, values: np.ndarray) -> np.ndarray:
    """Share 0..1 by the header's first VOI look-up table."""
    from pydicom.pixels import apply_voi

    try:
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(values, header) / (2**bits - 1)
    except Exception as error:
        raise CxrReadError(path, "unreadable", f"VOI table: {type(error).__name__}: {error}") from error
