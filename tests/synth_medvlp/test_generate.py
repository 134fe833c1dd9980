"""The generation pipeline from reports to pairs; mostly with the template writer and the simulator as generator."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chat_server import running
from image_models import tiny_encoder, tiny_llava, tiny_pipeline
from report_requests import ReportServer
from text_models import tiny_deberta

from synth_medvlp import figures, generate, journal, packing
from synth_medvlp.config import parse
from synth_medvlp.data import PairDataset
from synth_medvlp.entities import gini, ner
from synth_medvlp.mllm import PROMPT, REMINDER
from synth_medvlp.pairs import verify
from synth_medvlp.prep import prepare
from synth_medvlp.screening import NO, QUESTIONS, UNREAD, YES
from synth_medvlp.stage_evidence import audit_scores, scores, tail
from synth_medvlp.text import report_sentences
from tests.benchmarks.bench_synth import loading

OPTIONS = ("--config", "synth_medvlp/configs/smoke.yaml", "--writer.backend=template", "--image.checkpoint=oracle",
           "--data.n_synthetic=12", "--data.simulate.n_patients=40")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def server():
    with running(ReportServer()) as server:
        yield server


def config(**data):
    cfg = parse(list(OPTIONS))
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, **data))


def test_synthetic_pairs_name_what_was_asked_and_are_packed_with_checksums():
    cfg = config(regime="synthetic")
    pairs, (records, stats) = generate.synthetic(cfg), generate.reports(cfg)
    verify(generate.stage_folder_of(pairs))
    accepted = [r for r in records if r["status"] == "accepted"]
    assert stats["accepted"] == len(accepted) == 12 and 0 < len(pairs) <= 12
    by_id = {f"syn{r['id']}": r for r in accepted}
    for row in pairs.table.itertuples():
        record = by_id[row.id]
        assert (row.findings, row.impression) == (record["findings"], record["impression"])
        assert json.loads(row.clinical) == [list(e) for e in record["clinical"]]
    assert set(pairs.table.source) == {"synthetic"} and pairs.images.std() > 10


def test_pairs_whose_files_were_changed_are_refused():
    cfg = config(regime="synthetic", n_synthetic=13)
    folder = generate.stage_folder_of(generate.synthetic(cfg))
    whole = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    generate._MADE.clear(), generate._VERIFIED.clear()  # as in another process
    with pytest.raises(ValueError, match=r"images\.npy differs from meta\.json; remove the folder"):
        generate.synthetic(cfg)
    (folder / "images.npy").write_bytes(whole)


def test_near_duplicates_are_those_of_all_pairs():
    rng, words = np.random.default_rng(0), [f"w{k}" for k in range(60)]
    texts = [" ".join(rng.choice(words, rng.integers(3, 40))) for _ in range(120)]
    for _ in range(40):  # from the same text to one with several words changed
        other = texts[int(rng.integers(120))].split()
        for at in rng.integers(0, len(other), rng.integers(0, 3)):
            other[at] = "changed"
        texts.append(" ".join(other))
    sets = [{tuple(w[i : i + 5]) for i in range(max(len(w) - 5, 0) + 1)} for w in (t.split() for t in texts)]
    expected = [any(len(a & b) >= 0.8 * len(a | b) for b in sets[:i]) for i, a in enumerate(sets)]
    assert packing.near_duplicates(texts).tolist() == expected and 10 < sum(expected) < 40


def test_all_stages_join_with_checkpoints_of_the_paper_tier_s_formats(tmp_path, server):
    """Random models: what they say is unread or nonsense, so the text check is left out; what must hold is that each
    stage takes what the one before it gives. The server writes what it is asked for."""
    made = {"encoder": tiny_encoder, "deberta": tiny_deberta, "pipeline": tiny_pipeline}
    made["llava"] = lambda folder: tiny_llava(folder, [PROMPT, REMINDER])
    folders = {name: str(tmp_path / name) for name in made}
    for name, build in made.items():
        (tmp_path / name).mkdir()
        build(tmp_path / name)
    cfg = parse([
        *OPTIONS, "--data.n_synthetic=4", "--data.simulate.n_patients=10", "--data.regime=synthetic",
        "--audit.screener=mllm", f"--audit.model={folders['llava']}", f"--audit.encoder={folders['encoder']}",
        "--audit.max_new_tokens=4", "--audit.reasks=0", "--ner.backend=model", f"--ner.model={folders['deberta']}",
        "--ner.min_count=1", "--sampler.k=1", "--sampler.m=1", "--writer.backend=endpoint", "--writer.model=llm",
        f"--writer.base_url={server.base_url}", "--writer.check=false",
        f"--image.checkpoint={folders['pipeline']}", "--image.steps=2",
    ])  # fmt: skip
    pairs, audit, (records, text) = generate.synthetic(cfg), generate.audited(cfg), generate.reports(cfg)
    assert len(pairs) == text["accepted"] == 4 and pairs.images.std() > 1 and (pairs.table.impression != "").all()
    assert (audit.answers == UNREAD).all() and audit.screener.identity["model"] == folders["llava"]
    stages = {row[0] for row in generate.funnel(cfg)}
    assert stages == {"A1", "A2", "A3", "A4", "S1", "S2", "S3", "S4", "S5", "S6", "S7"}
    assert len(records) == len(server.requests) // 2 == 4


def test_a_stage_shows_its_progress_on_a_terminal_to_the_first_process_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "isatty", lambda _: True)
    shown = {}
    for rank in "01":
        monkeypatch.setenv("RANK", rank), monkeypatch.setenv("WORLD_SIZE", "2")
        some = journal.Journal(tmp_path, "answers", {})
        assert list(some.shown([0, 1, 2], "six questions")) == [0, 1, 2]
        shown[rank] = capsys.readouterr().out
    assert "six questions" in shown["0"] and "100%" in shown["0"] and shown["1"] == ""


def test_a_second_call_generates_nothing(monkeypatch):
    cfg = config(regime="synthetic")
    first = generate.synthetic(cfg)
    generate._MADE.clear()  # as in another process

    def never(*_):
        raise AssertionError("generated again")

    class Idle:  # what is finished asks its generator for a name only
        name, identity = "oracle", None
        __call__ = never

    monkeypatch.setattr(generate, "generator", lambda *_: Idle())
    assert generate.synthetic(cfg).sha256 == first.sha256


def test_regimes_take_images_and_texts_from_where_they_say():
    real = generate.real(config())
    truth = {i: n for n, i in enumerate(real.table.id)}
    texts = generate.synthetic(config(regime="real_text"))
    for row, image in zip(texts.table.itertuples(), texts.images, strict=True):
        n = truth[generate.real_id(row.id)]
        assert row.findings == real.table.findings[n] and (image != real.images[n]).any()
    images = generate.synthetic(config(regime="real_image"))
    assert len(images) > 5
    for row, image in zip(images.table.itertuples(), images.images, strict=True):
        n = truth[generate.real_id(row.id)]
        np.testing.assert_array_equal(image, real.images[n])
    assert (images.table.findings.to_numpy() != real.table.set_index("id").findings.reindex(
        images.table.id.map(generate.real_id)).to_numpy()).mean() > 0.5  # fmt: skip


def test_prepare_gives_each_regime_its_folders_and_its_own_hash():
    found = {regime: prepare(config(regime=regime)) for regime in ("real", "clean", "synthetic", "mix")}
    assert [[p.table.source.iloc[0] for p in data.pairs] for data in found.values()] == [
        ["real"], ["real"], ["synthetic"], ["real", "synthetic"]
    ]  # fmt: skip
    assert len({data.data_hash for data in found.values()}) == 4
    assert {data.source for data in found.values()} == {"simulated"}
    (mask,) = found["clean"].keep
    assert mask.dtype == bool and len(mask) == len(found["real"].pairs[0])


def test_half_real_pairs_are_compared_with_the_real_pairs_of_the_same_records():
    for half, own in (("real_image", "real_of_image"), ("real_text_impression", "real_of_text")):
        made, found = prepare(config(regime=half)), prepare(config(regime=own))
        (table,), (real,), (mask,) = [p.table for p in made.pairs], [p.table for p in found.pairs], found.keep
        assert set(real.source) == {"real"} and 0 < mask.sum() == len(table)
        assert sorted(real.id[mask]) == sorted(table.id.map(generate.real_id))
    for regime in ("real_text_impression", "real_of_text"):
        cfg = config(regime=regime)
        data = prepare(cfg)
        (table,), (mask,) = [p.table for p in data.pairs], data.keep
        kept = table[mask] if mask is not None else table
        said = {sentence for report in kept.impression for sentence in report_sentences("", report)}
        read = {sentence for texts in PairDataset(data.pairs, data.keep, cfg.data, 0).texts for sentence in texts}
        assert read and read == said


def test_stages_left_out_and_other_filters_are_other_results_of_the_same_texts():
    cfg = config(regime="synthetic")
    base = generate.stage_folder_of(generate.synthetic(cfg))
    unchecked = dataclasses.replace(cfg, image=dataclasses.replace(cfg.image, check=False))
    prompts = [r["impression"] for r in generate.reports(cfg)[0] if r["status"] == "accepted"]
    other, texts = generate.synthetic(unchecked), {p.name for p in (base.parent).glob("reports-*")}
    generate.synthetic(dataclasses.replace(cfg, sampler=dataclasses.replace(cfg.sampler, balanced=False)))
    drawn, checks, _ = generate.images(cfg, prompts)
    first, kept, stats = generate.images(unchecked, prompts)
    assert stats["S6"]["answers"]["images"] == 0 and {k["image_attempts"] for k in kept} == {1}
    assert other.table.impression.tolist() == prompts and np.array_equal(other.images, first)  # none is rejected
    again = np.array([c["image_attempts"] > 1 for c in checks])  # only these differ from what the check saw first
    assert ((drawn != first).any((1, 2)) == again).all()
    assert {p.name for p in base.parent.glob("reports-*")} - texts, "another sampler asks for other reports"


def test_the_funnel_counts_what_the_stages_counted():
    cfg = config(regime="synthetic")
    rows = {(stage, what): number for stage, what, number in generate.funnel(cfg)}
    assert rows["A1", "frontal pairs kept"] == len(generate.real(cfg))
    assert rows["S4", "reports accepted"] == 12 and rows["S7", "pairs"] == len(generate.synthetic(cfg))
    assert 0 <= rows["S7", "cosine to the nearest real training image, 95th percentile, synthetic"] <= 1
    assert {stage for stage, _ in rows} == {"A1", "A2", "A3", "A4", "S1", "S2", "S3", "S4", "S5", "S6", "S7"}
    _, text = generate.reports(cfg)
    s1 = text["sampler"]
    assert rows["S1", "draws that fell back to another type"] == sum(s1["fallback_draws"].values())
    assert any(what.startswith("types used up") and n == len(s1["exhausted_types"]) for (_, what), n in rows.items())
    assert rows["S2", "FINDINGS: prompts"] == text["findings"]["prompts"] >= 12
    assert rows["S4", "seconds per accepted report"] == text["seconds_per_report"]
    for question, rate in generate.audited(cfg).stats["A2"]["yes_rate"].items():
        assert rows["A2", f"share of YES, {question}"] == rate


def test_the_tail_is_that_of_the_pool_and_of_the_packed_reports(tmp_path):
    cfg = config(regime="synthetic")
    (pool, _), found = generate.entity_pool(cfg), tail(cfg)
    assert set(found) == set(pool)
    for kind, of in found.items():
        assert [n for n in of["real"] if n] == sorted(pool[kind].values(), reverse=True)
        assert of["synthetic"] == sorted(of["synthetic"], reverse=True) and max(of["synthetic"]) <= 12
        assert of["gini"] == {side: gini(of[side]) for side in ("real", "synthetic")}
    accepted = generate.synthetic(cfg).table
    asked = {tuple(e) for row in accepted.clinical for e in json.loads(row)}
    assert sum(n > 0 for of in found.values() for n in of["synthetic"]) >= len(asked)
    figures.draw_tail(tmp_path / "tail.png", json.loads(json.dumps(found)))
    assert (tmp_path / "tail.png").stat().st_size > 5000


def test_the_audit_is_scored_by_what_the_simulator_made():
    defects = ["", "", "non_frontal", "unreadable:blank", "unreadable:turned", "mismatched_report"]
    answers = np.full((6, 6), YES)
    answers[0, 3] = answers[3] = NO  # a wrong NO to quality; a right one to everything
    bad = np.array([1, 0, 0, 1, 0, 0], bool)
    rows = {row[0]: row[1:] for row in scores(defects, answers, bad | (np.arange(6) == 5), bad)}
    assert rows["dropped by A2: unreadable"] == [2, 1, 1 / 2, 1 / 2]
    assert rows["dropped by A2: non frontal"] == [1, 0, 0.0, 0.0]
    assert rows["dropped by A2: wrong body part"] == [0, 0, None, 0.0]
    assert rows["dropped by A2: any defect of the image"] == [3, 1, 1 / 3, 1 / 2]
    assert rows["dropped by A2 or A3: mismatched report"] == [1, 1, 1.0, 1 / 3]
    assert rows["NO to quality"] == [1, 1, 1.0, 1 / 2] and rows["NO to clean"] == [2, 1, 1 / 2, 1.0]
    assert len(rows) == 10 + len(QUESTIONS)
    found = {row[0]: row for row in audit_scores(config())}
    truth = sum(found[f"dropped by A2: {d}"][1] for d in ("non frontal", "wrong body part", "unreadable"))
    assert set(found) == set(rows) and found["dropped by A2: any defect of the image"][1] == truth > 0
    assert audit_scores(dataclasses.replace(
        config(), data=dataclasses.replace(config().data, simulate=None))) == []  # fmt: skip


# --- several processes ---


def manifests(cache):
    """What became of every request and every image, without what time it took."""
    (file,) = Path(cache).glob("synth_medvlp/reports-*/manifest.jsonl")
    lines = [line for f in Path(cache).glob("synth_medvlp/images-*/manifest-*.jsonl") for line in open(f)]
    found = sorted((json.loads(line) for line in lines if '"item"' in line), key=lambda r: r["item"])
    for record in found:
        for tried in record["tries"]:
            del tried["seconds"]
    return file.read_text(), found


SHIPPED = ("--writer.backend=local", "--image.checkpoint=shipped", "--image.batch=4")


def launched(cache, options, *launcher, threads=1):
    shown = os.environ | {"CACHE_ROOT": str(cache), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *launcher, "-m", "synth_medvlp.generate", *OPTIONS, *options]
    return subprocess.run(command, env=shown, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    "options",
    [(), SHIPPED, ("--data.regime=real_image",)],
    ids=["template and oracle", "shipped networks", "texts for real images"],
)
def test_two_processes_make_what_one_makes_and_share_the_work(tmp_path, options):
    done = launched(tmp_path, options, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("pairs in") == 1, "the funnel is printed once"
    one = launched(tmp_path / "one", options, threads=2)
    assert one.returncode == 0, one.stderr[-2000:]
    (folder,), (alone,) = tmp_path.glob("synth_medvlp/pairs-*"), tmp_path.glob("one/synth_medvlp/pairs-*")
    verify(folder)
    assert folder.name == alone.name
    for name in ("images.npy", "pairs.parquet"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes()
    assert manifests(tmp_path) == manifests(tmp_path / "one")
    others = ("seconds", "pairs in", "simulating")
    counted = [line for line in one.stdout.splitlines() if not any(said in line for said in others)]
    assert set(counted) <= set(done.stdout.splitlines())
    assert bool(counted) == ("--data.regime=real_image" not in options), "the funnel is of whole generation"
    assert len(list(tmp_path.glob("synth_medvlp/audit-*/answers-[01].jsonl"))) == 2
    assert not list(tmp_path.glob("synth_medvlp/reports-*/share-*")), "shares are put together and removed"


def test_the_funnel_says_which_findings_the_check_refuses():
    def check(prompt, reason):
        return {"prompt": prompt, "tries": [{"reason": reason}, {"reason": ""}]}

    checks = [check("Small left effusion. No pneumothorax.", "similarity"), check("Right effusion.", "")]
    checks += [check("Emphysema.", "questions")] * 2 + [check("Hernia.", "")]
    found = packing.failed_by_finding(checks, ner(config().ner), least=2)
    assert found == [("emphysema", 2, 1.0), ("effusion", 2, 0.5)]


def test_a_stage_made_by_other_code_is_another_folder(monkeypatch):
    before = {stage: generate.stage_folder(stage, "same") for stage in generate.CODE}
    monkeypatch.setattr(generate, "CODE", {stage: files[:-1] for stage, files in generate.CODE.items()})
    after = {stage: generate.stage_folder(stage, "same") for stage in before}
    assert not [stage for stage in before if before[stage] == after[stage]]


def test_the_benchmark_times_a_step_against_its_reading():
    row = loading(config(regime="real"))
    assert row.value > 0 and row.ratio > 0 and "ms to read it" in row.reference
