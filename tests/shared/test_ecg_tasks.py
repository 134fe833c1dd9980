"""The six downstream tasks: rules of labels, parts and few-label subsets, on small tables and on simulated trees.

The same against the official metadata and MERL's published files: test_ecg_tasks_published.py.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from shared.ecg import LOADERS, simulate, simulate_codes
from shared.ecg.codes import CSN_CONDITIONS, FINDINGS, SCP_STATEMENTS
from shared.ecg.record import EcgReadError
from shared.ecg.task_splits import find_splits, permutation_split, published_tables
from shared.ecg.tasks import TASKS, VARIANTS, load_task, main

N_CLASSES = {"ptb-xl-superclass": 5, "ptb-xl-subclass": 23, "ptb-xl-form": 19, "ptb-xl-rhythm": 12, "cpsc2018": 9}
CSN_CODE = dict(reversed([(acronym, code) for acronym, code, _ in CSN_CONDITIONS]))


@pytest.fixture(scope="module")
def ptbxl_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("ptb-xl")
    simulate.write("ptb-xl", root / "sim", 1, 0, 100.0)
    return root / "sim"


def table(rows: dict[str, list[str]], fold=1) -> pd.DataFrame:
    """records of an index as far as tasks read it: id -> codes."""
    return pd.DataFrame({"record_id": list(rows), "labels": list(rows.values()), "fold": fold})


def csn_table(rows: dict[str, str]) -> pd.DataFrame:
    return table({record_id: [CSN_CODE[token] for token in text.split(",")] for record_id, text in rows.items()})


def classes_by_record(data) -> dict[str, set[str]]:
    names = np.array([c.code for c in data.classes])
    return {r: set(names[row == 1].tolist()) for r, row in zip(data.record_ids, data.labels, strict=True)}


# --- the table of tasks -----------------------------------------------------------------------------------------------


def test_the_tasks_have_the_published_classes():
    assert {name: len(task.classes) for name, task in TASKS.items()} == N_CLASSES | {"csn": 37}
    slots = [(name, c.code) for name, task in TASKS.items() for c in task.classes_of("as_published")]
    assert len(slots) == len(set(slots)) == 106 and len({code for _, code in slots}) == 86
    assert {c.code for c in TASKS["csn"].classes_of("as_published")} - {c.code for c in TASKS["csn"].classes} == {"VB"}
    assert all(c.description.strip() for task in TASKS.values() for c in task.classes)
    with pytest.raises(ValueError, match="corrected or as_published"):
        TASKS["csn"].classes_of("raw")


def test_a_class_that_is_one_statement_is_described_in_its_words():
    words = {code.strip("_"): s.description for code, s in SCP_STATEMENTS.items()}
    for name in ("ptb-xl-subclass", "ptb-xl-form", "ptb-xl-rhythm"):
        groups = {s.diagnostic_subclass for code, s in SCP_STATEMENTS.items() if s.diagnostic_subclass != code}
        alone = {c.code: c.description for c in TASKS[name].classes if c.code in words and c.code not in groups}
        assert len(alone) >= 12
        assert {code: words[code] for code in alone} == alone | ({"WPW": words["WPW"]} if "WPW" in alone else {})


# --- labels -----------------------------------------------------------------------------------------------------------


def test_ptb_xl_classes_come_from_the_table_of_statements(ptbxl_root):
    records = table({"1": ["IMI", "SR"], "2": ["INJAS", "NST_", "ABQRS"], "3": ["1AVB", "LAFB"], "4": ["SR"], "5": []})
    expected = {
        "ptb-xl-superclass": {"1": {"MI"}, "2": {"MI", "STTC"}, "3": {"CD"}},
        "ptb-xl-subclass": {"1": {"IMI"}, "2": {"AMI", "NST"}, "3": {"AVB", "LAFB/LPFB"}},
        "ptb-xl-form": {"2": {"NST", "ABQRS"}},
        "ptb-xl-rhythm": {"1": {"SR"}, "4": {"SR"}},
    }
    for name, wanted in expected.items():
        data = load_task(name, records, ptbxl_root)
        assert classes_by_record(data) == wanted
        assert data.left_out == {"no label of the task": 5 - len(wanted)} and data.mismatches is None


def test_ptb_xl_parts_are_the_official_folds(ptbxl_root):
    records = table({str(fold): ["NORM"] for fold in range(1, 11)}, fold=range(1, 11))
    data = load_task("ptb-xl-superclass", records, ptbxl_root)
    assert data.part.tolist() == ["train"] * 8 + ["val", "test"]
    with pytest.raises(ValueError, match="official fold"):
        load_task("ptb-xl-superclass", table({"1": ["NORM"]}, fold=0), ptbxl_root)


def test_subclass_as_published_swaps_three_classes_in_train_only(ptbxl_root):
    rows = {"1": ["1AVB"], "2": ["RAO/RAE"], "3": ["ISC_"], "4": ["LVH"], "5": ["1AVB"], "6": ["ISC_"]}
    records = table(rows, fold=[1, 2, 3, 4, 9, 10])
    wrong = classes_by_record(load_task("ptb-xl-subclass", records, ptbxl_root, "as_published"))
    assert wrong == {"1": {"ISC"}, "2": {"AVB"}, "3": {"RAO/RAE"}, "4": {"LVH"}, "5": {"AVB"}, "6": {"ISC"}}
    right = classes_by_record(load_task("ptb-xl-subclass", records, ptbxl_root))
    assert right == {"1": {"AVB"}, "2": {"RAO/RAE"}, "3": {"ISC"}, "4": {"LVH"}, "5": {"AVB"}, "6": {"ISC"}}


def test_codes_that_the_release_does_not_know_are_errors(ptbxl_root, tmp_path):
    with pytest.raises(ValueError, match=r"\['XYZ'\] are not in scp_statements.csv"):
        load_task("ptb-xl-form", table({"1": ["XYZ"]}), ptbxl_root)
    with pytest.raises(EcgReadError, match="missing file"):
        load_task("ptb-xl-form", table({"1": ["PVC"]}), tmp_path)
    with pytest.raises(KeyError, match="unknown task 'ptbxl'"):
        load_task("ptbxl", table({"1": ["PVC"]}), tmp_path)


def test_cpsc_reads_its_nine_codes_and_no_other(tmp_path):
    records = table({"A1": ["426783006"], "A2": ["164884008", "59118001"], "A3": ["164873001"]})
    data = load_task("cpsc2018", records, tmp_path)
    assert classes_by_record(data) == {"A1": {"NORM"}, "A2": {"VPC", "CRBBB"}}
    assert data.left_out == {"no label of the task": 1}


CSN_ROWS = {"J1": "1AVB,SR", "J2": "SB,LVQRSAL", "J3": "AFIB", "J4": "2AVB1", "J5": "CCR", "J6": "SB", "J7": "VB"}


def test_csn_tokens_are_exact_and_substrings_as_published(tmp_path):
    exact, published = (load_task("csn", csn_table(CSN_ROWS), tmp_path, variant) for variant in VARIANTS)
    wanted = {"J1": {"1AVB", "SR"}, "J3": {"AFIB"}, "J4": {"2AVB1"}, "J5": {"CCR"}}
    assert classes_by_record(exact) == wanted
    assert exact.left_out == {"no label of the task": 3}
    assert classes_by_record(published) == {
        "J1": {"1AVB", "AVB", "VB", "SR"}, "J2": {"SA"}, "J3": {"AFIB", "AF"}, "J4": {"2AVB1", "2AVB", "AVB", "VB"},
        "J5": {"CCR", "CR"}, "J7": {"VB"},
    }  # fmt: skip
    part_of = dict(zip(published.record_ids, published.part, strict=True))
    assert {r: part_of[r] for r in exact.record_ids} == dict(zip(exact.record_ids, exact.part, strict=True))


def test_a_csn_record_with_a_code_without_acronym_is_dropped_and_counted(tmp_path):
    records = table({"J1": [CSN_CODE["SR"], "713426002"], "J2": [CSN_CODE["SR"]], "J3": []})
    data = load_task("csn", records, tmp_path)
    assert data.record_ids == ("J2",)
    assert data.left_out == {"code without acronym": 1, "no label of the task": 1}


def test_the_release_s_own_table_of_acronyms_is_preferred(tmp_path):
    (tmp_path / "ConditionNames_SNOMED-CT.csv").write_bytes(
        b"\xef\xbb\xbfAcronym Name,Full Name,Snomed_CT\r\nLBBB,left,164909002\r\nLBBBB,left back,164909002\r\n"
    )
    records = table({"J1": ["164909002"], "J2": ["426783006"]})
    data = load_task("csn", records, tmp_path)
    assert classes_by_record(data) == {"J1": {"LBBB"}} and data.left_out == {"code without acronym": 1}
    (tmp_path / "ConditionNames_SNOMED-CT.csv").write_text("a,b\n1,2\n")
    with pytest.raises(EcgReadError, match="Acronym Name"):
        load_task("csn", records, tmp_path)


# --- parts and subsets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 97, 1000])
def test_the_permutation_rule_is_scikit_learn_s_split(n):
    rest, test = train_test_split(np.arange(n), test_size=0.2, random_state=42)
    train, val = train_test_split(rest, test_size=0.1, random_state=42)
    rows = permutation_split(n)
    for part, wanted in (("train", train), ("val", val), ("test", test)):
        np.testing.assert_array_equal(rows[part], wanted)


def test_no_records_at_all(tmp_path, ptbxl_root):
    for name in ("cpsc2018", "csn", "ptb-xl-form"):
        data = load_task(name, table({"1": []}), ptbxl_root)
        assert data.labels.shape == (0, len(TASKS[name].classes)) and data.left_out == {"no label of the task": 1}
        assert data.few_label_rows(0.1).size == 0 and not data.counts().test.any()


@pytest.fixture
def cpsc(tmp_path):
    """200 records in the layout of MERL's files, 140 in train; the records, the folder, the train ids in order."""
    rng, folder = np.random.default_rng(0), tmp_path / "splits"
    ids = [f"A{i:04d}" for i in rng.permutation(200)]
    columns = [c.code for c in TASKS["cpsc2018"].classes]
    labels = pd.DataFrame(np.eye(9, dtype=int)[rng.integers(0, 8, 200)], columns=columns)  # never an STD
    labels.insert(0, "filename", ids)
    (folder / "icbeb").mkdir(parents=True)
    for part, rows in (("train", slice(0, 140)), ("val", slice(140, 160)), ("test", slice(160, 200))):
        labels[rows].to_csv(folder / f"icbeb/icbeb_{part}.csv", index=False)
    code_of = {name: code for code, name in TASKS["cpsc2018"].snomed}
    records = table({row.filename: [code_of[row[columns].astype(int).idxmax()]] for _, row in labels.iterrows()})
    return records.sort_values("record_id"), folder, ids[:140]


