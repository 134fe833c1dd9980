"""K-MERL and what it is compared with, by the name of the method: `build` makes one anew, `load` reads a checkpoint."""

import json
from pathlib import Path

from kmerl.baselines.merl import MerlModel
from kmerl.baselines.supervised import SupervisedModel
from kmerl.model import EcgModel, KmerlModel, ModelConfig
from shared.runs.checkpoint import fetched

METHODS: dict[str, type[EcgModel]] = {"kmerl": KmerlModel, "merl": MerlModel, "supervised": SupervisedModel}


def build(cfg: ModelConfig, n_samples: int, d_text: int = 768, n_classes: int = 0) -> EcgModel:
    """A new model of cfg.method for ECGs of up to n_samples and text vectors of width d_text.

    n_classes: of a supervised model's head.
    """
    return METHODS[cfg.method].build(cfg, n_samples, d_text, n_classes)


def load(checkpoint: str | Path) -> EcgModel:
    """The model saved in a folder or on the hub, of the class that its config.json names, in eval mode.

    FileNotFoundError without config.json, ValueError for a checkpoint of something else.
    """
    file = fetched(checkpoint) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no checkpoint there; train one with `python -m kmerl.train`")
    found = json.loads(file.read_text()).get("model_type")
    for model in METHODS.values():
        if model.config_class.model_type == found:
            return model.from_pretrained(str(file.parent))
    known = ", ".join(m.config_class.model_type for m in METHODS.values())
    raise ValueError(f"{file}: model_type '{found}' is none of {known}")
