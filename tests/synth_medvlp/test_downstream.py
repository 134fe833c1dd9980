"""Test hospitals: what is packed, split, labelled and left out, in both variants; the classes of tasks and subsets."""

import shutil

import numpy as np
import pandas as pd
import pytest
import vlp_models
from cxr_trees import film, real, save_dicom, write_rsna
from hospitals import release, task
from PIL import Image

from shared.runs.tasks import labels_table
from synth_medvlp import downstream
from synth_medvlp.config import Config
from synth_medvlp.datasets import LOADERS, boxes_mask, fit_mask, read_image, read_record
from synth_medvlp.downstream import (
    EXTRA,
    HEADLINE,
    MASKED,
    MASKS,
    PARTS,
    TASKS,
    WITHIN,
    downstream_hash,
    load_tasks,
)
from synth_medvlp.evaluate import Evaluation, class_kinds, summary_of
from synth_medvlp.inputs import Input
from synth_medvlp.prompts import SETS, class_texts, other_names, prompts_of
from synth_medvlp.record import CxrReadError
from synth_medvlp.trees import CxrSimulateConfig, tree

SIMULATED = CxrSimulateConfig(n_patients=24, seed=5, size_px=32)
SETS_HERE = ["rsna", "siim", "covidx", "covidx-within", "chexpert-5"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def loaded():
    found, absent = load_tasks(SETS_HERE, 32, "squash", SIMULATED)
    assert not absent
    return found


def test_packed_images_masks_and_labels_are_the_loaders(loaded):
    for name in ("rsna", "siim"):
        dataset = TASKS[name].dataset
        hospital, module = loaded[dataset], LOADERS[dataset]
        root, _ = tree(dataset, SIMULATED)
        index = module.read_index(root).set_index("image_id", drop=False)
        of_task = hospital.tasks[name]
        parts = module.split(index.reset_index(drop=True), root, "corrected").set_index("image_id").split
        assert set(of_task.record_ids) == set(parts.index)
        rows = hospital.row_of(of_task)
        for i in range(0, len(rows), 5):
            name_ = of_task.record_ids[i]
            record = read_record(root, index.loc[name_], dataset)
            assert np.array_equal(hospital.images[rows[i]], read_image(record, "squash", 32))
            mask = record.mask if record.mask is not None else boxes_mask(record.boxes, record.image.shape)
            assert np.array_equal(hospital.masks[rows[i]], fit_mask(mask, "squash", 32))
            assert of_task.labels[i, 0] == record.labels[of_task.classes[0]] and of_task.part[i] == parts[name_]
        positive = of_task.labels[:, 0] == 1
        assert np.array_equal(hospital.masks[rows].any((1, 2)), positive)
        assert set(np.unique(hospital.masks)) <= {0, 1}


def test_uncertain_labels_stand_in_train_only_and_are_never_scored(loaded):
    five = loaded["chexpert"].tasks["chexpert-5"]
    assert (five.labels[five.part == "train"] == -1).any() and (five.labels[five.part != "train"] >= 0).all()
    every = loaded["chexpert"].rows(PARTS)
    assert not set(every.record_id) & {r for r, y in zip(five.record_ids, five.labels, strict=True) if (y < 0).any()}
    assert set(loaded["chexpert"].rows(("test",)).record_id) == {five.record_ids[i] for i in five.part_rows("test")}


def test_corrected_parts_share_no_patient_and_published_ones_do():
    published, _ = load_tasks(["siim", "covid-rural"], 32, "squash", SIMULATED, "as_published")
    corrected, _ = load_tasks(["siim", "covid-rural"], 32, "squash", SIMULATED)
    for found, shares in ((published, True), (corrected, False)):
        people = found["covid-rural"].records.groupby("part").patient_id.agg(set)
        assert bool(people["train"] & people["test"]) == shares
    siim = published["siim-acr"].records
    assert siim.record_id.is_unique and len(siim) >= siim.image_id.nunique()
    assert corrected["siim-acr"].records.image_id.is_unique
    assert downstream_hash(published) != downstream_hash(corrected)


def test_an_image_that_a_published_split_lists_twice_is_two_records(monkeypatch):
    module = LOADERS["siim-acr"]
    whole = module.split

    def twice(index, root, protocol):
        rows = whole(index, root, protocol)
        return pd.concat([rows, rows[rows.split == "train"].head(3).assign(split="test")], ignore_index=True)

    monkeypatch.setattr(module, "split", twice)
    found, _ = load_tasks(["siim"], 24, "squash", SIMULATED, "as_published")
    records = found["siim-acr"].records
    again = records[records.record_id.str.endswith("#2")]
    assert len(again) == 3 and set(again.part) == {"test"}
    first = records.set_index("record_id").loc[again.image_id]
    assert again.row.tolist() == first.row.tolist() and set(first.part) == {"train"}


def test_rsna_as_published_is_mavls_own_list_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "cache"))
    root = write_rsna(tmp_path / "rsna-pneumonia")
    (root / "mavl").mkdir()
    for part, first in (("val", 0), ("test", 4)):
        lines = ["ID,img_path,boxes,classes"]
        for k in range(first, first + 4):
            save_dicom(root / f"mdai/1.2/{k}.dcm", film(k), ViewPosition="AP")
            lines.append(f"{k},mdai/1.2/{k}.dcm," + ("100.0;200.0;300.0;400.0,1" if k % 2 else ",0"))
        (root / f"mavl/{part}.csv").write_text("\n".join(lines))
    found, _ = load_tasks(["rsna"], 32, "squash", variant="as_published")
    rsna = found["rsna-pneumonia"].tasks["rsna"]
    assert rsna.record_ids == tuple("01234567") and rsna.part.tolist() == ["val"] * 4 + ["test"] * 4
    assert rsna.labels[:, 0].tolist() == [0, 1] * 4
    assert (found["rsna-pneumonia"].masks.any((1, 2)) == (rsna.labels[:, 0] == 1)).all()
    with pytest.raises(ValueError, match=r"rsna has no training part: .*eval\.finetune\.tasks"):
        rsna.few_label_rows(0.1)
    (root / "mavl/test.csv").write_text((root / "mavl/test.csv").read_text() + "\n8,mdai/1.2/3.dcm,,0")
    with pytest.raises(CxrReadError, match="duplicate id"):  # another list is packed anew
        load_tasks(["rsna"], 32, "squash", variant="as_published")


