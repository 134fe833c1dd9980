"""argus/manifest.py: what enters CT-3DRRG, why the rest does not, and that no patient crosses the parts."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from ct_files import TEXT, bimcv_r, ct_rate, inspect, thorax, write_nifti

from argus import manifest as m
from argus.manifest import Rules, build, clean, describe, load, looks_spanish, save
from shared.ct import LOADERS
from shared.ct.geometry import Geometry
from shared.ct.store import CtStore, pack

NAMES = [f"train_{p}_a_{r}" for p in range(1, 21) for r in (1, 2)] + ["valid_1_a_2", "valid_1_a_10", "valid_2_a_1"]
FINDINGS = {
    "train_1_a_1": "Not given.",
    "train_1_a_2": "Not given.",
    "train_2_a_1": "No change seen.",
    "train_2_a_2": "No change seen.",
    **{f"train_{p}_a_{r}": f"{TEXT} Patient {p}." for p in range(3, 21) for r in (1, 2)},
    "valid_1_a_2": f"{TEXT}\n\n  Second   line.",
    "valid_1_a_10": f"{TEXT}\n\n  Second   line.",
}
TEXTS = {
    3: "no se observan nodulos en el parenquima de los pulmones , con el mediastino normal .",
    4: "  ",
    5: "Normal.",
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    base = tmp_path_factory.mktemp("official")
    roots = {
        "ct-rate": ct_rate(
            base / "ct-rate", NAMES, Findings_EN=FINDINGS, SeriesDescription={"train_20_a_1": "Head 5.0"}
        ),
        "bimcv-r": bimcv_r(base / "bimcv-r", 24, texts=TEXTS),
        "inspect": inspect(base / "inspect", 9),
    }
    fixed = roots["ct-rate"] / "dataset/train_fixed"
    # train_4 holds the same file as a test volume: leakage; train_5_a_2 repeats train_5_a_1.
    shutil.copy(
        roots["ct-rate"] / "dataset/valid_fixed/valid_2/valid_2_a/valid_2_a_1.nii.gz",
        fixed / "train_4/train_4_a/train_4_a_1.nii.gz",
    )
    shutil.copy(fixed / "train_5/train_5_a/train_5_a_1.nii.gz", fixed / "train_5/train_5_a/train_5_a_2.nii.gz")
    bimcv = sorted((roots["bimcv-r"]).rglob("*_ct.nii.gz"), key=lambda p: p.name)
    write_nifti(bimcv[6], thorax()[:20])
    write_nifti(bimcv[7], thorax(), spacing=(2.0, 7.0, 8.0))
    bimcv[8].write_bytes(b"no gzip")
    write_nifti(bimcv[9], thorax(), "PSL", spacing=(17.0, 7.0, 8.0))
    return roots


@pytest.fixture(scope="module")
def built(roots):
    return build(roots, seed=1)


def test_every_volume_is_kept_or_counted_under_one_reason(built, roots):
    manifest, report = built
    assert report["found"] == len(NAMES) + 24 + 9
    for source, counts in report["sources"].items():
        assert counts["found"] == counts["kept"] + sum(counts["dropped"].values())
        assert (
            counts["kept"] == (manifest.source == source).sum() == sum(p["volumes"] for p in counts["parts"].values())
        )
    assert report["sources"]["ct-rate"]["dropped"] == {
        "duplicate volume": 2,
        "empty report": 2,
        "not a chest CT": 1,
        "other reconstruction": 1 + 15,  # valid_1_a_10; train_3, 6..19 (of 4, 5, 20 one is gone already)
        "short report": 2,
    }
    assert report["sources"]["bimcv-r"]["dropped"] == {
        "corrupted": 1,
        "empty report": 1,
        "not translated": 1,
        "short report": 1,
        "short z extent": 1,
        "too few slices": 1,
    }
    assert report["sources"]["inspect"]["dropped"] == {}
    assert report["sources"]["bimcv-r"]["flagged"] == {"long z extent": 1}
    text = describe(report)
    assert "ct-rate: 43 volumes found" in text and "dropped: 16 other reconstruction" in text


def test_reconstruction_choice(built, roots):
    kept = set(built[0].volume_id)
    assert "train_3_a_1" in kept and "train_3_a_2" not in kept
    assert "valid_1_a_2" in kept and "valid_1_a_10" not in kept  # the lowest number, not the first in the alphabet
    assert "train_20_a_2" in kept  # its first reconstruction is no chest
    assert "train_4_a_2" in kept and "train_4_a_1" not in kept  # its first is a test volume
    both, _ = build(roots, Rules(train_reconstructions=2), seed=1)
    ct = both[both.source == "ct-rate"]
    assert ct[ct.part == "train"].groupby("study_id").size().max() == 2
    assert (ct[ct.part != "train"].groupby("study_id").size() == 1).all()
    assert len(both) > len(built[0])


def test_official_test_sets_stay_and_no_patient_crosses(built):
    manifest, _ = built
    ct, ins = manifest[manifest.source == "ct-rate"], manifest[manifest.source == "inspect"]
    assert set(ct.volume_id[ct.part == "test"]) == {"valid_1_a_2", "valid_2_a_1"}
    assert (ct.part[ct.volume_id.str.startswith("train")] != "test").all()
    assert ins.part.tolist() == ["train", "val", "test"] * 3
    assert (manifest.groupby(["source", "patient_id"]).part.nunique() == 1).all()
    assert set(manifest.part[manifest.source == "bimcv-r"]) == {"train", "val", "test"}


def test_a_rule_never_moves_a_patient_to_another_part(roots, built):
    strict, _ = build(roots, Rules(min_words=12), seed=1)
    part = built[0].set_index(["source", "patient_id"]).part.to_dict()
    assert len(strict) < len(built[0])
    for row in strict.itertuples():
        assert row.part == part[row.source, row.patient_id]


def test_targets(built, roots):
    manifest = built[0].set_index("volume_id")
    assert manifest.target["valid_1_a_2"] == f"{TEXT} Second line."
    assert manifest.section.groupby(manifest.source).first().to_dict() == m.SECTIONS
    assert manifest.target["PE000"] == "1. No acute pulmonary embolism, case 9000."
    assert (manifest.n_words == manifest.target.str.split().str.len()).all()
    assert manifest.findings["valid_1_a_2"] != manifest.target["valid_1_a_2"]  # the release's own text stays beside it
    spanish, _ = build({"bimcv-r": roots["bimcv-r"]}, Rules(language="es"), seed=1)
    assert (spanish.language == "es").all() and spanish.target.str.startswith("no se observan").all()


def test_findings_and_impression(tmp_path):
    root = ct_rate(tmp_path, NAMES[:4] + NAMES[-1:], Impressions_EN={"train_1_a_1": "Normal chest."})
    manifest, _ = build({"ct-rate": root}, Rules(ct_rate="both"))
    target = manifest.set_index("volume_id").target
    assert target["train_1_a_1"] == f"{TEXT} Normal chest."
    assert target["train_2_a_1"] == TEXT


def test_repeated_report_of_one_patient(tmp_path):
    names = ["train_1_a_1", "train_1_b_1", "train_2_a_1", "train_3_a_1"]
    manifest, report = build({"ct-rate": ct_rate(tmp_path, names)})
    assert manifest.volume_id.tolist() == ["train_1_a_1", "train_2_a_1", "train_3_a_1"]  # other patients may share it
    assert report["sources"]["ct-rate"]["dropped"] == {"duplicate report": 1}


def test_long_impressions_are_flagged_not_dropped(tmp_path):
    root = inspect(tmp_path, 3)
    table = pd.read_csv(root / "Final_Impressions.csv", dtype=str)
    table.loc[1, "impressions"] = "word " * 300
    table.to_csv(root / "Final_Impressions.csv", index=False)
    manifest, report = build({"inspect": root})
    assert [list(flags) for flags in manifest["flags"]] == [[], ["long impression"], []]
    assert report["sources"]["inspect"]["flagged"] == {"long impression": 1}


@pytest.mark.parametrize(
    ("text", "spanish"),
    [
        ("No se observan nódulos en el parénquima pulmonar.", True),
        ("derrame pleural bilateral con atelectasias de los lobulos inferiores", True),
        ("No pathological findings are observed in the mediastinum.", False),
        ("Toracic TC is performed with IV contrast. Left ureter also filiform without lithiasis.", False),
        ("Cardiomegaly.", False),
        ("", False),
    ],
)
def test_untranslated_reports(text, spanish):
    assert looks_spanish(text) is spanish


def test_clean_keeps_case_punctuation_and_numbers():
    assert clean("  A 5 mm\n nodule,\tRUL.  ") == "A 5 mm nodule, RUL."


def test_save_and_load(built, tmp_path):
    manifest, report = built
    sha256 = save(manifest, report, tmp_path)
    again, read = load(tmp_path)
    assert read["splits_sha256"] == sha256 and read["rules"] == asdict(Rules())
    columns = [name for name in manifest.columns if name not in ("flags", "labels")]
    pd.testing.assert_frame_equal(again[columns], manifest[columns])
    assert again.labels.tolist() == manifest.labels.tolist()
    ids = json.loads((tmp_path / "splits.json").read_text())
    assert sum(len(names) for parts in ids.values() for names in parts.values()) == len(manifest)
    assert ids["inspect"]["test"] == ["PE002", "PE005", "PE008"]
    assert save(*build_again(manifest, report), tmp_path) == sha256
    (tmp_path / "splits.json").write_text("{}")
    with pytest.raises(ValueError, match=r"splits\.json: not the split"):
        load(tmp_path)


def build_again(manifest, report):
    return manifest.copy(), dict(report)


def test_seed_decides_the_parts_and_nothing_else_does(roots, built):
    again, _ = build(roots, seed=1, workers=1)
    pd.testing.assert_frame_equal(again, built[0])
    other, _ = build(roots, seed=2)
    key = ["source", "volume_id"]
    assert not other.set_index(key).part.sort_index().equals(built[0].set_index(key).part.sort_index())


def test_manifest_packs_into_one_store(built, roots, tmp_path):
    save(*built, tmp_path / "manifest")
    manifest, _ = load(tmp_path / "manifest")
    report = pack(manifest, roots, tmp_path / "store", Geometry((8, 12, 12)), workers=2)
    assert report["counts"]["packed"] == len(manifest), report["skips"]
    store = CtStore(tmp_path / "store")
    assert store.volumes.part.tolist() == manifest.part.tolist()
    assert store.volumes.target.tolist() == manifest.target.tolist()
    k = int(np.flatnonzero(manifest.volume_id == "PE003")[0])
    assert (store.hu(k) != store.hu(k - 1)).any()


def test_errors_name_the_source_or_patient(roots, monkeypatch):
    with pytest.raises(ValueError, match="radfm"):
        build({"radfm": roots["inspect"]})
    with pytest.raises(ValueError, match="choose among"):
        build({})
    monkeypatch.setattr(
        LOADERS["ct-rate"],
        "split",
        lambda t, s: pd.Series(np.where(t.volume_id.str.endswith("1"), "train", "test"), t.index),
    )
    with pytest.raises(ValueError, match="is in two parts"):
        build({"ct-rate": roots["ct-rate"]})
