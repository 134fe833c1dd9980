"""ECG records: loaders of the official layouts, the packed store, splits and the simulator."""

from shared.ecg import cpsc2018, csn, mimic_iv_ecg, ptbxl

# Data-set name (= folder name below DATA_ROOT) -> loader with NAME, FS_HZ and read_index(root).
LOADERS = {module.NAME: module for module in (ptbxl, mimic_iv_ecg, cpsc2018, csn)}
