"""Broken DICOM series: every one a named error (`CtReadError`)."""

import io
from pathlib import Path

import pydicom
import pytest
from ct_files import cut, thorax, write_dicom

from shared.ct.dicom import read_dicom
from shared.ct.volume import CtReadError


def _set(**tags):
    return lambda k, dataset: [setattr(dataset, name, value) for name, value in tags.items()]


def _at(slice_number, **tags):
    return lambda k, dataset: _set(**tags)(k, dataset) if k == slice_number else None


def _tilt(k, tags):
    tags.ImagePositionPatient = [-30.0, 12.0 + 1.0 * k, 100.0 + 4.0 * k]


def _apart(k, tags):
    tags.ImagePositionPatient = [-30.0, 12.0, 100.0 + 40.0 * k]


def _becomes_note(path: Path) -> None:
    path.write_bytes(b"x" * 500)
    path.rename(path.with_suffix(".txt"))


def _without_syntax(path: Path) -> None:
    tags = pydicom.dcmread(path)
    del tags.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(path, tags, implicit_vr=False, little_endian=True)


def _with_class(content: bytes, uid: str) -> bytes:
    """A DICOM file as `content`, of another class and without an image."""
    tags = pydicom.dcmread(io.BytesIO(content))
    tags.file_meta.MediaStorageSOPClassUID = tags.SOPClassUID = uid
    del tags.Rows, tags.PixelData
    out = io.BytesIO()
    pydicom.dcmwrite(out, tags, enforce_file_format=True)
    return out.getvalue()


SERIES = {
    # name: (edit of the tags of slice k, edit of the folder, expected reason, expected in the detail)
    "missing slice": (None, lambda d: next(d.glob("*-7.dcm")).unlink(), "missing slices", "8.00 mm between"),
    "all but one missing": (
        None,
        lambda d: [p.unlink() for p in sorted(d.iterdir())[1:]],
        "missing slices",
        "one slice",
    ),
    "doubled slice": (_at(5, ImagePositionPatient=[-30.0, 12.0, 116.0]), None, "duplicate slices", "-4.dcm"),
    "gantry tilt": (_tilt, None, "gantry tilt", "14.0 degrees"),
    "mixed orientation": (_at(3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), None, "mixed orientation", "planes"),
    "mixed size": (_at(3, Rows=24, Columns=88), None, "mixed size", "(24, 88)"),
    "mixed spacing": (_at(3, PixelSpacing=[7.0, 9.0]), None, "mixed spacing", "mm"),
    "magnetic resonance": (_set(Modality="MR"), None, "not CT", "MR"),
    "no HU": (_set(RescaleType="US"), None, "not HU", "US"),
    "slope 0": (_at(3, RescaleSlope=0), None, "wrong slope", "RescaleSlope 0"),
    "no slope": (lambda k, tags: tags.__delattr__("RescaleSlope"), None, "wrong slope", "None"),
    "no position": (
        lambda k, tags: tags.__delattr__("ImagePositionPatient"),
        None,
        "bad header",
        "ImagePositionPatient",
    ),
    "two series": (lambda k, tags: _set(SeriesInstanceUID=f"1.9.{k % 2}")(k, tags), None, "several series", "1.9.1"),
    "cut pixels": (None, lambda d: cut(next(d.glob("*-7.dcm")), 2000), "truncated", "4224"),
    "empty folder": (None, lambda d: [p.unlink() for p in d.iterdir()], "no series", "no DICOM image"),
    "other files": (None, lambda d: [_becomes_note(p) for p in list(d.iterdir())], "no series", ""),
    "not DICOM but in name": (None, lambda d: next(d.glob("*-7.dcm")).write_bytes(b"x" * 500), "bad header", "DICM"),
    "no transfer syntax": (None, lambda d: _without_syntax(next(d.glob("*-7.dcm"))), "bad header", "TransferSyntaxUID"),
    "cut by ten bytes": (None, lambda d: cut(next(d.glob("*-7.dcm")), -10), "truncated", "4224 expected"),
    "spacing zero": (_set(PixelSpacing=[0, 8.0]), None, "bad spacing", "0.05 to 30.0 mm"),
    "spacing in micrometres": (_set(PixelSpacing=[700, 800]), None, "bad spacing", "(700.0, 800.0)"),
    "slices 40 mm apart": (_apart, None, "bad spacing", "(40.0, 7.0, 8.0)"),
    "one spacing": (_set(PixelSpacing=7.0), None, "bad header", "PixelSpacing 7"),
}


@pytest.mark.parametrize("suffix", [".dcm", ""])
@pytest.mark.parametrize("end", [0, 11])
@pytest.mark.parametrize("n_bytes", [0, 60, 131, 132, 141, 200, 233, 300, 380, 450, 490, 561, 600, 2000])
def test_cut_end_slice_is_not_left_out(tmp_path, n_bytes, end, suffix):
    """Without it the others are still a regular stack, one slice short."""
    folder = write_dicom(tmp_path / "d", thorax()[:12])
    path = next(folder.glob(f"*-{end}.dcm"))
    cut(path, n_bytes)
    path = path.rename(path.with_suffix(suffix))
    with pytest.raises(CtReadError) as error:
        read_dicom(folder)
    assert error.value.path == str(path)
    assert error.value.reason in ("bad header", "truncated")


def test_what_is_plainly_no_slice_is_passed_over(tmp_path):
    folder = write_dicom(tmp_path / "d", thorax()[:12])
    (folder / "README").write_text("from the archive")
    (folder / "._000-0.dcm").write_bytes(b"Mac OS X")
    report = next(folder.glob("*-7.dcm")).read_bytes()
    (folder / "DICOMDIR").write_bytes(_with_class(report, "1.2.840.10008.1.3.10"))
    assert read_dicom(folder).hu.shape == thorax()[:12].shape


@pytest.mark.parametrize("name", SERIES)
def test_broken_series_is_a_named_error(tmp_path, name):
    change, edit, reason, message = SERIES[name]
    folder = write_dicom(tmp_path / "d", thorax()[:12], change=change or (lambda k, tags: None))
    if edit:
        edit(folder)
    with pytest.raises(CtReadError) as error:
        read_dicom(folder)
    assert error.value.reason == reason, str(error.value)
    assert message in error.value.detail


def test_series_that_is_not_there(tmp_path):
    with pytest.raises(CtReadError, match="missing file"):
        read_dicom(tmp_path / "nothing")
    write_dicom(tmp_path / "d", thorax()[:3])
    with pytest.raises(CtReadError, match=r"no slice of series 9\.9"):
        read_dicom(tmp_path / "d", "9.9")
