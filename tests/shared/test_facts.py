"""shared/runs/facts.py: what is kept of a run beside its weights."""

import re
import shutil
import subprocess

from shared.runs import facts


def test_a_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert facts.commit() == "unknown"


def test_results_make_no_checkout_dirty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert facts.commit() == "unknown", "no checkout"
    for file in ("code.py", "results/a/scorecard.json", "a/REPRODUCTION.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], check=True)
    clean = facts.commit()
    assert re.fullmatch(r"[0-9a-f]{12}", clean)
    (tmp_path / "results/a/scorecard.json").unlink()
    (tmp_path / "a/REPRODUCTION.md").write_text("2")
    assert facts.commit() == clean
    (tmp_path / "code.py").write_text("2")
    assert facts.commit() == f"{clean}-dirty"
