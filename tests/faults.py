"""One table of broken inputs and what each loader says of it: `python -m tests.faults`.

The inputs are those of the loaders' own tests (tests/shared/test_*_broken*.py, tests/synth_medvlp/test_cxr_broken.py
and test_cxr_images.py).
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path += [str(Path(__file__).parent / folder) for folder in ("shared", "synth_medvlp")]

import test_ct_broken as ct
import test_ct_broken_dicom as dicom
import test_cxr_broken as cxr
import test_cxr_images as films
import test_ecg_broken_files as ecg
from ct_files import ct_rate, thorax, write_dicom, write_nifti
from cxr_trees import write_nih
from ecg_files import write_wfdb

from shared.ct.volume import CtReadError, CtVolume
from shared.ecg.record import EcgReadError
from synth_medvlp.datasets import chestxray14, read_record
from synth_medvlp.datasets.images import read_pixels
from synth_medvlp.record import CxrReadError


@dataclass(frozen=True)
class Fault:
    """A broken input. expected: the reason that its test demands; reason, said: what the loader raised."""

    loader: str
    broken: str
    expected: str
    reason: str
    said: str


def _fault(loader: str, broken: str, expected: str, read: Callable[[], object]) -> Fault:
    try:
        read()
    except (EcgReadError, CtReadError, CxrReadError) as error:
        return Fault(loader, broken, expected, error.reason, error.detail)
    return Fault(loader, broken, expected, "nothing", "read without an error")


def faults(folder: Path) -> Iterator[Fault]:
    """Each input is written below the folder, which is empty, and read."""
    folders = (folder / f"{number}" for number in range(10**6))

    def place() -> Path:
        path = next(folders)
        path.mkdir()
        return path

    def edited(path: Path, edit: Callable | None) -> Path:
        if edit:
            edit(path)
        return path

    for name, (arguments, edit, reason, _) in ecg.BROKEN.items():
        path = edited(write_wfdb(place() / "r", **arguments), edit)
        yield _fault("ECG, WFDB", name, reason, lambda p=path: ecg.read_signal(p, 500))
    for kind, trees in (("ECG", ecg.TREES), ("CXR", cxr.BROKEN)):
        for name, (loader, write, reason, _) in trees.items():
            write(root := place())
            what = name.partition(": ")[2]
            yield _fault(f"{kind}, {loader.NAME}", what, reason, lambda m=loader, r=root: m.read_index(r))
    for name, (arguments, edit, reason, _) in ct.BROKEN.items():
        path = edited(write_nifti(place() / "v.nii.gz", **{"hu": thorax()} | arguments), edit)
        yield _fault("CT, NIfTI", name, reason, lambda p=path: ct.read_nifti(p))
    for name, (change, edit, reason, _) in dicom.SERIES.items():
        path = edited(write_dicom(place(), thorax()[:12], change=change or (lambda k, tags: None)), edit)
        yield _fault("CT, DICOM", name, reason, lambda p=path: dicom.read_dicom(p))
    for name, (hu, reason) in ct.VALUES.items():
        volume = CtVolume(hu, ct.SPACING)
        yield _fault("CT, values", name, reason, lambda v=volume: ct.check_chest(v, "v.nii.gz"))
    for name, table, old, new, reason, _ in ct.TABLES:
        root = ct.TREES[name](place())
        text = (root / table).read_text()
        (root / table).write_text(new if old is None else text.replace(old, new))
        what = f"{Path(table).name}: " + ("empty" if old is None else f"{old[-30:]} -> {new[-30:]}")
        yield _fault(f"CT, {name}", what, reason, lambda n=name, r=root: ct.LOADERS[n].read_index(r))
    loader = ct.LOADERS["ct-rate"]
    for column, cell in ct.MALFORMED:
        root = ct_rate(place(), ct.NAMES[:1], fixed=False, **{column: {ct.NAMES[0]: cell}})
        row = loader.read_index(root).iloc[0]
        expected = f"malformed {column}"
        yield _fault(f"CT, {loader.NAME}", f"{column} {cell!r}", expected, partial(loader.read_volume, root, row))
    for name, (write, reason) in films.BROKEN.items():
        path = write(place())
        yield _fault("CXR, image", name, reason, lambda p=path: read_pixels(p))
    root = write_nih(place(), 1)
    row = chestxray14.read_index(root).iloc[0].to_dict()
    outside = [("ECG, record", ecg.OUTSIDE, lambda p: ecg.read_record(root, {"path": p, "record_id": "1"}, "x"))]
    outside += [("CXR, record", cxr.OUTSIDE, lambda p: read_record(root, row | {"path": p}, "nih-cxr"))]
    for name, loader in ct.LOADERS.items():
        outside += [(f"CT, {name}", ct.OUTSIDE, lambda p, m=loader: m.read_volume(root, ct.ROW | {"path": p}))]
    for loader, paths, read in outside:
        for path in paths:
            yield _fault(loader, f"path {path!r}", "path outside the root", partial(read, path))


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    warnings.filterwarnings("ignore", module="pydicom")  # of what the error then names
    table = Table("loader", "broken", "error", "what it says")
    with tempfile.TemporaryDirectory() as folder:
        for fault in faults(Path(folder)):
            table.add_row(fault.loader, fault.broken, fault.reason, fault.said.replace(folder, "")[:90])
    Console(width=160).print(table, f"{table.row_count} broken inputs", markup=False)


if __name__ == "__main__":
    main()
