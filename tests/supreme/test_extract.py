"""`supreme.extract`, `audit` and `agreement`: the whole run, again and after a kill, its files, gates and measures."""

import hashlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shared.ecg import simulate
from shared.ecg.codes import FINDINGS
from shared.metrics import findings_validation
from shared.runs.config import data_root
from supreme import agreement, audit, backends, extract
from supreme.backends import Entity, Reading
from supreme.extract import ExtractConfig, run
from supreme.labels import counting

REPORTS = [
    "Sinus rhythm. Possible LVH. Abnormal ECG",
    "Sinus rhythm. LVH. Inferior infarct, old. Abnormal ECG",
    "Atrial fibrillation. No bundle branch block. Abnormal ECG.",
    "Sinus rhythm. Left bundle branch block. Abnormal ECG",
    "Sinus rhythm. Normal ECG",
    "Sinus bradycardia. Otherwise normal ECG",
    "",
    "Poor data quality. Sinus rhythm. Atrial fibrillation. Normal ECG",
    "Clinical correlation is suggested. Sinus rhythm",
]


def hashed(texts):
    """Bags of character 4-grams, hashed."""
    out = np.zeros((len(texts), 256), np.float32)
    for row, text in enumerate(texts):
        padded = f"  {text.lower()}  "
        for i in range(len(padded) - 3):
            out[row, sum(ord(c) * 31**k for k, c in enumerate(padded[i : i + 4])) % 256] += 1
    return out


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "cache"))


def _run(tmp_path, reports=REPORTS, out="out", encode=hashed, **options):
    return run(ExtractConfig(**({"min_records": 1} | options)), reports, tmp_path / out, encode)


def _column(labels, id_):
    i = [t.id for t in labels.terms].index(id_)
    return labels.y[:, i].tolist(), labels.mask[:, i].tolist()


