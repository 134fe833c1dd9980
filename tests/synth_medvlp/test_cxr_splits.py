"""Split rules: what the published ones share, and that the corrected ones share nothing."""

import numpy as np
import pandas as pd
import pytest
from cxr_trees import (
    padchest_row,
    rsna_row,
    write_chexpert,
    write_covidx,
    write_csv,
    write_mimic,
    write_nih,
    write_padchest,
    write_rsna,
    write_rural,
    write_siim,
)

from synth_medvlp.datasets import chestxray14, chexpert, covid_rural, covidx, mimic_cxr_jpg, padchest, rsna, siim
from synth_medvlp.datasets.splits import by_group, by_row, shared
from synth_medvlp.record import CxrReadError


def both(loader, root):
    index = loader.read_index(root)
    return index, loader.split(index, root, "as_published"), loader.split(index, root, "corrected")


def sizes(split: pd.DataFrame) -> dict[str, int]:
    return split.split.value_counts().to_dict()


def test_mimic_published_has_no_test_set(tmp_path):
    reports = ["IMPRESSION: a", "IMPRESSION: b", "FINDINGS: c", "IMPRESSION: d"]
    _, published, corrected = both(mimic_cxr_jpg, write_mimic(tmp_path, reports))
    assert sizes(published) == {"train": 2, "val": 2}  # the lateral image is left out
    assert sizes(corrected) == {"train": 2, "val": 1, "test": 1}
    assert not any(shared(corrected).values())
    reports[0] = "WET READ: none"
    write_mimic(tmp_path, reports)
    assert sizes(both(mimic_cxr_jpg, tmp_path)[2]) == {"train": 1, "val": 1, "test": 1}


def test_chexpert_published_validation_shares_patients(tmp_path, monkeypatch):
    monkeypatch.setattr(chexpert, "VALID_SHARE", 0.25)
    _, published, corrected = both(chexpert, write_chexpert(tmp_path))
    assert sizes(published) == {"train": 60, "val": 20, "test": 4}
    assert shared(published)["train-val patients"] > 5 and shared(published)["train-val images"] == 0
    assert sizes(corrected) == {"train": 80, "val": 3, "test": 4} and not any(shared(corrected).values())


def test_nih_published_validation_shares_patients(tmp_path):
    index, published, corrected = both(chestxray14, write_nih(tmp_path))
    assert sizes(published)["test"] == sizes(corrected)["test"] == 12
    assert shared(published)["train-val patients"] > 5
    assert shared(published)["train-test patients"] == 0 and not any(shared(corrected).values())
    assert set(published.image_id) == set(corrected.image_id) == set(index.image_id)
    files = {"val": ["00000001_001.png", "00000002_000.png"], "test": ["00000010_000.png", "00012345_000.png"]}
    for part, names in files.items():
        write_csv(
            tmp_path / f"mavl/official_{'valid' if part == 'val' else part}.csv", [{"Image Index": n} for n in names]
        )
    published = chestxray14.split(index, tmp_path, "as_published")
    assert sizes(published) == {"train": 106, "val": 2, "test": 1}
    assert published.attrs == {"made": "published files", "unknown": 1}


def test_nih_without_the_official_lists_cannot_be_split(tmp_path):
    with pytest.raises(CxrReadError, match=r"test_list\.txt: missing file"):
        both(chestxray14, write_nih(tmp_path, lists=False))


def test_padchest_as_published_tunes_on_the_test_set(tmp_path):
    rows = [padchest_row(f"a{i}", "['normal']", f"P{i // 2}") for i in range(100)]
    rows += [padchest_row("m", "['normal']", method="RNN_model"), padchest_row("u", "['unchanged', 'nodule']")]
    _, published, corrected = both(padchest, write_padchest(tmp_path, rows))
    assert sizes(published) == {"test": 101}
    assert sizes(corrected) == {"val": 20, "test": 80} and not any(shared(corrected).values())


