"""What is drawn or counted from images and the caches of the runs, when results are collected: `Paper.pictures`."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from shared.metrics.scorecard import dumps
from shared.runs.evidence import folder, run_folders
from synth_medvlp import figures
from synth_medvlp.classes import drawn, stated
from synth_medvlp.config import Config, parse
from synth_medvlp.evaluate import setup
from synth_medvlp.generate import audited, funnel, images, real, reports, stage_folder_of, synthetic
from synth_medvlp.grounding import masks_of, upsampled
from synth_medvlp.inputs import Input
from synth_medvlp.prompts import prompts_of
from synth_medvlp.screening import NO, QUESTIONS
from synth_medvlp.stage_evidence import audit_scores, tail
from synth_medvlp.tables import REGIMES


def keep_funnel(cfg: Config, experiments: list[str]) -> None:
    """Counts of every stage of this tier's generation, the tail of entities, the audit against what the simulator made,
    and of each class the share of real reports that state it, and how well synthetic images show it."""
    if "synthetic" not in experiments:
        return
    run = run_folders(cfg, "synthetic", cfg.reproduce.seeds[0])[0]
    run_cfg = parse(["--config", str(run / "config.yaml")])
    for name, made in {"funnel": funnel, "tail": tail, "audit": audit_scores}.items():
        (folder(cfg) / f"{name}.json").write_text(dumps(made(run_cfg)))
    of_task = json.loads((run / "metrics.json").read_text())["classes"]
    classes = sorted({c for task in of_task.values() for c in task})
    (folder(cfg) / "frequency.json").write_text(dumps(stated(run_cfg, classes)))
    reader = run_folders(cfg, "real", cfg.reproduce.seeds[0])[0] / "checkpoint"
    if reader.exists():
        (folder(cfg) / "drawn.json").write_text(dumps(drawn(run_cfg, reader, classes)))


def draw_sheets(cfg: Config, experiments: list[str]) -> None:
    """Contact sheets of pairs, and maps of the three regimes, of ConVIRT and of GLoRIA."""
    for prefix in ("", "gloria-"):
        runs = {of: run_folders(cfg, prefix + name, cfg.reproduce.seeds[0])[0] for of, name in REGIMES.items()}
        if not {prefix + name for name in REGIMES.values()} <= set(experiments):
            continue
        trained = {label: parse(["--config", str(run / "config.yaml")]) for label, run in runs.items()}
        # Tested as this tier says now: weights may be older than its test hospitals.
        configs = {label: dataclasses.replace(of, eval=cfg.eval) for label, of in trained.items()}
        if not prefix:
            figures.draw_pairs(folder(cfg) / "pairs.png", pair_groups(configs["synthetic pairs"]))
        checkpoints = {label: run / "checkpoint" for label, run in runs.items()}
        draw_maps(folder(cfg) / f"maps-{prefix}", configs, checkpoints)


def pair_groups(cfg: Config, columns: int = 8) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Title -> (image, text) of real pairs, dropped real ones, synthetic pairs, those nearest to a real one, and
    rejected images; drawn by seed."""
    rng = np.random.default_rng(0)
    pairs, audit, made = real(cfg), audited(cfg), synthetic(cfg)
    records, _ = reports(cfg)
    drawn, checks, _ = images(cfg, [r["impression"] for r in records if r["status"] == "accepted"])

    def some(rows, of, text) -> list[tuple[np.ndarray, str]]:
        chosen = np.sort(rng.permutation(rows)[:columns])
        return [(np.asarray(of[i]), text(i)) for i in chosen]

    near = json.loads((stage_folder_of(made) / "stats.json").read_text())["nearest_rows"]
    rejected = [i for i, check in enumerate(checks) if check["status"] != "accepted"]
    groups = {
        "real": some(len(pairs), pairs.images, lambda i: pairs.table.impression[i]),
        "real, dropped by the audit": some(
            np.flatnonzero(audit.dropped), pairs.images, lambda i: no_to(audit.answers[i])
        ),
        "synthetic": some(len(made), made.images, lambda i: made.table.impression[i]),
        "synthetic, nearest to a real image": [(made.images[i], made.table.impression[i]) for i, _ in near],
        "that real image": [(pairs.images[i], pairs.table.impression[i]) for _, i in near],
        "synthetic, rejected": some(np.array(rejected, int), drawn, lambda i: checks[i]["prompt"]),
    }
    return {title: cells for title, cells in groups.items() if cells}


def no_to(answers: np.ndarray) -> str:
    return "NO: " + (", ".join(q for q, a in zip(QUESTIONS, answers, strict=True) if a == NO) or "none; near a bad one")


def draw_maps(stem: Path, configs: dict[str, Config], checkpoints: dict[str, Path]) -> None:
    """<stem><task>.png: the first test image with a mask of each task, and the map of each regime."""
    evaluations = {}
    for label, cfg in configs.items():
        masked = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, inputs=["grounding:image"]))
        evaluations[label], _ = setup(masked, checkpoints[label])
    first, spec = next(iter(evaluations.values())), Input("grounding:image", kind="grounding")
    for release in first.masked.values():
        for task in release.tasks.values():
            tested = task.part_rows("test")
            numbers = release.row_of(task)[tested]
            shown = np.flatnonzero(masks_of(release, numbers).any((1, 2)))[:1]
            for record, number in zip(tested[shown], numbers[shown], strict=True):
                maps = {
                    label: upsampled(e.maps(release, task, spec)(np.array([number])), len(release.images[0]))[0]
                    for label, e in evaluations.items()
                }
                title = f"{task.name}: {prompts_of(task.classes[0]).positive['name']}"
                image, mask = np.asarray(release.images[number]), masks_of(release, np.array([number]))[0]
                at = f"{release.dataset}/{task.record_ids[record]}"
                figures.draw_maps(stem.with_name(f"{stem.name}{task.name}.png"), title, image, mask, maps, at)