def test_covidx_within_a_source_has_that_sources_images_only(loaded):
    hospital = loaded["covidx-cxr2"]
    within = [t for t in hospital.tasks.values() if t.kind == WITHIN]
    source = hospital.records.set_index("record_id").source
    for of_task in within:
        assert set(source[list(of_task.record_ids)]) == {of_task.name.split(":")[1]}
        test = of_task.labels[of_task.part == "test"]
        assert test.min() == 0 and test.max() == 1
    assert {t.name for t in within} | set(hospital.empty) == {f"covidx-within:{s}" for s in set(source)}


def test_what_cannot_be_read_is_listed_and_the_rest_goes_on(tmp_path, monkeypatch):
    root, _ = tree("covid-rural", SIMULATED)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    shutil.copytree(root, tmp_path / "covid-rural")
    broken = sorted((tmp_path / "covid-rural/jpgs").glob("*.jpg"))[0]
    broken.write_bytes(broken.read_bytes()[:60])
    found, absent = load_tasks(["covid-rural", "rsna"], 32, "squash")
    assert list(absent) == ["rsna-pneumonia"] and "DATA_ROOT" in absent["rsna-pneumonia"]
    hospital = found["covid-rural"]
    assert list(hospital.meta["skipped"]) == [broken.stem] and broken.stem not in set(hospital.records.record_id)
    assert hospital.source == "covid-rural" and hospital.tasks["covid-rural"].kind == MASKS
    with pytest.raises(FileNotFoundError, match="no test set is there"):
        load_tasks(["rsna"], 32, "squash")


def test_packing_happens_once_and_an_unfinished_folder_is_written_again(loaded, monkeypatch):
    def refuse(*_):
        raise AssertionError("packed again")

    whole = downstream._pack
    monkeypatch.setattr(downstream, "_pack", refuse)
    again, _ = load_tasks(SETS_HERE, 32, "squash", SIMULATED)
    assert downstream_hash(again) == downstream_hash(loaded)
    with pytest.raises(AssertionError, match="packed again"):
        load_tasks(["rsna"], 28, "squash", SIMULATED)  # killed before meta.json
    monkeypatch.setattr(downstream, "_pack", whole)
    found, _ = load_tasks(["rsna"], 28, "squash", SIMULATED)
    assert found["rsna-pneumonia"].images.shape[1:] == (28, 28)