def test_published_files_decide_members_parts_and_order(cpsc, tmp_path):
    records, folder, train_ids = cpsc
    more = pd.concat([records, table({"A9999": ["426783006"]})])
    data = load_task("cpsc2018", more, tmp_path, splits=folder)
    assert [data.record_ids[i] for i in data.part_rows("train")] == train_ids
    assert len(data.record_ids) == 200 and data.mismatches == 0
    assert data.left_out == {"not in the published split": 1}
    records = records.assign(labels=[["429622005"], *records.labels[1:]])
    assert load_task("cpsc2018", records, tmp_path, splits=folder).mismatches == 2


def test_a_class_without_positives_keeps_its_column(cpsc, tmp_path):
    data = load_task("cpsc2018", cpsc[0], tmp_path, splits=cpsc[1])
    assert data.labels.shape == (200, 9) and data.labels.dtype == np.uint8
    assert data.counts().query("train == 0").index.tolist() == ["STD"]
    assert data.counts().loc["STD"].tolist() == [0, 0, 0] and data.counts().sum().tolist() == [140, 20, 40]


def test_a_record_that_is_missing_changes_no_other_row_of_a_few_label_subset(cpsc, tmp_path):
    records, folder, train_ids = cpsc
    whole = load_task("cpsc2018", records, tmp_path, splits=folder)
    drawn = [whole.record_ids[i] for i in whole.few_label_rows(0.1)]
    expected = train_test_split(train_ids, train_size=0.1, random_state=42)[0]
    assert sorted(drawn) == sorted(expected) and len(drawn) == 14
    kept = records[~records.record_id.isin([drawn[3], train_ids[0]])]
    part = load_task("cpsc2018", kept, tmp_path, splits=folder)
    assert part.left_out == {"published, but not among the records": 2} and part.n_train == 140
    assert [part.record_ids[i] for i in part.few_label_rows(0.1)] == [
        r for r in drawn if r not in (drawn[3], train_ids[0])
    ]


