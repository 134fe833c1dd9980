"""The table of faults is that of the loaders: `python -m tests.faults`."""

import pytest

from shared import ct, ecg
from synth_medvlp import datasets as cxr
from tests.faults import faults


@pytest.mark.filterwarnings("ignore")  # pydicom warns of what the error then names
def test_every_fault_is_what_its_loader_says(tmp_path):
    table = list(faults(tmp_path))
    registries = {"ECG": ecg.LOADERS, "CT": ct.LOADERS, "CXR": cxr.LOADERS}
    loaders = {f"{kind}, {name}" for kind, registry in registries.items() for name in registry}
    assert loaders <= {f.loader for f in table}
    assert [f for f in table if f.reason != f.expected] == []
    assert len({(f.loader, f.broken) for f in table}) == len(table)
