"""`synth_medvlp.image_check` (S5, S6): new seeds until an image passes, counts, kills, workers."""

import threading

import numpy as np
import pytest
from image_models import Judge, Painter

from synth_medvlp import image_check
from synth_medvlp.diffusion import ImageConfig
from synth_medvlp.image_check import attempt_seed, check_images

BAD = np.array([[1.0, 0.0]], np.float32)
PROMPTS = [f"prompt number {i}{' and more' * (i % 3)}" for i in range(40)]
SEEDS = [100 + i for i in range(40)]
CFG = ImageConfig(batch=8, attempts=3, seed=5)


def _plain(records):
    """Without what time it took."""
    return [r | {"tries": [{k: v for k, v in t.items() if k != "seconds"} for t in r["tries"]]} for r in records]


def _expected(seed):
    """Attempts of one item by hand: (reasons, seed of the last image)."""
    reasons = []
    for attempt in range(CFG.attempts):
        s = attempt_seed(CFG.seed, seed, attempt)
        reasons.append("nan" if s % 7 == 0 else {0: "questions", 1: "questions", 2: "similarity"}.get(s % 5, ""))
        if not reasons[-1]:
            break
    return reasons, s


def test_each_item_is_drawn_until_it_passes(tmp_path):
    images, records, stats = check_images(PROMPTS, SEEDS, Painter(), Judge(), BAD, CFG, tmp_path)
    tries = []
    for i, record in enumerate(records):
        reasons, last = _expected(SEEDS[i])
        tries += reasons
        assert [t["reason"] for t in record["tries"]] == reasons and record["image_attempts"] == len(reasons)
        assert record["status"] == ("rejected" if reasons[-1] else "accepted") and record["image_seed"] == last
        assert record["reject_reason"] == reasons[-1] and record["item"] == i and record["prompt"] == PROMPTS[i]
        assert (images[i] == Painter()([PROMPTS[i]], [last])[0][0]).all()
    s6 = stats["S6"]
    assert s6["accepted"] + s6["rejected"] == 40 and s6["rejected"] > 0
    assert stats["S5"]["made"] == len(tries) == sum(row["images"] for row in s6["attempts"])
    assert stats["S5"]["nan"] == tries.count("nan") > 0 and s6["attempts"][0]["images"] == 40
    assert s6["attempts"][0]["passed"] == sum(_expected(s)[0] == [""] for s in SEEDS)
    assert s6["failed_similarity"] == tries.count("similarity") > 0
    assert s6["regenerated"] == sum(len(_expected(s)[0]) > 1 for s in SEEDS)
    assert s6["answers"]["bad_by_rule"]["any_no"] == tries.count("questions") > s6["answers"]["bad_by_rule"]["all_no"]
    assert stats["S5"]["prompts_truncated"] == sum(len(p) > 20 for p in PROMPTS)


def test_other_rules_and_no_check(tmp_path):
    everything = check_images(PROMPTS, SEEDS, Painter(), Judge(), BAD, CFG, tmp_path / "all", "all_no", 2.0)
    assert {t["reason"] for r in everything[1] for t in r["tries"]} == {"", "nan", "questions"}
    assert everything[2]["S6"]["failed_similarity"] == 0
    off = check_images(PROMPTS, SEEDS, Painter(), None, BAD, CFG, tmp_path / "off")
    assert {t["reason"] for r in off[1] for t in r["tries"]} == {"", "nan"} and off[1][0]["answers"] is None
    nothing = check_images([], [], Painter(), Judge(), BAD, CFG, tmp_path / "none")
    assert len(nothing[0]) == 0 and nothing[1] == [] and nothing[2]["S6"]["prompts"] == 0
    with pytest.raises(ValueError, match="one seed per prompt"):
        check_images(PROMPTS, SEEDS[:3], Painter(), Judge(), BAD, CFG, tmp_path / "x")


def test_a_killed_run_goes_on_with_the_same_result(tmp_path):
    whole = check_images(PROMPTS, SEEDS, Painter(), Judge(), BAD, CFG, tmp_path / "whole")
    for kills in (1, 8):
        with pytest.raises(KeyboardInterrupt):
            check_images(PROMPTS, SEEDS, Painter(), Judge(fail_after=kills), BAD, CFG, tmp_path / "cut")
    manifest = tmp_path / "cut" / "manifest-0.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]) + lines[-1][:20])  # the chunk's last line was cut off
    painter = Painter()
    images, records, _ = check_images(PROMPTS, SEEDS, painter, Judge(), BAD, CFG, tmp_path / "cut")
    assert (images == whole[0]).all() and _plain(records) == _plain(whole[1])
    assert len(painter.calls) < 15
    painter.calls.clear()
    assert (check_images(PROMPTS, SEEDS, painter, Judge(), BAD, CFG, tmp_path / "cut")[0] == images).all()
    assert not painter.calls
    with pytest.raises(ValueError, match="other settings"):
        check_images(PROMPTS, SEEDS, Painter(), Judge(), BAD, ImageConfig(batch=8, guidance=1.0), tmp_path / "cut")


def test_workers_share_the_prompts(tmp_path, monkeypatch):
    whole = check_images(PROMPTS, SEEDS, Painter(), Judge(), BAD, CFG, tmp_path / "whole")
    place, results = threading.local(), {}
    monkeypatch.setattr(image_check.Journal.__init__.__globals__["time"], "sleep", lambda s: None)
    monkeypatch.setitem(image_check.Journal.__init__.__globals__, "worker", lambda: (place.rank, 2))

    def run(rank):
        place.rank = rank
        painter = Painter()
        results[rank] = (check_images(PROMPTS, SEEDS, painter, Judge(), BAD, CFG, tmp_path / "two"), painter)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    [t.start() for t in threads]
    [t.join(20) for t in threads]
    for rank in (0, 1):
        (images, records, _), painter = results[rank]
        assert (images == whole[0]).all()
        assert [r["image_seed"] for r in records] == [r["image_seed"] for r in whole[1]]
        of_rank = {prompt for i, prompt in enumerate(PROMPTS) if i // CFG.batch % 2 == rank}
        assert {prompt for call in painter.calls for prompt, _ in call} == of_rank
    painter = Painter()  # one process reads what two have made
    place.rank = 0
    monkeypatch.setitem(image_check.Journal.__init__.__globals__, "worker", lambda: (0, 1))
    assert (check_images(PROMPTS, SEEDS, painter, Judge(), BAD, CFG, tmp_path / "two")[0] == whole[0]).all()
    assert not painter.calls
    (tmp_path / "two" / "manifest-1.jsonl").unlink()  # and ends what another process left out
    assert (check_images(PROMPTS, SEEDS, painter, Judge(), BAD, CFG, tmp_path / "two")[0] == whole[0]).all()
    assert {prompt for call in painter.calls for prompt, _ in call} == {p for i, p in enumerate(PROMPTS) if i // 8 % 2}
