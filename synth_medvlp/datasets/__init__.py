"""Loaders of the official layouts of the chest X-ray sets. Reference: section Data.

Every module has NAME (its folder under DATA_ROOT), CLASSES (label names, in order), `read_index(root) -> DataFrame`
with the columns tables.INDEX_COLUMNS, and `split(index, root, protocol, seed) -> DataFrame` (see splits), protocol
as_published or corrected. `read_record(root, row, NAME)` opens an image, `read_image(record)` makes the array that a
model is given.
"""

from synth_medvlp.datasets import (
    chestxray14,
    chexpert,
    covid_rural,
    covidx,
    hannover,
    mimic_cxr_jpg,
    padchest,
    rsna,
    siim,
)
from synth_medvlp.datasets.labels import targets
from synth_medvlp.datasets.masks import boxes_mask, decode_rle, encode_rle
from synth_medvlp.datasets.reading import fit_mask, read_image, read_record
from synth_medvlp.datasets.splits import shared
from synth_medvlp.datasets.tables import INDEX_COLUMNS, listed, present

# Data-set name (= folder name below DATA_ROOT) -> loader.
LOADERS = {
    module.NAME: module
    for module in (mimic_cxr_jpg, chexpert, chestxray14, padchest, rsna, siim, covidx, covid_rural, hannover)
}

__all__ = [
    "INDEX_COLUMNS",
    "LOADERS",
    "boxes_mask",
    "decode_rle",
    "encode_rle",
    "fit_mask",
    "listed",
    "present",
    "read_image",
    "read_record",
    "shared",
    "targets",
]
