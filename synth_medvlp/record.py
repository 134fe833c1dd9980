"""One chest radiograph as every loader hands it out: pixels as released, ids, report, labels, boxes, mask.

Serves all stages of the reference (A1 real pairs, evaluation data sets). Never a normalised tensor: what a model sees
is made from this record by `synth_medvlp.datasets.read_image` and the paper's data module.
"""

from dataclasses import dataclass, field

import numpy as np

from shared.store import ReadError

Box = tuple[str, float, float, float, float]  # label, x, y, width, height; x to the right, y down, in pixels


class CxrReadError(ReadError):
    """An image, table or other file that cannot be used as it is."""


@dataclass(frozen=True)
class CxrRecord:
    """A chest radiograph.

    image: [H, W] uint8 or uint16, bright = dense (MONOCHROME1 files are inverted on reading); a 16-bit image keeps the
    values of its file, so 12-bit data end at 4095. view: PA, AP, lateral or other. findings, impression: sections of
    the report, "" where there are none. labels: class name -> 1 present, 0 absent, -1 uncertain, None not mentioned.
    boxes: (label, x, y, w, h) in pixels of `image`. mask: [H, W] bool, or None where the release has no mask.
    source: hospital or collection within the release, "" where it names none.
    """

    image_id: str
    study_id: str
    patient_id: str
    dataset: str
    image: np.ndarray
    view: str
    findings: str = ""
    impression: str = ""
    labels: dict[str, int | None] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    mask: np.ndarray | None = None
    source: str = ""