def test_classes_without_a_test_positive_are_listed_and_an_empty_headline_task_is_an_error():
    hospital = release(classes=("Pneumonia", "all", "none"))
    labels = hospital.tasks["rsna"].labels.copy()
    labels[:, 1], labels[:, 2] = 1, 0
    hospital.tasks.clear()
    hospital.meta["classes"] = ["Pneumonia", "all", "none"]
    hospital.records["labels"] = list(labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "three", downstream.Spec("rsna-pneumonia", ("Pneumonia", "all", "none"), HEADLINE))
        patch.setitem(TASKS, "two", downstream.Spec("rsna-pneumonia", ("all", "none"), HEADLINE))
        patch.setitem(TASKS, "more", downstream.Spec("rsna-pneumonia", ("all", "none"), EXTRA))
        downstream._add_task(hospital, "three", "corrected")
        downstream._add_task(hospital, "more", "corrected")
        with pytest.raises(ValueError, match=r"two .*: none of all, none has both .*eval.tasks"):
            downstream._add_task(hospital, "two", "corrected")
    three = hospital.tasks["three"]
    assert three.classes == ("Pneumonia",) and three.left_out == ("all", "none") and three.labels.shape == (60, 1)
    assert list(hospital.tasks) == ["three"] and "all, none" in hospital.empty["more"]
    with pytest.raises(ValueError, match="unknown task nih-15"):
        load_tasks(["nih-15"], 32, "squash", SIMULATED)


def test_few_label_subsets_go_by_patient_and_lie_within_each_other():
    hospital = release(200)
    rsna = hospital.tasks["rsna"]
    people = np.array(rsna.patients)
    train = rsna.part_rows("train")
    for draw in (None, 1, 2):
        small, middle, whole = (set(rsna.few_label_rows(f, draw)) for f in (0.02, 0.2, 1.0))
        assert small < middle < whole == set(train)
        kept = set(people[list(middle)])
        assert all((i in middle) == (people[i] in kept) for i in train) and len(kept) == 10
    assert set(rsna.few_label_rows(0.2, 1)) != set(rsna.few_label_rows(0.2, 2))
    published = task(hospital, "rsna", rsna.classes, rsna.labels, variant="as_published")
    assert len(published.few_label_rows(0.1)) == 10 and len(published.few_label_rows(0.001)) == 1
    with pytest.raises(ValueError, match="fraction"):
        rsna.few_label_rows(0)


def test_labels_table_has_one_row_per_task_and_record(loaded):
    table = labels_table(loaded)
    for hospital in loaded.values():
        for name, of_task in hospital.tasks.items():
            rows = table[table.task == name]
            assert tuple(rows.id) == of_task.record_ids and np.array_equal(np.stack(rows.reference), of_task.labels)


def test_every_class_has_prompts_and_the_control_never_asks_for_itself():
    classes = {c for spec in TASKS.values() for c in spec.classes} | {"normal"}
    for name in classes:
        found = prompts_of(name)
        assert set(found.positive) == set(SETS) and len({*found.positive.values(), found.negative}) == 5
    texts, negatives = class_texts(["Pleural_Thickening", "normal"], "there_is")
    assert texts == ["there is pleural thickening", "the chest radiograph is normal"]
    assert negatives == ["no pleural thickening", "the chest radiograph is abnormal"]
    for some in (classes, ["Pneumonia"], ["Effusion", "Pleural Effusion", "Mass"]):
        other = other_names(list(some))
        names = {n: prompts_of(n).positive["name"] for n in {*other, *other.values()}}
        assert set(other) == set(some) and all(names[a] != names[b] for a, b in other.items())
    with pytest.raises(KeyError, match=r"prompts.yaml has no entry 'unicorn'"):
        prompts_of("Unicorn")
    with pytest.raises(ValueError, match=r"eval.prompts='long'"):
        class_texts(["Mass"], "long")
    assert set(MASKED) <= set(TASKS)


@pytest.mark.realdata
def test_real_radiographs_without_a_split_are_all_test_records(tmp_path):
    """Two images of ChestX-ray14 and no split lists: scored as they are, the other 112,118 rows counted."""
    root = real("nih-cxr")
    found, _ = load_tasks(["nih-14"], 64, "pad", all_records=True)
    hospital = found["nih-cxr"]
    n = len(hospital.records)
    assert n >= 2 and hospital.meta["left_out"]["file not here"] == 112_120 - n
    assert set(hospital.records.part) == {"test"} and hospital.images.shape == (n, 64, 64)
    nih = hospital.tasks["nih-14"]
    assert len(nih.classes) + len(nih.left_out) == 14 and nih.classes
    assert (nih.labels == 1).any(0).all() and (nih.labels == 0).any(0).all()
    assert len(hospital.rows(PARTS)) == n and Image.open(root / f"{hospital.records.image_id[0]}.png").size[0] >= 512
    assert hospital.meta["skipped"] == {}
    cfg = Config()
    cfg.eval.all_records, cfg.train.bf16 = True, False
    model = vlp_models.small().eval()
    (table,) = Evaluation(cfg, model, found, {}, {}, {}, tmp_path).tables(Input("image"))
    levels = summary_of(table, labels_table(found), class_kinds(found), 0)["image"]
    scores = np.stack(table.prediction)
    assert scores.shape == (n, len(nih.classes)) and np.isfinite(scores).all()
    assert 0 <= levels["auroc_headline"]["value"] <= 1
