"""The six downstream tasks against the official metadata and MERL's published files, as far as DATA_ROOT holds them."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shared.ecg import csn, ptbxl
from shared.ecg.codes import CSN_CONDITIONS, SCP_STATEMENTS
from shared.ecg.splits import PARTS
from shared.ecg.store import EcgStore, pack
from shared.ecg.task_proofs import FORM_ROWS, csn_pollution, form_rows, permuted_ids, published_records
from shared.ecg.task_splits import find_splits, published_members, published_tables
from shared.ecg.tasks import TASKS, csn_acronyms, load_task, main

pytestmark = pytest.mark.realdata
ROOT = Path(os.environ.get("DATA_ROOT", "data/official"))

# Rows and positives, train/val/test, as counted in the published files (reference: D2, D3).
ROWS = {
    "ptb-xl-superclass": (17084, 2146, 2158), "ptb-xl-subclass": (17084, 2146, 2158), "ptb-xl-form": (7197, 901, 880),
    "ptb-xl-rhythm": (16832, 2100, 2098), "cpsc2018": (4950, 551, 1376), "csn": (16546, 1860, 4620),
}  # fmt: skip
POSITIVES = {
    "ptb-xl-superclass": "HYP 2119/268/262 NORM 7596/955/963 MI 4379/540/550 CD 3907/495/496 STTC 4186/528/521",
    "ptb-xl-subclass": "AMI 2466/306/306 LAFB/LPFB 1437/181/179 LVH 1708/210/214 STTC 1792/225/222 IMI 2618/326/327 "
    "SEHYP 24/3/2 CRBBB 432/55/54 WPW 64/7/8 LAO/LAE 341/43/42 NORM 7596/955/963 ISC 1019/125/128 AVB 658/83/82 "
    "RAO/RAE 79/10/10 LMI 161/20/20 ISCI 318/39/40 ISCA 756/92/93 NST 615/75/77 CLBBB 428/54/54 ILBBB 62/7/8 "
    "IRBBB 894/112/112 PMI 13/2/2 RVH 102/12/12 IVCD 630/78/79",
    "ptb-xl-form": "PAC 318/40/40 DIG 145/18/18 HVOLT 49/7/6 STD 807/101/101 LPR 272/34/34 QWAVE 438/55/55 "
    "VCLVH 701/87/87 NDT 1461/182/182 TAB 28/4/3 LOWT 350/44/44 ABQRS 2683/322/322 LNGQT 94/12/11 PRC(S) 8/1/1 "
    "NT 340/41/42 STE 22/3/3 NST 615/75/77 PVC 915/114/114 INVT 235/30/29 LVOLT 145/19/18",
    "ptb-xl-rhythm": "SVARR 128/15/14 BIGU 66/8/8 STACH 661/83/82 SARRH 618/77/77 SBRAD 509/64/64 TRIGU 16/2/2 "
    "AFIB 1211/151/152 SR 13404/1670/1674 SVTAC 21/3/3 PSVT 19/3/2 AFLT 59/7/7 PACE 237/29/28",
    "cpsc2018": "AFIB 873/98/250 VPC 501/56/143 NORM 649/85/184 1AVB 504/63/155 CRBBB 1359/141/357 STE 170/12/38 "
    "PAC 442/54/120 CLBBB 172/15/49 STD 644/63/162",
    "csn": "AQW 433/46/112 UW 45/3/10 SR 5154/571/1404 WPW 34/5/14 2AVB 31/3/4 AT 115/15/42 VB 665/82/169 "
    "ARS 365/53/114 STTC 610/81/186 SA 2075/217/536 STE 295/30/93 VPB 174/20/43 TWO 806/85/232 STTU 97/14/36 "
    "ALS 641/70/210 APB 497/52/136 2AVB1 13/2/1 PRIE 20/1/8 CCR 87/16/38 CR 141/25/50 AF 3383/383/987 AVB 662/82/169 "
    "QTIE 137/16/32 LBBB 143/24/42 VEB 15/1/5 SVT 434/51/128 RBBB 394/46/93 1AVB 510/66/126 STDD 307/29/91 "
    "MI 36/6/15 AFIB 992/124/297 TWC 3288/389/968 PWC 73/3/11 ERV 180/18/68 RVH 20/4/5 LVH 83/8/22 ST 4553/504/1281 "
    "JEB 17/3/5",
}
# What exact tokens leave of the polluted classes.
CSN_EXACT = "2AVB 18/1/3 VB 3/0/0 SA 1549/163/395 CR 54/9/12 AF 2391/259/690 AVB 123/14/39 ST 3720/404/1030"
# D5: train rows of the published subsets, and the classes without a positive in them.
FEW = {
    0.01: {"ptb-xl-superclass": (170, ""), "ptb-xl-subclass": (170, "PMI"),
           "ptb-xl-form": (71, "HVOLT TAB PRC(S) STE"), "ptb-xl-rhythm": (168, "TRIGU SVTAC PSVT AFLT"),
           "cpsc2018": (49, "STE"), "csn": (165, "UW WPW PRIE VEB MI PWC RVH")},
    0.1: {"ptb-xl-superclass": (1708, ""), "ptb-xl-subclass": (1708, ""), "ptb-xl-form": (719, "PRC(S)"),
          "ptb-xl-rhythm": (1683, ""), "cpsc2018": (495, ""), "csn": (1654, "")},
}  # fmt: skip
# Ids that 1.0.3 dropped, and those whose statements it changed, among the rows of the table with form statements.
DROPPED = ["141", "458", "3798", "3832", "5817", "7777"]
CHANGED = ["3797", "7783", "9822", "13803"]
IN_PTB_XL_350_ONLY = ["137", "139", "140", "141", "142", "143", "145"]


def parsed(text: str) -> dict[str, list[int]]:
    words = text.split()
    return {code: [int(n) for n in counts.split("/")] for code, counts in zip(words[::2], words[1::2], strict=True)}


def needs(*names: str) -> None:
    missing = [name for name in names if not (ROOT / name).exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)} not under {ROOT}: set DATA_ROOT")


@pytest.fixture(scope="module")
def splits() -> Path:
    folder = find_splits(ROOT)
    if folder is None:
        pytest.skip(f"no published label files under {ROOT}: `make data-merl-splits`, or set DATA_ROOT")
    return folder


def every_published_row(name: str, splits: Path) -> pd.DataFrame:
    """Records that carry codes with the classes of every published row: for PTB-XL any one statement of each class."""
    task = TASKS[name]
    if task.dataset != "ptb-xl":
        return published_records(name, splits)
    tables = published_tables(splits, task.published_file)
    records, rows = published_members(tables, task.dataset), pd.concat(tables.values(), ignore_index=True)
    kind = task.label if task.label in ("form", "rhythm") else "diagnostic"
    statement = {}
    for code, flags in SCP_STATEMENTS.items():
        if getattr(flags, kind):
            statement[(code if kind == task.label else getattr(flags, task.label)).strip("_")] = code
    there = rows[[c.code for c in task.classes]].to_numpy() == "1"
    codes = np.array([statement[c.code] for c in task.classes])
    return records.assign(labels=[codes[row].tolist() for row in there], fold=rows["strat_fold"].astype(int))


@pytest.fixture(scope="module")
def everything(splits):
    """Each task on all of its published rows."""
    needs("ptb-xl/scp_statements.csv")

    def load(name, variant):
        return load_task(name, every_published_row(name, splits), ROOT / TASKS[name].dataset, variant, splits)

    return {(name, v): load(name, v) for name in TASKS for v in ("corrected", "as_published")}


# --- the tables -------------------------------------------------------------------------------------------------------


def test_statements_of_ptb_xl_are_the_release_s():
    needs("ptb-xl/scp_statements.csv")
    table = pd.read_csv(ROOT / "ptb-xl/scp_statements.csv", index_col=0)
    assert list(table.index) == list(SCP_STATEMENTS)
    for code, row in table.iterrows():
        flags = [row[kind] == 1 for kind in ("diagnostic", "form", "rhythm")]
        classes = ["" if pd.isna(row[name]) else row[name] for name in ("diagnostic_class", "diagnostic_subclass")]
        assert list(SCP_STATEMENTS[code]) == [row.description, *flags, *classes]


def test_every_acronym_of_the_published_files_has_a_code_with_as_many_records(splits):
    """No code of `CSN_CONDITIONS` can be wrong by much: the CinC tables count what they call the same code."""
    needs("cinc2021-mappings")
    files = [ROOT / f"cinc2021-mappings/dx_mapping_{kind}.csv" for kind in ("scored", "unscored")]
    table = pd.concat(map(pd.read_csv, files)).set_index("SNOMEDCTCode")
    records = table[["Chapman_Shaoxing", "Ningbo"]].sum(axis=1)
    code_of = dict(reversed([(acronym, int(code)) for acronym, code, _ in CSN_CONDITIONS]))
    tables = published_tables(splits, TASKS["csn"].published_file)
    used = pd.concat(tables.values()).diagnose.str.split(",").explode().value_counts()
    assert len(used) == 50
    assert [(a, n) for a, n in used.items() if records.get(code_of[a], 0) < n] == []


def test_a_positional_reader_of_the_subclass_files_meets_two_orders(splits):
    tables, task = published_tables(splits, ("ptbxl_sub_class",)), TASKS["ptb-xl-subclass"]
    order = {part: tuple(table.columns[-23:]) for part, table in tables.items()}
    assert order["train"] == task.train_order and order["val"] == order["test"] == tuple(c.code for c in task.classes)
    assert sum(a != b for a, b in zip(order["train"], order["test"], strict=True)) == 3


# --- PTB-XL -----------------------------------------------------------------------------------------------------------


def test_form_on_all_8988_rows(splits):
    """Every row accounted for: 8,978 published with the same labels and part, 10 that the releases tell apart."""
    needs(FORM_ROWS, "ptb-xl/scp_statements.csv")
    records = form_rows(ROOT)
    assert len(records) == 8988
    data = load_task("ptb-xl-form", records, ROOT / "ptb-xl", splits=splits)
    assert len(data.record_ids) == 8978 and data.mismatches == 0 and data.left_out == {"not in the published split": 10}
    assert data.counts().T.to_dict("list") == parsed(POSITIVES["ptb-xl-form"])
    by_rule = load_task("ptb-xl-form", records, ROOT / "ptb-xl")
    assert len(by_rule.record_ids) == 8988 and not by_rule.left_out
    ruled = dict(zip(by_rule.record_ids, by_rule.part, strict=True))
    assert [ruled[r] for r in data.record_ids] == data.part.tolist()
    assert sorted(set(ruled) - set(data.record_ids), key=int) == sorted(DROPPED + CHANGED, key=int)
    published = set().union(*(load_ids(splits, name) for name in TASKS if name.startswith("ptb-xl")))
    assert set(DROPPED) & published == set() and set(CHANGED) <= published  # still there, without a form statement


def load_ids(splits, name) -> set[str]:
    return set(published_members(published_tables(splits, TASKS[name].published_file), "ptb-xl").record_id)


@pytest.mark.parametrize(
    ("name", "n"),
    [("ptb-xl-superclass", 336), ("ptb-xl-subclass", 336), ("ptb-xl-form", 91), ("ptb-xl-rhythm", 329)],
)
def test_ptb_xl_rows_at_hand(splits, name, n):
    needs("ptb-xl/ptbxl_database.csv")
    records = ptbxl.read_index(ROOT / "ptb-xl")
    if len(records) != 350:
        n = sum(ROWS[name])  # the whole release
    for variant in ("corrected", "as_published"):
        data = load_task(name, records, ROOT / "ptb-xl", variant, splits)
        assert len(data.record_ids) == n and data.mismatches == 0
        fold = records.set_index("record_id").fold[list(data.record_ids)].to_numpy()
        assert data.part.tolist() == np.select([fold == 10, fold == 9], ["test", "val"], "train").tolist()
    by_rule = load_task(name, records, ROOT / "ptb-xl")
    assert set(by_rule.record_ids) - set(data.record_ids) <= set(IN_PTB_XL_350_ONLY)


# --- CPSC2018 and CSN -------------------------------------------------------------------------------------------------


def test_the_permutation_rule_gives_the_three_cpsc_files_in_their_order(splits):
    records = published_records("cpsc2018", splits)
    tables = published_tables(splits, TASKS["cpsc2018"].published_file)
    numbers = pd.concat(tables.values()).ecg_id.astype(int).sort_values()
    assert numbers.tolist() == list(range(1, 6878))
    assert permuted_ids(records) == [name for part in PARTS for name in tables[part].filename]


def test_csn_labels_come_from_the_codes_behind_diagnose(everything):
    published, exact = everything["csn", "as_published"], everything["csn", "corrected"]
    assert published.mismatches == exact.mismatches == 0
    assert len(published.record_ids) == 23026 and not published.left_out
    unlabelled = [published.record_ids[i] for i in np.flatnonzero(~published.labels.any(1))]
    assert unlabelled == ["JS04328", "JS01944"]
    assert exact.left_out == {"no label of the task": 147}
    assert [len(exact.part_rows(part)) for part in PARTS] == [16430, 1848, 4601]


def test_exact_tokens_change_seven_csn_classes(splits, everything):
    table = csn_pollution(splits)
    assert table[[f"{part} exact" for part in PARTS]].T.to_dict("list") == parsed(CSN_EXACT)
    both = everything["csn", "as_published"].counts().join(everything["csn", "corrected"].counts(), rsuffix="_exact")
    same = both.drop(index=table.index)
    assert len(same) == 31 and (same[[*PARTS]].to_numpy() == same[[f"{part}_exact" for part in PARTS]].to_numpy()).all()


def test_csn_records_at_hand_and_one_that_the_packer_skips(splits, tmp_path):
    needs("chapman-shaoxing-ningbo")
    records = csn.read_index(ROOT / "chapman-shaoxing-ningbo")
    if len(records) != 12:
        pytest.skip(f"{ROOT} holds the whole release; this test knows its first twelve Ningbo records")
    data = load_task("csn", records, ROOT / "chapman-shaoxing-ningbo", splits=splits)
    assert sorted(data.record_ids) == ["JS20001", "JS20007", "JS20008", "JS20010", "JS20011"] and data.mismatches == 0
    assert data.left_out == {"not in the published split": 7, "published, but not among the records": 23021}
    unmapped = load_task("csn", records, ROOT / "chapman-shaoxing-ningbo").left_out
    assert unmapped == {"code without acronym": 7}  # the published rule leaves out just the records that it lists not
    manifest = pack("chapman-shaoxing-ningbo", ROOT / "chapman-shaoxing-ningbo", tmp_path / "store", workers=1)
    assert manifest["counts"]["packed"] == 10
    stored = load_task("csn", EcgStore(tmp_path / "store").records, tmp_path, splits=splits)
    assert set(data.record_ids) - set(stored.record_ids) == {"JS20008"}  # flat V2, V4, V6
    assert stored.left_out == {"not in the published split": 6, "published, but not among the records": 23022}


def test_the_release_s_table_of_acronyms_where_it_lies():
    needs("chapman-shaoxing-ningbo/ConditionNames_SNOMED-CT.csv")
    assert csn_acronyms(ROOT / "chapman-shaoxing-ningbo") == csn_acronyms(ROOT / "no such folder")


# --- counts and subsets of all six ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_rows_and_positives_are_those_of_the_published_files(everything, name):
    data = everything[name, "as_published"]
    assert tuple(len(data.part_rows(part)) for part in PARTS) == ROWS[name] and data.mismatches == 0
    right = everything[name, "corrected"].counts() if name != "csn" else data.counts()
    assert right.T.to_dict("list") == parsed(POSITIVES[name])


@pytest.mark.parametrize("fraction", FEW)
@pytest.mark.parametrize("name", TASKS)
def test_few_label_subsets_miss_the_classes_that_the_published_ones_miss(everything, name, fraction):
    data, (n, missing) = everything[name, "as_published" if name == "csn" else "corrected"], FEW[fraction][name]
    rows = data.few_label_rows(fraction)
    assert len(rows) == n
    without = [c.code for c, positives in zip(data.classes, data.labels[rows].sum(0), strict=True) if not positives]
    assert without == missing.split()


def test_the_command_line_prints_the_proofs(splits, capsys):
    needs(FORM_ROWS, "ptb-xl/ptbxl_database.csv")
    main(["--root", str(ROOT)])
    lines = capsys.readouterr().out.splitlines()
    form = next(line for line in lines if Path(FORM_ROWS).name in line).split()
    assert form[:2] == ["ptb-xl-form", "corrected"] and form[3:9] == [
        "7,197/7,197",
        "901/901",
        "880/880",
        "19",
        "0",
        "0",
    ]
    assert any(line.split() == "AF 2391 259 690 3383 383 987".split() for line in lines)
