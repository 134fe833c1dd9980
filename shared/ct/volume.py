"""One CT volume as every loader hands it out: Hounsfield units, millimetres, ids. Never a normalised tensor.

Arrays are [D, H, W] with z slowest, as SimpleITK hands them out. Loaders return orientation "LPS" (the identity of ITK
and DICOM): z runs inferior -> superior, y anterior -> posterior, x right -> left of the patient. (Argus, reference:
"SimpleITK rules", rules 2 and 7.)
"""

from dataclasses import dataclass

import numpy as np

from shared.store import ReadError

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

# Columns of every data set's index (`read_index` of ct_rate, bimcv_r, inspect_ctpa), one row per volume.
INDEX_COLUMNS = (
    "volume_id",  # str, unique within the data set
    "study_id",  # str, one examination: its volumes (reconstructions, series) share one report
    "patient_id",  # str
    "path",  # str, relative to the data set's root
    "split",  # str, the release's own split; "" where it has none
    "findings",  # str, "" where the release has none
    "impression",  # str, "" where the release has none
    "language",  # str, of the text: "en" or "es"
    "labels",  # dict[str, int], the release's own labels; {} where it has none
    "flag",  # str, why the release or its tables make this volume unfit ("not a chest CT" ...); "" where nothing does
    "n_slices",  # int, 0 where only the file tells
    "spacing_mm",  # (sz, sy, sx) of the tables; () where only the file tells
    "origin_mm",  # (x, y, z) of the tables; () where only the file tells
    "direction",  # 9 cosines of the tables, as ITK orders them; () where only the file tells
    "slope",  # float, HU = slope * value + intercept; NaN where the file holds HU or its own rescale
    "intercept",  # float
    "blank_header",  # bool: geometry and rescale come from this row, not from the file
)


class CtReadError(ReadError):
    """A volume or table that cannot be used as it is."""


@dataclass(frozen=True, eq=False)
class CtVolume:
    """A CT volume.

    hu: [D, H, W] int16 or float32 in HU. spacing_mm: (sz, sy, sx), as the array's axes.
    origin_mm: (x, y, z) of voxel [0, 0, 0] in the LPS space of the patient; direction: 9 cosines as ITK orders them
    (row-major 3x3, columns = directions of the x, y and z index).
    orientation: where x, y and z indices grow to, e.g. "LPS"; orientation_from: "header", "table" or "anatomy" (what it
    was taken from).
    """

    hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY
    orientation: str = "LPS"
    orientation_from: str = "header"
    volume_id: str = ""
    patient_id: str = ""
    study_id: str = ""