def _files(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def test_labels_of_reports(tmp_path):
    labels = _run(tmp_path)
    assert labels.y.shape == labels.mask.shape == (len(REPORTS), len(labels.terms)) and labels.y.dtype == np.float32
    assert _column(labels, "lvh") == ([0, 1, 0, 0, 0, 0, 0, 0, 0], [False, *[True] * 8])
    assert _column(labels, "normal")[0] == [0, 0, 0, 0, 1, 0, 0, 0, 0]  # the last but one contradicts itself
    assert _column(labels, "normal")[1] == [True, True, True, True, True, False, True, False, True]
    assert _column(labels, "mi")[0] == _column(labels, "inferior_mi")[0] == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert _column(labels, "bundle_branch_block") == _column(labels, "lbbb")
    assert labels.terms[0].id == "sinus_rhythm" and labels.flagged.tolist() == [False] * 7 + [True, False]
    published = _run(tmp_path, out="published", protocol="as_published")
    assert _column(published, "lvh") == ([1, 1, 0, 0, 0, 0, 0, 0, 0], [True] * 9)
    assert _column(published, "normal")[0] == [0, 0, 0, 0, 1, 1, 0, 1, 0]
    assert "inferior_mi" not in [t.id for t in published.terms]


def test_counts_add_up(tmp_path):
    counts = _run(tmp_path).counts
    assert (counts["reports"], counts["statements"], counts["nothing"]) == (9, 23, 1)
    assert counts["unique"] == 13 and counts["failed"] == counts["failed_records"] == 0
    how = [counts[f"clusters_{h}"] for h in extract.HOW]
    assert sum(how) == counts["clusters"] <= counts["names"]
    assert sum(counts[f"mass_{h}"] for h in extract.HOW) == pytest.approx(1)


def test_a_second_run_reads_what_is_there(tmp_path, monkeypatch):
    first = _run(tmp_path)
    monkeypatch.setattr(extract, "extraction", lambda *_: pytest.fail("read anew"))
    again = _run(tmp_path, batch=3, workers=2)  # no matter for the labels
    assert again.terms == first.terms and again.counts == first.counts
    assert (again.y == first.y).all() and (again.mask == first.mask).all()


@pytest.mark.parametrize(
    "change", [{"uncertain": "soft"}, {"reports": REPORTS[:-1]}, {"encode": lambda texts: 1 + hashed(texts)}]
)
def test_another_config_corpus_or_encoder_is_read_anew(tmp_path, monkeypatch, change):
    _run(tmp_path)
    monkeypatch.setattr(extract, "extraction", lambda *_: pytest.fail("read anew"))
    with pytest.raises(pytest.fail.Exception, match="read anew"):
        _run(tmp_path, **change)


def test_after_a_kill_everything_is_made_again_to_the_byte(tmp_path, monkeypatch):
    _run(tmp_path)
    whole = _files(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(audit, "coverage", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path, uncertain="soft")
    assert not (tmp_path / "out" / "audit" / "manifest.json").exists()
    _run(tmp_path)
    assert _files(tmp_path / "out") == whole


def test_a_rerun_from_the_cache_elsewhere_is_byte_identical(tmp_path):
    for out in ("one", "two"):
        _run(tmp_path, out=out)
    assert _files(tmp_path / "one") == _files(tmp_path / "two") and len(_files(tmp_path / "one")) == 14


def test_two_processes_share_one_folder(tmp_path):
    code = (
        "import sys; sys.path[:0] = ['.', 'tests/supreme']\n"
        "from test_extract import REPORTS, hashed; from supreme.extract import ExtractConfig, run\n"
        f"print(run(ExtractConfig(min_records=1), REPORTS * 50, {str(tmp_path / 'both')!r}, hashed).y.sum())"
    )
    root = Path(__file__).parents[2]
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [p.communicate(timeout=120)[0] for p in both]
    assert said[0] == said[1] != "" and [p.returncode for p in both] == [0, 0]


def test_the_audit_tells_what_was_done(tmp_path):
    reports = [*REPORTS, "Odd wobble of the baseline potential", "Sinus rhythm. LVH", "Sinus rhythm. LVH"]
    labels = _run(tmp_path, reports, min_records=2)
    read = lambda name: pd.read_csv(tmp_path / "out" / "audit" / f"{name}.csv", keep_default_na=False)  # noqa: E731
    stats = read("label_stats").set_index("id")
    assert stats.loc["lvh", ["definite", "hedged", "negated"]].tolist() == [3, 1, 0] and stats.loc["lvh", "kept"]
    assert stats.loc["lvh", "statements"] == "lvh (3)" and not stats.loc["lbbb", "kept"]
    assert stats.loc["bundle_branch_block", ["definite", "negated"]].tolist() == [1, 1]
    assert set(stats.index[stats.kept]) == {t.id for t in labels.terms}
    unread = read("unmapped").set_index("text")
    assert unread.loc["odd wobble of the baseline potential", "kind"] == "nothing read"
    mapping = read("mapping").set_index("name")
    assert mapping.loc["left ventricular hypertrophy", ["how", "term", "n_records"]].tolist() == ["exact", "lvh", 4]
    conflicts = read("conflicts")
    found = {(r.kind, r.a, r.b): r.first_record for r in conflicts.itertuples()}
    assert found["normal ECG with", "normal", "atrial_fibrillation"] == 7
    assert ("two rhythms", "atrial_fibrillation", "sinus_rhythm") in found
    coverage = json.loads((tmp_path / "out" / "audit" / "coverage.json").read_text())
    assert sum(coverage["by_number_of_labels"].values()) == len(reports) == coverage["records"]
    assert coverage["with_summary_statement"] == 7 and coverage["flagged"] == 1
    sample = read("review_sample")
    assert len(sample) == labels.counts["unique"] and (sample.reviewed == "").all()
    manifest = json.loads((tmp_path / "out" / "audit" / "manifest.json").read_text())
    assert manifest["identity"]["config"]["tau_merge"] == 0.9 and manifest["reading"]["source"] == "rules"
    assert len((tmp_path / "out" / "extraction.jsonl").read_text().splitlines()) == labels.counts["unique"]
    text = audit.summary(labels)
    assert "0 collect   12 reports" in text and "left over 0 unmapped" in text and "not measured" in text


def _reading(statement, *names, certainty="definite"):
    entities = [Entity(statement, 0, len(statement), n, "other", "abnormal", certainty) for n in names]
    return Reading(statement, tuple(entities))


class Scripted:
    """A backend of the tests; nothing is named in statements it does not hold."""

    source, model, revision, prompt_version, decoding = "llm", "scripted", "", "1", {}

    def __init__(self, readings):
        self.by_statement = {r.statement: r for r in readings}

    def read(self, statements):
        for statement in statements:
            yield self.by_statement.get(statement, Reading(statement))


def _with_readings(monkeypatch, readings):
    monkeypatch.setattr(backends, "make", lambda cfg: Scripted(readings))


def test_a_missed_gate_is_shown(tmp_path, monkeypatch):
    _with_readings(
        monkeypatch, [_reading("a", "unheard of thing"), _reading("b", "LVH"), Reading("c", error="no JSON")]
    )
    labels = _run(tmp_path, ["A. B", "B", "C"], tau_map=1.1, min_records=2)
    verdicts = [g["verdict"] for g in labels.counts["gates"]]
    assert verdicts == ["miss", "pass", "miss", "not measured"]
    text = audit.summary(labels)
    assert text.count(" miss") == 2 and "unheard of thing" in text
    assert (
        json.loads((tmp_path / "out" / "audit" / "manifest.json").read_text())["counts"]["gates"]
        == labels.counts["gates"]
    )


def test_names_that_nobody_knows_are_merged_mapped_or_local(tmp_path, monkeypatch):
    words = {
        "a": "coarse atrial fibrillations",
        "b": "zigzag wobble",
        "c": "zigzag wobbles",
        "d": "lateral ST depression",
    }
    _with_readings(monkeypatch, [_reading(s, name) for s, name in words.items()])
    labels = _run(tmp_path, ["A", "B", "C", "D"] * 2, tau_map=0.6, tau_merge=0.8, min_records=2)
    ids = {t.id for t in labels.terms}
    wider = {"st_depression", "st_change", "st_t_change", "supraventricular_arrhythmia"}
    assert ids == {"atrial_fibrillation", "local:zigzag wobble", "local:lateral ST depression", *wider}
    assert _column(labels, "local:zigzag wobble")[0] == [0, 1, 1, 0] * 2
    assert _column(labels, "st_depression")[0] == [0, 0, 0, 1] * 2
    merges = pd.read_csv(tmp_path / "out" / "audit" / "merges.csv", keep_default_na=False)
    assert merges[["a", "b", "merged"]].values.tolist() == [["zigzag wobble", "zigzag wobbles", True]]
    published = _run(tmp_path, ["A", "B", "C", "D"] * 2, "p", tau_map=0.6, min_records=2, protocol="as_published")
    assert {"st_depression"} <= {t.id for t in published.terms} and "st_change" not in {t.id for t in published.terms}


def test_raw_statements_are_the_labels_of_the_control(tmp_path):
    labels = _run(tmp_path, skip_merge_map=True, min_records=2)
    assert [t.preferred for t in labels.terms] == ["sinus rhythm", "abnormal ecg", "atrial fibrillation", "normal ecg"]
    assert labels.mask.all() and labels.terms[0].group == "statement"
    held = _run(tmp_path, out="held", skip_merge_map=True, min_records=1, hold_out=["lvh"])
    assert not any("lvh" in t.preferred for t in held.terms)


def test_what_is_held_out_is_not_among_the_terms(tmp_path):
    labels = _run(tmp_path, hold_out=["bundle_branch_block", "mi"])
    assert not {"lbbb", "bundle_branch_block", "mi", "inferior_mi"} & {t.id for t in labels.terms}
    with pytest.raises(ValueError, match=r"hold_out.*'lbb'.*lbbb"):
        _run(tmp_path, hold_out=["lbb"])


def _review(tmp_path, changes):
    path = tmp_path / "out" / "audit" / "review_sample.csv"
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    for statement, reviewed in changes.items():
        table.loc[table.statement == statement, "reviewed"] = reviewed
    table.to_csv(tmp_path / "reviewed.csv", index=False)
    return str(tmp_path / "reviewed.csv")


def test_against_a_reviewed_file(tmp_path):
    _run(tmp_path)
    changes = {"sinus rhythm": "=", "possible lvh": "lvh:definite", "clinical correlation is suggested": "none",
               "lvh": "lvh:definite; lbbb:hedged"}  # fmt: skip
    labels = _run(tmp_path, out="second", reviewed=_review(tmp_path, changes))
    found = json.loads((tmp_path / "second" / "audit" / "agreement.json").read_text())
    assert found["statements"] == 4
    assert [found["by_statement"][k] for k in ("tp", "fp", "fn")] == [2, 1, 2]
    assert [found["by_record"][k] for k in ("tp", "fp", "fn")] == [6 + 1, 1, 2]
    assert labels.counts["reviewed_f1"] == found["by_record"]["f1"] == pytest.approx(14 / 17)
    assert labels.counts["gates"][-1]["verdict"] == "miss"
    with pytest.raises(ValueError, match=r"'lvx:definite' is not term:certainty"):
        _run(tmp_path, out="third", reviewed=_review(tmp_path, {"lvh": "lvx:definite"}))
    with pytest.raises(ValueError, match="no reviewed statement"):
        _run(tmp_path, out="fourth", reviewed=_review(tmp_path, {}))


def test_kappa_between_another_reader_and_the_rules(tmp_path):
    _run(tmp_path)
    lines = (tmp_path / "out" / "extraction.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        if entry["statement"] == "lvh":
            entry["entities"] = []
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    _run(tmp_path, out="replayed", backend="replay", replay_file=str(tmp_path / "other.jsonl"))
    kappa = json.loads((tmp_path / "replayed" / "audit" / "agreement.json").read_text())["kappa_with_rules"]
    assert kappa["sinus_rhythm"] == kappa["lbbb"] == 1
    n, both, ours, theirs = 13, 1, 1, 2  # "possible lvh" by both, "lvh" by the rules alone
    observed, chance = (n - 1) / n, ours / n * theirs / n + (n - ours) / n * (n - theirs) / n
    assert both and kappa["lvh"] == pytest.approx((observed - chance) / (1 - chance))


def test_nothing_frequent_enough_and_bad_keys_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"lower extract\.min_records"):
        _run(tmp_path, min_records=100)
    with pytest.raises(ValueError, match=r"extract\.protocol='drawn'"):
        _run(tmp_path, protocol="drawn")


def test_ten_thousand_reports_are_cheap(tmp_path):
    import time

    start = time.process_time()
    labels = _run(tmp_path, REPORTS * 1200)
    assert len(labels.y) == 10_800 and time.process_time() - start < 10


# --- agreement ---


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("agreement") / "tree"
    simulate.write("mimic-iv-ecg", root, 300, 11, fs_hz=100)
    return root


def test_agreement_with_what_was_drawn(tree):
    table = agreement.agreement(tree, encode=hashed).set_index("finding")
    assert list(table.index) == [*FINDINGS, "micro"]
    micro = table.loc["micro"]
    assert micro.precision > 0.97 and micro.recall > 0.9 and micro.recall_hedged > micro.recall
    assert micro.recall_hedged > 0.98 and micro.n == table.n[:-1].sum()
    assert table.loc[["normal", "sinus_rhythm", "lbbb"], ["precision", "recall"]].min().min() == 1


def test_precision_and_recall_by_hand(monkeypatch):
    names = list(FINDINGS)
    truth = np.zeros((4, len(names)), bool)
    lvh, rvh = names.index("lvh"), names.index("rvh")
    truth[[0, 1], lvh] = True
    unsure = np.zeros_like(truth)
    unsure[3, lvh] = True
    reports = ["LVH", "Possible LVH", "LVH", "LVH. RVH"]
    said = partial(agreement.said, encode=hashed, cfg=ExtractConfig())
    table = agreement.compare(reports, truth, said, unsure).set_index("finding")
    assert table.loc["lvh"].tolist() == [2, 0.5, 0.5, pytest.approx(2 / 3), 1]
    assert table.loc["rvh", "n"] == 0 and np.isnan(table.loc["rvh", "recall"]) and table.loc["rvh", "precision"] == 0
    assert table.loc["micro"].tolist() == table.loc["lvh"].tolist()  # what no record has is not pooled
    assert rvh != lvh and counting([[0, 0]], 2).toarray().tolist() == [[2, 0]]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("sinusrhythmus linkstyp qrs(t) abnorm    inferiorer infarkt     alter unbest.", "de"),
        ("sinus rhythm. left axis deviation. t waves are flat in the lateral leads.", "en"),
        ("sinusrytm vänster förmaksförstoring ospecifik st-förändring", "sv"),
        ("", "?"),
        ("wpw", "?"),
    ],
)
def test_language_of_a_report(report, expected):
    assert agreement.language(report) == expected


