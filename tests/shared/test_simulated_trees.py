"""Simulated releases go through the same loaders as official ones, and say what was drawn."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from shared.ecg import LOADERS, simulate
from shared.ecg.codes import FINDINGS
from shared.ecg.splits import split
from shared.ecg.store import EcgStore, pack
from shared.ecg.wfdb_io import read_record
from shared.metrics.findings import asserted, from_codes

N, FS_HZ = 60, 500
# Findings that a release has no code of its own for -> the code that it files them under instead ("" for none).
FILED_AS = {
    "cpsc2018": {"sinus_rhythm": ""},  # 426783006 is its class "normal"
    "chapman-shaoxing-ningbo": {
        "anterior_mi": "164865005",
        "acute_mi": "164931005",
        "anterior_ischemia": "428750005",
        "inferior_ischemia": "428750005",
        "lateral_ischemia": "428750005",
        "left_atrial_enlargement": "164912004",
    },
}


@pytest.fixture(scope="module", params=LOADERS)
def tree(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("official") / request.param
    simulate.write(request.param, root, N, seed=3, fs_hz=FS_HZ)
    return request.param, root


@pytest.fixture(scope="module")
def drawn(tree):
    truth = pd.read_parquet(tree[1] / "truth.parquet")
    return dict(zip(truth.record_id.astype(str), truth.findings.map(set), strict=True))


def test_every_record_is_read_in_millivolts_with_leads_by_name(tree, drawn):
    name, root = tree
    index = LOADERS[name].read_index(root)
    assert len(index) == N and set(index.record_id) == set(drawn)
    for _, row in index.head(8).iterrows():
        record = read_record(root, row, name, fs_hz=FS_HZ)
        one, two, three, avr, avl, avf = record.signal_mv[:6]
        assert record.fs_hz == FS_HZ and record.signal_mv.shape[0] == 12 and 0.1 < np.abs(record.signal_mv).max() < 20
        step = 0.006  # one unit of the coarsest release is 5 µV
        for left, right in ((three, two - one), (avr, -(one + two) / 2), (avl, one - two / 2), (avf, two - one / 2)):
            np.testing.assert_allclose(left, right, atol=2 * step)


def test_reports_say_what_was_drawn(tree, drawn):
    name, root = tree
    index = LOADERS[name].read_index(root)
    if not index.report.str.len().any():
        assert name in ("cpsc2018", "chapman-shaoxing-ningbo"), "the CinC sets have no reports"
        return
    found = index[["record_id", "report"]].itertuples(index=False)
    wrong = {r: asserted(text) ^ drawn[r] for r, text in found if asserted(text) - {"normal"} != drawn[r] - {"normal"}}
    assert len(wrong) <= 0.05 * N, wrong


def test_codes_say_what_was_drawn(tree, drawn):
    name, root = tree
    index = LOADERS[name].read_index(root)
    vocabulary = "scp" if name == "ptb-xl" else "snomed"
    if name == "mimic-iv-ecg":
        assert (index.labels.str.len() == 0).all(), "MIMIC-IV-ECG has no codes"
        return
    coded = {f.name for f in FINDINGS.values() if getattr(f, vocabulary)}
    for record_id, labels in zip(index.record_id, index.labels, strict=True):
        assert len(labels), record_id
        missed = (drawn[record_id] & coded) - from_codes(labels, vocabulary)
        instead = FILED_AS.get(name, {})
        assert not missed - {"normal"} - set(instead), (record_id, missed, labels)
        assert {instead[finding] for finding in missed & set(instead)} <= {*labels, ""}, (record_id, missed, labels)
        if name == "cpsc2018":
            assert ("426783006" in labels) == ("normal" in drawn[record_id])


def test_pack_and_split(tree, tmp_path):
    name, root = tree
    manifest = pack(name, root, tmp_path / "store", source_fs_hz=FS_HZ, fs_hz=100, workers=1)
    assert manifest["counts"]["packed"] == N and not manifest["skips"]
    store = EcgStore(tmp_path / "store")
    assert {store.signal_mv(i).shape[0] for i in range(N)} == {12}
    parts = split(store.records, "official_folds" if name == "ptb-xl" else "patient", seed=0)
    patient = store.records.set_index("record_id").patient_id
    sets = [set(patient[ids]) for ids in parts.values()]
    assert sum(map(len, parts.values())) == N and not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


OLD = {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "1"}
OLD["NPY_DISABLE_CPU_FEATURES"] = "X86_V3 X86_V4 AVX2 FMA3 AVX512F AVX512_SKX AVX512_ICL AVX512_SPR"


def test_a_tree_is_the_same_on_any_processor(tmp_path):
    trees = []
    for name, processor in (("this", {}), ("old", OLD)):  # in single precision a microvolt differed here and there
        code = f"from shared.ecg import simulate; simulate.write('cpsc2018', {str(tmp_path / name)!r}, 400, 5, 100)"
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=os.environ | processor)
        trees.append(
            {f.relative_to(tmp_path / name): f.read_bytes() for f in tmp_path.glob(f"{name}/**/*") if f.is_file()}
        )
    assert trees[0] == trees[1] and len(trees[0]) > 800
