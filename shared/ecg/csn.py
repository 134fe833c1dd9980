"""Chapman-Shaoxing-Ningbo 1.0.0 (Zheng et al., doi:10.13026/wgex-er52): 45,152 records, 12 leads, 10 s, 500 Hz.

Layout: WFDBRecords/NN/NNN/JSnnnnn (.hea with SNOMED CT codes in `# Dx:`, .mat); flat copies are read as well. No
reports, no patients. Serves K-MERL and SuPreME (downstream).
"""

from pathlib import Path

import pandas as pd

from shared.ecg.wfdb_io import cinc_index

NAME = "chapman-shaoxing-ningbo"
FS_HZ = 500.0


def read_index(root: Path) -> pd.DataFrame:
    """One row per header found below `root`, sorted by record id, with INDEX_COLUMNS; patient_id = record id.

    labels: SNOMED CT codes. Raises EcgReadError: missing file, no records, duplicate id. See `cinc_index`.
    """
    return cinc_index(root)