@pytest.mark.realdata
def test_real_reports_against_codes_and_reading():
    missing = [f for f in findings_validation.SOURCES.values() if not (data_root() / f).exists()]
    if missing:
        pytest.skip(f"DATA_ROOT has no {missing[0]}")
    rows = pd.read_csv(data_root() / findings_validation.SOURCES["english_500"])
    assert (rows.report.dropna().map(agreement.language) == "en").mean() > 0.95
    table = agreement.real_agreement(data_root(), encode=hashed)
    micro = table[table.finding == "micro"].set_index("against")
    by_hand = micro[micro.index.str.startswith("read by hand")]
    assert len(by_hand) == 2 and by_hand[["precision", "precision_hedged"]].min().min() > 0.97
    assert by_hand.recall_hedged.min() > 0.93
    german = micro[micro.index.str.startswith("codes, German")].iloc[0]
    assert german.n > 3000 and german.recall_hedged > 0.75


def test_the_command_prints_every_stage(tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "tier: smoke\ndata: {simulate: {n_records: 60, seed: 5, fs_hz: 100}, fs_hz: 100}\n"
        "text: {encoder: lsa, dim: 16}\nextract: {backend: rules, min_records: 2}\n"
    )
    labels = extract.main(["--config", str(config)])
    said = capsys.readouterr().out
    for line in (
        "0 collect",
        "1 extract",
        "3 merge",
        "4 map",
        "left over",
        "5 label",
        "gate",
        "mapping.csv",
        "unmapped.csv",
    ):
        assert line in said
    assert labels.y.any() and (labels.folder / "audit" / "manifest.json").exists()
