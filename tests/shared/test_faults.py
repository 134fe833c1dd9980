"""The table of faults is that of the loaders: `python -m tests.faults`."""

from tests.faults import faults


def test_every_fault_is_what_its_loader_says(tmp_path):
    table = list(faults(tmp_path))
    assert len(table) >= 40 and {f.loader.split(",")[0] for f in table} == {"ECG", "CT", "CXR"}
    assert [f for f in table if f.reason != f.expected] == []
    assert len({(f.loader, f.broken) for f in table}) == len(table)