def test_few_label_draws(cpsc, tmp_path):
    data = load_task("cpsc2018", cpsc[0], tmp_path, splits=cpsc[1])
    draws = [tuple(data.few_label_rows(0.1, draw)) for draw in (None, 0, 1, 0, 42)]
    assert draws[1] == draws[3] and len({*draws}) == 3 and draws[4] == draws[0]
    assert all(len(d) == 14 and set(d) <= set(data.part_rows("train")) for d in draws)
    np.testing.assert_array_equal(data.few_label_rows(1), data.part_rows("train"))
    for wrong in (0, -0.1, 1.01):
        with pytest.raises(ValueError, match="fraction"):
            data.few_label_rows(wrong)
    with pytest.raises(ValueError, match="unknown part 'dev'"):
        data.part_rows("dev")


def test_missing_and_broken_published_files(cpsc, tmp_path, capsys):
    records, folder, _ = cpsc
    assert find_splits(tmp_path) is None
    with pytest.raises(SystemExit):
        main(["--root", str(tmp_path)])
    assert "make data-merl-splits" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"chapman_train\.csv, "):
        load_task("csn", records, tmp_path, splits=folder)
    test = pd.read_csv(folder / "icbeb/icbeb_test.csv")
    pd.concat([test, test[:1]]).to_csv(folder / "icbeb/icbeb_test.csv", index=False)
    assert len(published_tables(folder, ("icbeb",))["test"]) == 41
    with pytest.raises(ValueError, match=f"record {test.filename[0]} is in two rows"):
        load_task("cpsc2018", records, tmp_path, splits=folder)