def test_rsna_by_nih_patient_and_stratified(tmp_path):
    """patientId names an image; the mapping tells that two of them belong to one patient."""
    rows = [rsna_row(f"r{i}", 1, (1, 2, 3, 4)) if i % 4 == 0 else rsna_row(f"r{i}", 0) for i in range(400)]
    entries = ",".join(f'{{"subset_img_id": "r{i}", "img_id": "{i // 8:08d}_{i % 8:03d}.png"}}' for i in range(400))
    index, published, corrected = both(rsna, write_rsna(tmp_path, rows, f"[{entries}]"))
    assert sizes(published) == {"train": 280, "val": 60, "test": 60}
    assert shared(published)["train-test patients"] > 10 and not any(shared(corrected).values())
    assert sizes(corrected) == {"train": 256, "val": 64, "test": 80}
    index["patient_id"] = index.image_id
    alone = rsna.split(index, tmp_path)
    positive = {name: labels["Pneumonia"] for name, labels in zip(index.image_id, index.labels, strict=True)}
    rates = alone.groupby("split").image_id.apply(lambda ids: np.mean([positive[name] for name in ids]))
    np.testing.assert_allclose(rates, 0.25, atol=0.005)


def test_siim_by_annotation_row_shares_images_and_all_shared_ones_are_positive(tmp_path):
    rows = [(f"i{i}", f" {10 + k} 5") for i in range(60) for k in range(1 + i % 3)]
    rows += [(f"n{i}", " -1") for i in range(120)]
    index, published, corrected = both(siim, write_siim(tmp_path, rows))
    assert len(published) == len(rows) == 240 and len(corrected) == len(index) == 180
    assert sizes(published) == {"train": 144, "val": 48, "test": 48}
    leaks = shared(published)
    assert leaks["train-test images"] > 3 and not any(shared(corrected).values())
    twice = published.groupby("image_id").split.nunique()
    assert twice[twice > 1].index.str.startswith("i").all()
    assert sizes(corrected) == {"train": 117, "val": 27, "test": 36}  # 65 / 15 / 20 % in both strata
    for part, names in {"train": ["i0", "i1"], "val": ["i1"], "test": ["n5"]}.items():
        write_csv(tmp_path / f"mavl/{part}.csv", [{"ImageId": name, "EncodedPixels": " -1"} for name in names])
    known = siim.split(index, tmp_path, "as_published")
    assert known.image_id.tolist() == ["i0", "i1", "i1", "n5"] and shared(known)["train-val images"] == 1
    (tmp_path / "mavl/test.csv").unlink()
    with pytest.raises(CxrReadError, match=r"test\.csv: missing file .*a published split needs all its files"):
        siim.split(index, tmp_path, "as_published")


def test_covidx_without_the_patients_of_the_other_parts(tmp_path):
    _, published, corrected = both(covidx, write_covidx(tmp_path))
    assert shared(published)["train-test patients"] == shared(published)["val-test patients"] == 1
    assert sizes(published) == {"train": 3, "val": 2, "test": 2}
    assert sizes(corrected) == {"train": 2, "val": 1, "test": 2} and not any(shared(corrected).values())


def test_covid_rural_by_patient(tmp_path):
    _, published, corrected = both(covid_rural, write_rural(tmp_path, 30))
    assert shared(published)["train-test patients"] > 3 and not any(shared(corrected).values())
    assert sizes(published) == {"train": 54, "val": 18, "test": 18} and set(corrected.split) == {"train", "val", "test"}


# ------------------------------------------------------------------------------------------ the drawing itself


@pytest.mark.parametrize("n", [0, 1, 2, 7, 100])
def test_rows_are_dealt_completely_and_without_overlap(n):
    items = [f"i{k // 2}" for k in range(n)]
    parts = by_row(items, {"train": 0.6, "val": 0.2, "test": 0.2}, seed=3)
    assert sorted(name for names in parts.values() for name in names) == sorted(items)
    assert parts == by_row(items, {"train": 0.6, "val": 0.2, "test": 0.2}, seed=3)
    if n == 100:
        assert {part: len(names) for part, names in parts.items()} == {"train": 60, "val": 20, "test": 20}
        assert parts != by_row(items, {"train": 0.6, "val": 0.2, "test": 0.2}, seed=4)


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_and_strata_keep_their_shares(seed):
    rng = np.random.default_rng(seed)
    index = pd.DataFrame({"image_id": [f"i{k}" for k in range(1000)]})
    groups = [f"p{k}" for k in rng.integers(0, 300, 1000)]
    patient = dict(zip(index.image_id, groups, strict=True))
    positive = [int(name[1:]) % 10 == 0 for name in groups]
    parts = by_group(index, groups, {"train": 0.5, "test": 0.5}, seed, positive)
    people = {part: {patient[name] for name in names} for part, names in parts.items()}
    assert not people["train"] & people["test"] and sum(map(len, parts.values())) == 1000
    rates = [np.mean([int(name[1:]) % 10 == 0 for name in people[part]]) for part in people]
    assert abs(rates[0] - rates[1]) < 0.01
