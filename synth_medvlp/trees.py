"""Where a release lies: the official files under DATA_ROOT, or a simulated hospital in the same layout in the cache."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.locks import locked
from shared.runs.config import cache_root, hash_of, official_tree
from shared.store import disk_errors
from synth_medvlp import simulate
from synth_medvlp.simulate_layouts import write

SIMULATOR = [Path(simulate.__file__).with_name(f"{name}.py") for name in (
    "anatomy", "defects", "film", "findings", "lesions", "simulate", "simulate_layouts", "simulate_reports",
    "simulate_vocabulary", "skeleton",
)]  # fmt: skip


@dataclass
class CxrSimulateConfig:
    """Embedded data: a hospital of `n_patients`. level: none | middle | strong defects (training hospital only)."""

    n_patients: int = 400
    seed: int = 0
    size_px: int = 64
    level: str = "middle"


def tree(dataset: str, simulated: CxrSimulateConfig | None) -> tuple[Path, str]:
    """(root of the release, "simulated" or the data set's name). A hospital is written once, whoever asks for it.

    Raises FileNotFoundError where an official release is absent.
    """
    if simulated is None:
        return official_tree(dataset), dataset
    root = simulated_tree(dataset, simulated)
    root.parent.mkdir(parents=True, exist_ok=True)
    with locked(root.with_name(f"{root.name}.lock")), disk_errors(root.parent):
        if not root.exists():
            print(f"simulating {dataset}: {simulated.n_patients} patients, seed {simulated.seed}", flush=True)
            level = simulated.level if dataset == "mimic-cxr-jpg" else "none"
            write(dataset, root, simulated.n_patients, simulated.seed, simulated.size_px, level,
                  workers=os.cpu_count() or 1)  # fmt: skip
    return root, "simulated"


def simulated_tree(dataset: str, simulated: CxrSimulateConfig) -> Path:
    """Where the files of a simulated hospital are, or will be."""
    version = hash_of([hash_of(file.read_text()) for file in SIMULATOR])[:8]
    return cache_root() / "simulated-cxr" / f"{dataset}-{hash_of([asdict(simulated), version])}"
