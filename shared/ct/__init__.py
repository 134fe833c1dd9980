"""CT volumes: loaders of the official layouts, geometry, the packed store and the simulator."""

from shared.ct import bimcv_r, ct_rate, inspect_ctpa

# Data-set name (= folder name below DATA_ROOT) -> loader with NAME, read_index(root), split(index, seed), read_volume.
LOADERS = {module.NAME: module for module in (ct_rate, bimcv_r, inspect_ctpa)}
