"""`kmerl.extract`: unique statements, cache, labels under conflicts and doubt, vocabulary, failures, command line."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import pytest

from kmerl import extract
from kmerl.backends import Reading
from kmerl.dictionary import Found, read
from kmerl.extract import ExtractConfig, read_cached, run, split

REPORTS = [
    "Sinus rhythm. Possible LVH. Abnormal ECG",
    "Sinus rhythm. LVH. No LVH. Abnormal ECG",
    "Atrial fibrillation. No LVH. Possible LVH. Abnormal ECG.",
    "Sinus rhythm. Inferior infarct, old. Abnormal ECG",
    "Sinus rhythm. Normal ECG",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "cache"))


def _run(tmp_path, reports=REPORTS, **options):
    return run(ExtractConfig(**({"min_count": 1} | options)), reports, tmp_path / "out")


class Scripted:
    """A backend of the tests: the dictionary, but for statements that always fail; remembers what it was asked."""

    name, version = "scripted", "1"

    def __init__(self, fails=(), dies_after=None, found=None):
        self.fails, self.dies_after, self.found, self.asked = set(fails), dies_after, found or {}, []

    def read(self, statements):
        for statement in statements:
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(statement)
            if statement in self.fails:
                yield Reading(statement, error="no JSON object in the reply")
            else:
                yield Reading(statement, tuple(self.found.get(statement, read(statement))))


def _with(monkeypatch, backend):
    monkeypatch.setattr(extract, "make", lambda cfg: backend)
    return backend


def test_statements_are_split_where_the_loader_joined_them():
    assert split("Sinus rhythm.  Old  infarct. Normal ECG.") == ["Sinus rhythm", "Old infarct", "Normal ECG"]
    assert split("av-block i. grades linkstyp", "") == ["av-block i. grades linkstyp"]
    assert split("") == split(" . ") == []


def test_counts_tell_all_statements_from_unique_ones(tmp_path):
    entities = _run(tmp_path)
    assert entities.counts["reports"] == 5 and entities.counts["statements"] == 16 and entities.counts["unique"] == 8
    assert entities.counts["failed"] == 0 and entities.counts["entities"] == len(entities.names)
    assert entities.labels.shape == (5, len(entities.names)) and entities.labels.dtype == np.int8


def _column(entities, name):
    return entities.labels[:, entities.names.index(name)].tolist()


@pytest.mark.parametrize(("policy", "hedged"), [("positive", 1), ("negative", 0), ("ignore", -1)])
def test_labels_under_doubt_denial_and_conflict(tmp_path, policy, hedged):
    entities = _run(tmp_path, uncertain=policy)
    #  possible | said and denied: affirmed wins | denied and possible: doubt wins | - | -
    assert _column(entities, "left ventricular hypertrophy") == [hedged, 1, hedged, 0, 0]
    assert _column(entities, "sinus rhythm") == [1, 1, 0, 1, 1]
    assert _column(entities, "normal ECG") == [0, 0, 0, 0, 1]  # "Abnormal ECG" denies it
    assert entities.counts["conflicts"] == 1
    assert entities.counts["ignored"] == (entities.labels == -1).sum()


def test_what_is_implied_is_labelled_unless_switched_off(tmp_path):
    entities = _run(tmp_path)
    assert _column(entities, "myocardial infarction") == _column(entities, "inferior infarction") == [0, 0, 0, 1, 0]
    assert _column(entities, "ventricular hypertrophy") == [-1, 1, -1, 0, 0]
    assert "myocardial infarction" not in _run(tmp_path, implied=False).names


def test_vocabulary_is_the_frequent_and_not_held_out(tmp_path):
    entities = _run(tmp_path, min_count=2)
    assert entities.names == ["abnormal ECG", "sinus rhythm"]  # 4 records each, then the alphabet
    entities = _run(tmp_path, hold_out=["sinus rhythm", "torsades de pointes"])
    assert "sinus rhythm" not in entities.names and "abnormal ECG" in entities.names
    with pytest.raises(ValueError, match=r"no entity is called 'sinus rythm'; did you mean one of \['sinus rhythm'"):
        _run(tmp_path, hold_out=["sinus rythm"])
    with pytest.raises(ValueError, match=r"no entity is affirmed in 9 of 5 reports; lower extract\.min_count"):
        _run(tmp_path, min_count=9)
    with pytest.raises(ValueError, match="uncertain='maybe'"):
        _run(tmp_path, uncertain="maybe")


def test_the_audit_says_where_each_label_comes_from(tmp_path):
    entities = _run(tmp_path)
    audit = pd.read_parquet(entities.folder / "audit.parquet")
    assert list(audit.columns) == [
        "statement", "n_reports", "entity", "status", "evidence", "start", "end", "verdict", "backend"
    ]  # fmt: skip
    assert all(r.statement[r.start : r.end] == r.evidence for r in audit.itertuples())
    row = audit[audit.statement == "Possible LVH"].iloc[0]
    assert row[["n_reports", "entity", "status", "evidence", "verdict", "backend"]].tolist() == [
        2, "left ventricular hypertrophy", "uncertain", "LVH", "confirmed", "dictionary"
    ]  # fmt: skip
    saved = json.loads((entities.folder / "entities.json").read_text())
    assert saved["entities"] == dict(zip(entities.names, (entities.labels == 1).sum(0).tolist(), strict=True))
    np.testing.assert_array_equal(np.load(entities.folder / "labels.npy"), entities.labels)


def test_statements_without_an_entity_are_listed(tmp_path):
    entities = _run(tmp_path, [*REPORTS, "Baseline artifact. Sinus rhythm", "Baseline artifact"])
    unread = pd.read_csv(entities.folder / "unread.csv")
    assert unread.values.tolist() == [["Baseline artifact", 2]]


def test_a_statement_that_could_not_be_read_is_never_zero(tmp_path, monkeypatch, caplog):
    _with(monkeypatch, Scripted(fails=["Possible LVH"]))
    entities = _run(tmp_path)
    assert entities.counts["failed"] == 1 and entities.counts["failed_reports"] == 2
    for i in (0, 2):  # what the other statements affirm or deny stands, all else is out of the loss
        settled = {"sinus rhythm": 1, "abnormal ECG": 1, "normal ECG": 0} if i == 0 else {
            "atrial fibrillation": 1, "supraventricular arrhythmia": 1, "abnormal ECG": 1, "normal ECG": 0,
            "left ventricular hypertrophy": 0,
        }  # fmt: skip
        expected = [settled.get(name, -1) for name in entities.names]
        assert entities.labels[i].tolist() == expected
    assert (entities.labels[[1, 3, 4]] >= 0).all()
    failures = pd.read_csv(entities.folder / "failures.csv")
    assert failures.values.tolist() == [["Possible LVH", 2, "no JSON object in the reply"]]
    assert "1 of 8 statements could not be read: ['Possible LVH']" in caplog.text
    assert _run(tmp_path).counts["failed"] == 1  # asked again, failed again


def test_what_the_second_pass_rejects_is_not_labelled(tmp_path, monkeypatch):
    invented = Found("atrial flutter", "affirmed", 0, 5, "rejected")
    _with(monkeypatch, Scripted(found={"Normal ECG": [*read("Normal ECG"), invented]}))
    entities = _run(tmp_path)
    assert "atrial flutter" not in entities.names and entities.counts["rejected"] == 1


def test_names_of_a_language_model_are_merged_with_the_dictionary(tmp_path, monkeypatch):
    coined = [Found("RBBB", "affirmed", 0, 3), Found("acute anterior infarction", "affirmed", 0, 3),
              Found("strange  thing", "affirmed", 0, 3)]  # fmt: skip
    _with(monkeypatch, Scripted(found={"Normal ECG": coined}))
    entities = _run(tmp_path)
    merged = {"right bundle branch block", "bundle branch block", "acute infarction", "anterior infarction"}
    assert merged | {"strange thing"} <= set(entities.names) and "RBBB" not in entities.names
    assert {"RBBB", "acute anterior infarction"} <= set(_run(tmp_path, merge=False).names)


def test_unique_statements_are_read_once_and_kept(tmp_path, monkeypatch):
    first = _with(monkeypatch, Scripted())
    labels = _run(tmp_path).labels
    assert sorted(first.asked) == sorted({s for report in REPORTS for s in split(report)})
    second = _with(monkeypatch, Scripted())
    np.testing.assert_array_equal(_run(tmp_path).labels, labels)
    assert second.asked == []
    third = _with(monkeypatch, Scripted())
    third.version = "2"  # other prompts: nothing of the old is taken
    _run(tmp_path)
    assert len(third.asked) == 8


def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    _with(monkeypatch, Scripted(dies_after=3))
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path)
    rest = _with(monkeypatch, Scripted())
    resumed = _run(tmp_path)
    assert len(rest.asked) == 5
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "fresh"))
    _with(monkeypatch, Scripted())
    np.testing.assert_array_equal(_run(tmp_path).labels, resumed.labels)


def test_a_killed_process_loses_at_most_the_line_it_was_writing(tmp_path):
    """SIGKILL while it reads; the cache then holds whole lines, and the next run asks for the rest only."""
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from kmerl.backends import Reading
        from kmerl.extract import read_cached
        class Slow:
            name, version = "slow", "1"
            def read(self, statements):
                for s in statements:
                    time.sleep(0.02)
                    yield Reading(s)
        read_cached(Slow(), [f"statement {i}" for i in range(1000)], Path(sys.argv[1]))
    """)
    folder = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=os.getcwd())
    try:
        lines = 0
        for _ in range(600):
            time.sleep(0.1)
            lines = sum(len(p.read_text().splitlines()) for p in folder.glob("*.jsonl"))
            if lines > 5:
                break
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lines > 5
    (path,) = folder.glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"statement": "statement 7')  # as if it had died inside a line
    kept = path.read_text().count("\n")
    backend = Scripted()
    backend.name = "slow"
    read_cached(backend, [f"statement {i}" for i in range(1000)], folder)
    assert len(backend.asked) == 1000 - kept
    assert len(path.read_text().splitlines()) == 1000