# --- simulated releases -----------------------------------------------------------------------------------------------

NOT_DRAWN = {
    "ptb-xl-superclass": set(), "ptb-xl-subclass": {"SEHYP", "PMI"}, "ptb-xl-form": {"DIG"}, "ptb-xl-rhythm": {"PSVT"},
    "cpsc2018": set(), "csn": {"UW", "AT", "VEB"},
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn_codes():
    """Codes of each release for one ECG per finding, at three strengths: what the simulator can state at all."""
    wanted, fs_hz, rng = simulate.conditions(), 100.0, np.random.default_rng(0)
    codes = {"ptb-xl": [], "cpsc2018": [], "chapman-shaoxing-ningbo": []}
    for strength in (0.7, 1.0, 1.3):
        signals_mv, measures = simulate.simulate_findings(list(wanted.values()), 5, fs_hz, strength)
        for i, findings in enumerate(wanted.values()):
            for gain in (1.0, 1.6):  # people with more voltage than this seed happens to draw
                signal_mv = gain * signals_mv[i]
                strengths = dict.fromkeys(findings, strength)
                codes["ptb-xl"].append(list(simulate_codes.scp_codes(findings, strengths, signal_mv, fs_hz, rng)))
            codes["cpsc2018"].append(simulate_codes.cpsc_codes(findings))
            csn = simulate_codes.csn_codes(findings, measures["wenckebach"][i] > 0, signals_mv[i], fs_hz)
            codes["chapman-shaoxing-ningbo"].append(csn)
    batch = simulate.simulate(1024, "chapman-shaoxing-ningbo", 0, fs_hz)  # patients with a turned heart, both blocks
    for i, findings in enumerate(batch.findings):
        for wenckebach in (False, True):
            csn = simulate_codes.csn_codes(findings, wenckebach, batch.signal_mv[i], fs_hz)
            codes["chapman-shaoxing-ningbo"].append(csn)
    return codes


@pytest.mark.parametrize("name", TASKS)
def test_every_class_that_is_drawn_has_positives(drawn_codes, ptbxl_root, name):
    rows = drawn_codes[TASKS[name].dataset]
    data = load_task(name, table({str(i): codes for i, codes in enumerate(rows)}), ptbxl_root)
    counts = data.counts().sum(axis=1)
    assert set(counts.index[counts == 0]) == NOT_DRAWN[name]


@pytest.mark.parametrize("name", TASKS)
def test_simulated_trees_are_read_as_the_releases_are(tmp_path_factory, name):
    dataset = TASKS[name].dataset
    root = tmp_path_factory.getbasetemp() / "tasks" / dataset
    if not root.exists():
        root.parent.mkdir(exist_ok=True)
        simulate.write(dataset, root, 192, 1, 100.0)
    options = {"fs_hz": 100} if dataset == "ptb-xl" else {}
    records = LOADERS[dataset].read_index(root, **options)
    for variant in VARIANTS:
        data = load_task(name, records, root, variant)
        assert len(data.record_ids) + sum(data.left_out.values()) == 192
        assert data.labels.any(1).all() and len(data.part_rows("test")) > 0
        assert (data.counts().sum(axis=1) > 0).sum() >= len(data.classes) / 2
        assert (data.left_out.get("code without acronym", 0) > 0) == (name == "csn")


def test_statements_of_the_simulator_are_true_of_the_strip():
    """Q waves, PR and QRS of PTB-XL form statements against what the heart was told to draw."""
    batch = simulate.simulate(256, "ptb-xl", 3, 100.0)
    rng = np.random.default_rng(0)
    for i, findings in enumerate(batch.findings):
        strength = dict(zip(simulate.NAMES, batch.strength[i], strict=True))
        codes = set(simulate_codes.scp_codes(findings, strength, batch.signal_mv[i], 100.0, rng))
        infarct = {FINDINGS[f].group for f in findings} & {"infarction"}
        assert ("QWAVE" in codes) == bool(infarct)
        assert ("LPR" in codes) == (batch.measures["pr_ms"][i] > 200 and batch.measures["has_p"][i] > 0)
        assert batch.measures["qrs_ms"][i] < 120 or "ABQRS" in codes
        assert codes <= set(SCP_STATEMENTS)
        if "HVOLT" in codes or "VCLVH" in codes:
            assert simulate_codes.sokolow_mv(batch.signal_mv[i], 100.0) >= 3.5
        assert not {"HVOLT", "VCLVH"} <= codes


def strip(r_mv, s_mv) -> np.ndarray:
    """[12, 1000] at 100 Hz: R and S of V1..V6 every 1.1 s, a drifting baseline, and V6 torn at for 0.2 s."""
    signal_mv = np.zeros((12, 1000))
    for beat in range(40, 1000, 110):
        signal_mv[6:, beat], signal_mv[6:, beat + 4] = r_mv, np.negative(s_mv)
    signal_mv += np.linspace(0, 0.05, 1000)
    signal_mv[11, 500:520] += 6
    return signal_mv


def test_voltage_and_rotation_are_measured_on_the_signal():
    r_mv, s_mv = [0.2, 0.3, 0.5, 1.5, 2.0, 1.8], [2.0, 1.5, 1.2, 0.9, 0.3, 0.1]
    r, s = simulate_codes.chest_deflections(strip(r_mv, s_mv), 100.0)
    np.testing.assert_allclose(r, r_mv, atol=0.01)
    np.testing.assert_allclose(s, s_mv, atol=0.01)
    assert simulate_codes.sokolow_mv(strip(r_mv, s_mv), 100.0) == pytest.approx(4.0, abs=0.02)
    for first_large, turned in ((1, "CCR"), (2, "CCR"), (3, ""), (4, ""), (5, "CR"), (6, "CR"), (7, "CR")):
        r_mv = np.where(np.arange(1, 7) >= first_large, 1.5, 0.2)
        assert simulate_codes.rotation(strip(r_mv, np.full(6, 0.8)), 100.0) == turned
