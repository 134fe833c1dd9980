"""SuPreME and what it is compared with, by method: `build` makes a new model, `load` reads a checkpoint."""

import json
from pathlib import Path

from shared.runs.checkpoint import fetched
from supreme.baselines.astcl import Astcl
from supreme.baselines.barlow_twins import BarlowTwins
from supreme.baselines.byol import Byol
from supreme.baselines.clocs import Clocs
from supreme.baselines.crt import Crt
from supreme.baselines.merl import Merl
from supreme.baselines.moco_v3 import MoCoV3
from supreme.baselines.simclr import SimClr
from supreme.baselines.simsiam import SimSiam
from supreme.baselines.st_mem import StMem
from supreme.baselines.supervised import Supervised
from supreme.baselines.ts_tcc import TsTcc
from supreme.model import EcgModel, ModelConfig, SupremeModel
from supreme.ssl import SslConfig

METHODS: dict[str, type[EcgModel]] = {
    "supreme": SupremeModel, "supervised": Supervised, "merl": Merl, "simclr": SimClr, "byol": Byol,
    "barlow_twins": BarlowTwins, "moco_v3": MoCoV3, "simsiam": SimSiam, "ts_tcc": TsTcc, "clocs": Clocs,
    "astcl": Astcl, "crt": Crt, "st_mem": StMem,
}  # fmt: skip


def build(
    cfg: ModelConfig, ssl: SslConfig | None = None, n_samples: int = 5000, d_text: int = 768, n_classes: int = 0
) -> EcgModel:
    """A new model of cfg.method for ECGs of up to n_samples and text vectors of width d_text.

    n_classes: labels of a record, which some heads need. ValueError for an unknown method.
    """
    if cfg.method not in METHODS:
        raise ValueError(f"model.method: '{cfg.method}' is none of {', '.join(METHODS)}")
    return METHODS[cfg.method].build(cfg, ssl or SslConfig(), n_samples, d_text, n_classes)


def load(checkpoint: str | Path) -> EcgModel:
    """The model saved in a folder or on the hub, of the method that its config.json names, in eval mode.

    FileNotFoundError without config.json, ValueError for a checkpoint of something else.
    """
    file = fetched(checkpoint) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no checkpoint there; train one with `python -m supreme.train`")
    method = (json.loads(file.read_text()).get("model") or {}).get("method")
    if method not in METHODS:
        raise ValueError(f"{file}: model.method '{method}' is none of {', '.join(METHODS)}")
    return METHODS[method].from_pretrained(str(file.parent))
