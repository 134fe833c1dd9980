"""shared/runs/facts.py: what is kept of a run beside its weights."""

import shutil

from shared.runs import facts


def test_a_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert facts.commit() == "unknown"