def test_a_foreign_line_in_the_cache_is_named(tmp_path, monkeypatch):
    _with(monkeypatch, Scripted())
    _run(tmp_path)
    (path,) = (tmp_path / "cache" / "extract").glob("*.jsonl")
    path.write_text('{"statement": "x"}\n')
    with pytest.raises(ValueError, match=r"\.jsonl, line 1: not a reading"):
        _run(tmp_path)


def test_labels_equal_a_plain_loop(tmp_path):
    """The sparse products against the rule written out record by record."""
    rng = np.random.default_rng(0)
    pool = ["LVH", "No LVH", "Possible LVH", "RBBB", "No bundle branch block", "Sinus rhythm", "Baseline artifact"]
    reports = [". ".join(rng.choice(pool, rng.integers(1, 5))) for _ in range(200)]
    entities = _run(tmp_path, reports, implied=False)
    order = ["negated", "uncertain", "affirmed"]
    for i, report in enumerate(reports):
        said = {}
        for f in (f for s in split(report) for f in read(s)):
            said[f.entity] = max(said.get(f.entity, f.status), f.status, key=order.index)
        values = {"affirmed": 1, "uncertain": -1, "negated": 0}
        assert entities.labels[i].tolist() == [values[said.get(name, "negated")] for name in entities.names]


def test_the_command_prints_counts_and_a_sample_of_the_audit(tmp_path, monkeypatch, capsys):
    class Prepared:
        entities = _run(tmp_path)

    monkeypatch.setattr("kmerl.prep.prepare", lambda cfg: Prepared)
    extract.main(["--config=kmerl/configs/smoke.yaml"])
    out = " ".join(capsys.readouterr().out.split())
    assert "'statements': 16, 'unique': 8" in out and "audit.parquet" in out and "dictionary" in out
