"""What REPRODUCTION.md shows beside the claims: controls, tables, figures; from scored predictions and the funnel."""

import json
from functools import partial

import numpy as np

from shared.metrics.figures import draw_losses
from shared.metrics.interval import Statistic, difference
from shared.metrics.six_tasks import average
from shared.runs.evidence import Control, Scored, folder, paired, same_records
from shared.runs.tables import SEEDS, gains, level_table, levels, loss_logs, run_table
from shared.runs.tasks import AUROC_NOTE, protocol_table
from synth_medvlp import figures
from synth_medvlp.classes import MIN10, correlations, per_class
from synth_medvlp.config import Config
from synth_medvlp.downstream import HEADLINE as HEADLINE_KIND
from synth_medvlp.scoring import RANDOM_PIXEL, WHOLE_IMAGE

REGIMES = {"real pairs": "real", "synthetic pairs": "synthetic", "real and synthetic": "mix"}
TRAINED = {"": "ConVIRT", "gloria-": "GLoRIA", "mgca-": "ConVIRT as in MGCA", "longer-": "ConVIRT, longer"}
METHODS = {f"{method}, {label}": prefix + name for prefix, method in TRAINED.items() for label, name in REGIMES.items()}
METHODS |= {"ConVIRT, untrained": "random-init"}
METHODS |= {f"ConVIRT, {label}; splits and labels as published": f"published-{name}" for label, name in REGIMES.items()}
STAGES = {
    "synthetic pairs": "synthetic",
    "synthetic pairs, equal epochs": "synthetic-epochs",
    "synthetic pairs, drawn anew": "redrawn",
    "entities drawn by their frequency": "random-sampling",
    "no cap on a string's uses": "no-cap",
    "no request that contradicts itself": "compatible",
    "texts from templates": "template-text",
    "no text check": "no-text-check",
    "no image check": "no-image-check",
    "images by the simulator itself": "oracle",
    "real texts, synthetic images": "real-text",
    "real IMPRESSIONs, synthetic images": "real-text-impression",
    "real IMPRESSIONs, real images": "real-of-text",
    "real images, synthetic texts": "real-image",
    "these real images, real texts": "real-of-image",
    "another pair's report": "shuffled-pairs",
    "real pairs": "real",
    "real pairs, half the learning rate": "slower-real",
    "real pairs, twice the learning rate": "faster-real",
    "real pairs, cleaned by the audit": "clean",
    "real pairs, cleaned, equal epochs": "clean-epochs",
    "real pairs, as many as synthetic ones": "size-matched",
    "real pairs, frozen random text encoder": "random-text",
    "real and synthetic, equal steps": "mix",
    "real and synthetic, equal epochs": "mix-epochs",
    "real and synthetic, batches of one source each": "mix-by-source",
}
WORLDS = {
    "none": "no defects, no tail; generator taught on middle defects",
    "": "middle defects",
    "strong": "strong defects; generator taught on middle defects",
    "disjoint": "middle defects, generator of other patients",
}
MASKS = {
    "dice": "Dice",
    "iou": "IoU",
    "pointing": "pointing game",
    "pixel_auprc": "pixel AUPRC",
    "dice_oracle": "Dice, threshold from test (as published)",
    "dice_published": "Dice over all images (as published)",
    "dice_all_empty": "the same of an all-empty mask",
}
HEADLINE = "auroc_headline"
MEANS = {HEADLINE: "headline mean", MIN10: "headline, classes with 10 positives"}
MEANS_NOTE = AUROC_NOTE.replace("mean over tasks", "headline: mean over its five sets")
DIFFERENCES = {
    "synthetic − real": ("synthetic", "real"),
    "mix − real": ("mix", "real"),
    "mix − synthetic": ("mix", "synthetic"),
}


def controls(scored: dict[str, Scored]) -> list[Control]:
    """Inputs and weights from which nothing should be read, and what else could explain a difference of regimes."""
    inputs = {
        "zeroed": "black images; 0.5 by construction",
        "shuffled": "another record's image",
        "prompts": "each class asked by another class's prompt",
        "prior": "each class's share of the training labels, for every record; 0.5 by construction",
    }
    weights = {
        "random-init": ("synthetic", "untrained"),
        "shuffled-pairs": ("synthetic", "trained on other pairs' reports"),
        "size-matched": ("synthetic", "real pairs, as many as synthetic ones"),
        "mix-epochs": ("mix", "as many epochs as the real pairs, so more updates"),
        "mix-by-source": ("mix", "batches of one source each"),
    }
    maps = {"shuffled": "the map of another image", "prior": "the mean training mask"}
    regimes, found = REGIMES.values(), []
    for n in regimes:
        found += [(f"{n}-{what}", HEADLINE, f"{n}@image~{what}", f"{n}@image", note) for what, note in inputs.items()]
    found += [(n, HEADLINE, f"{n}@image", f"{ours}@image", note) for n, (ours, note) in weights.items()]
    for n, ours in {f"ground-{n}": f"ground-{n}@grounding:image" for n in regimes}.items():
        found += [(f"{n}-{what}", "dice", f"{ours}~{what}", ours, note) for what, note in maps.items()]
    return found


def zero_shot_table(scored: dict[str, Scored]) -> dict:
    """Methods x data sets."""
    rows, columns = {}, dict(MEANS)
    for label, name in METHODS.items():
        entry = scored.get(f"{name}@image")
        if entry:
            tasks = [m for m in entry.scores if m.startswith("auroc:")]
            rows[label] = levels(scored, {m: (f"{name}@image", m) for m in (*MEANS, *tasks)})
            columns |= {m: m.removeprefix("auroc:") for m in tasks}
    return level_table("zero-shot", "Zero-shot classification", columns, rows, MEANS_NOTE)


def difference_table(scored: dict[str, Scored], facts: dict) -> dict:
    """Differences of the regimes, absolute and relative, as means and per headline set (reference: How to report)."""
    rows = []
    for label, (ours, theirs) in DIFFERENCES.items():
        a, b = (scored.get(f"{name}@image") for name in (ours, theirs))
        if a is None or b is None or not same_records(a, b):
            continue
        sets = {f"auroc:{task}": task for task in headline_sets(a, facts)}
        for metric, name in (MEANS | sets).items():
            if metric in a.scores and metric in b.scores:
                mine, other = paired(a, b, metric)
                absolute = difference(mine, other, a.patients)
                relative = difference(relative_gains(mine, other), None, a.patients)
                rows.append([label, name, *([d.mean, *d.interval()] for d in (absolute, relative))])
    return {
        "id": "differences",
        "title": "Differences of the regimes, ConVIRT, zero-shot: absolute and relative",
        "columns": ["difference", "data set", "AUROC, absolute", "relative, %"],
        "rows": rows,
        "note": "Relative: to the comparator's mean over seeds; [95 % interval over patients and seeds]. The paper "
        "does not say which of the two its +3.8 % and +9.07 % are.",
    }


def headline_sets(entry: Scored, facts: dict) -> list[str]:
    """Tasks of the headline that `entry` was scored on."""
    kinds = {task: of[0] for run in facts["runs"].values() for task, of in run["kinds"].items()}
    return [task for task, kind in kinds.items() if kind == HEADLINE_KIND and f"auroc:{task}" in entry.scores]


def relative_gains(ours: list[Statistic], theirs: list[Statistic]) -> list[Statistic]:
    """Per seed 100 (ours - theirs) / mean over seeds of theirs, in per cent, as metrics of the same items."""
    base = average(theirs)
    pairs = zip(ours, theirs, strict=True)
    return [Statistic("relative_gain", a.version, a.n_items, partial(_gain, a=a, b=b, base=base)) for a, b in pairs]


def _gain(item_weights: np.ndarray, a: Statistic, b: Statistic, base: Statistic) -> np.ndarray:
    return 100 * (a.fn(item_weights) - b.fn(item_weights)) / base.fn(item_weights)


def protocols(scored: dict[str, Scored]) -> dict[str, tuple[str, str]]:
    """Protocol in words -> metric, and key of `score_all` with {} for the regime."""
    zero_shot = {method: prefix for prefix, method in TRAINED.items()}
    zero_shot |= {"ConVIRT, splits and labels as published": "published-"}
    zero_shot |= {f"ConVIRT, {label}": f"{prefix}-" for prefix, label in WORLDS.items() if prefix}
    found = {f"zero-shot, {label}": (HEADLINE, f"{prefix}{{}}@image") for label, prefix in zero_shot.items()}
    for kind, words in (("linear", "linear layer"), ("finetune", "fine-tuned")):
        ratios = {k.rsplit(" ", 1)[1] for k in scored if f"@{kind}:image " in k and "#" not in k}
        for r in sorted(ratios, key=float):
            found[f"{words}, {100 * float(r):g} % of the labels"] = HEADLINE, f"{kind}-{{}}@{kind}:image {r}"
    grounding = {"ConVIRT": "ground-", "GLoRIA": "gloria-ground-gloria-"}
    found |= {f"grounding, {label}, Dice": ("dice", f"{p}{{}}@grounding:image") for label, p in grounding.items()}
    return found | {"segmentation, Dice": ("dice", "segment-{}@segment:image 1")}


def regime_table(scored: dict[str, Scored]) -> dict:
    """Paired differences of the regimes under every protocol."""
    rows = {}
    for label, (metric, key) in protocols(scored).items():
        pairs = {d: [key.format(side) for side in sides] for d, sides in DIFFERENCES.items()}
        rows[label] = gains(scored, pairs, metric)
    note = "AUROC but where Dice is said; [95 % interval over patients and seeds], before any correction."
    return level_table("regimes", "Differences of the regimes", {d: d for d in DIFFERENCES}, rows, note)


def stage_table(scored: dict[str, Scored]) -> dict:
    rows, of = {}, {"synthetic@image": "minus synthetic pairs", "real@image": "minus real pairs"}
    halves = {"real-text-impression@image": "real-of-text@image", "real-image@image": "real-of-image@image"}
    for label, name in STAGES.items():
        key = f"{name}@image"
        sides = {o: (key, o) for o in of if o != key} | {"half": (key, halves.get(key, ""))}
        rows[label] = gains(scored, sides, HEADLINE) | levels(scored, {HEADLINE: (key, HEADLINE)})
    columns = {HEADLINE: MEANS[HEADLINE]} | of | {"half": "minus the real pairs of the same records"}
    return level_table("stages", "What each stage buys: zero-shot, ConVIRT", columns, rows, MEANS_NOTE)


def world_table(scored: dict[str, Scored]) -> dict:
    """The regimes in worlds with other defects, and with a generator that saw other patients."""
    rows = {}
    for prefix, label in WORLDS.items():
        keys = {r: f"{prefix}-{r}@image" if prefix else f"{r}@image" for r in REGIMES.values()}
        rows[label] = levels(scored, {r: (key, HEADLINE) for r, key in keys.items()})
    columns = {v: k for k, v in REGIMES.items()}
    return level_table("worlds", "Real, synthetic and mixed pairs by world", columns, rows, AUROC_NOTE)


def prompt_table(scored: dict[str, Scored]) -> dict:
    """Regimes x prompts; the headline mean, and RSNA alone, which asks for one class."""
    columns = {
        "image": "there is ..",
        "image+name": "name",
        "image+description": "description",
        "image+findings": "findings",
        "image+pair": ".. against no ..",
    }
    rows = {}
    for metric, of in {HEADLINE: "", "auroc:rsna": ", RSNA alone"}.items():
        for label, name in REGIMES.items():
            keys = {c: f"{name if c == 'image' else 'prompts-' + name}@{c}" for c in columns}
            rows[label + of] = levels(scored, {c: (k, metric) for c, k in keys.items()})
    asked = any(key.startswith("prompts-") for key in scored)
    return level_table("prompts", "Zero-shot by prompt, ConVIRT", columns, rows if asked else {}, AUROC_NOTE)


def tuned_table(scored: dict[str, Scored], facts: dict, kind: str, title: str) -> dict:
    """Regimes x shares of the labels; the mean over the headline sets that were fitted, which the note lists."""
    rows, sets = {}, []
    ratios = {k.rsplit(" ", 1)[1] for k in scored if f"@{kind}:image " in k and "#" not in k}
    for label, name in METHODS.items():
        keys = {r: f"{kind}-{name}@{kind}:image {r}" for r in sorted(ratios, key=float)}
        rows[label] = levels(scored, {r: (k, HEADLINE) for r, k in keys.items()})
        sets = next((headline_sets(scored[k], facts) for k in keys.values() if k in scored), sets)
    columns = {r: f"{100 * float(r):g} % of the labels" for r in sorted(ratios, key=float)}
    note = AUROC_NOTE.replace("mean over tasks", f"mean over {len(sets)} headline sets ({', '.join(sets)})")
    return level_table(kind, title, columns, rows, note)


def mask_table(scored: dict[str, Scored], prefix: str, title: str, of: dict[str, str]) -> dict:
    rows = {}
    for label, key in of.items():
        rows[label] = levels(scored, {m: (key, m) for m in MASKS})
    note = "Mean over RSNA, SIIM and COVID Rural; over images with a mask unless said; [95 % interval]."
    if rows.get(WHOLE_IMAGE):  # the same constant map, thresholded and pointed at
        rows[RANDOM_PIXEL] = {m: rows[WHOLE_IMAGE].pop(m) for m in ("pointing", "pixel_auprc")}
        rows[RANDOM_PIXEL][SEEDS] = rows[WHOLE_IMAGE][SEEDS]
        note += " A random pixel: the hits and the AUPRC to be expected of it, the share of the image in the mask."
    return level_table(prefix, title, MASKS, rows, note)


def class_table(cfg: Config, scored: dict[str, Scored], facts: dict) -> dict:
    """Every headline class: how often real and synthetic reports state it, how well synthetic images show it and could
    show it, and its AUROC after each regime."""
    columns = {"task": "data set", "class": "class", "positives": "test positives"}
    columns |= {"share": "finding stated, share of real reports", "said": "words of the prompt stated, real"}
    columns |= {"said_synthetic": "the same of prompts of synthetic images", "shown": "seen in synthetic images, AUROC"}
    columns |= {"possible": "seen in the simulator's images of the same texts"}
    columns |= {name: f"AUROC, {label}" for label, name in REGIMES.items()}
    table = {"id": "classes", "title": "Classes of the headline sets, ConVIRT, zero-shot", "rows": []}
    if not all(f"{name}@image" in scored for name in REGIMES.values()):
        return table
    found = per_class(cfg, facts, [*REGIMES.values()])
    cells = found[[*columns]].astype(object)
    related = [f"{rho:.2f} ({columns[of]}; p {p:.2g}, {n} findings)" for of, (rho, p, n) in correlations(found).items()]
    note = f"Spearman's correlation, over findings, of the difference synthetic − real with these: {', '.join(related)}"
    note += ". Seen: by the first seed of `real`, against whether the text that an image was drawn from affirms the "
    note += "words of the prompt; where it does not see the simulator's images either, the last but one says nothing."
    rows = cells.where(cells.notna(), None).to_numpy().tolist()
    return table | {"columns": [*columns.values()], "rows": rows, "note": note}


def funnel_table(cfg: Config) -> dict:
    """Requests -> reports -> images -> pairs, with pass rates, as `keep_funnel` left them."""
    file = folder(cfg) / "funnel.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    return {
        "id": "funnel",
        "title": "The generation funnel, stage by stage",
        "columns": ["stage", "what", "number"],
        "rows": rows,
    }


def audit_table(cfg: Config) -> dict:
    """What the audit finds of the defects that the simulator made, as `keep_funnel` left it."""
    file = folder(cfg) / "audit.json"
    return {
        "id": "audit",
        "title": "The audit against the simulator's truth (recall: of the images; precision: of all that were dropped, "
        "or answered NO)",
        "columns": ["what", "images", "found", "recall", "precision"],
        "rows": json.loads(file.read_text()) if file.exists() else [],
    }


def tables(cfg: Config, scored: dict[str, Scored], facts: dict) -> list[dict]:
    ground = {label: f"ground-{n}@grounding:image" for label, n in REGIMES.items()}
    ground |= {f"GLoRIA, {label}": f"gloria-ground-gloria-{n}@grounding:image" for label, n in REGIMES.items()}
    ground |= {
        f"GLoRIA, {label}, cosines": f"gloria-ground-gloria-{n}@grounding:image+cosine" for label, n in REGIMES.items()
    }
    ground |= {
        "untrained": "ground-random-init@grounding:image",
        "mean training mask": "ground-real@grounding:image~prior",
        WHOLE_IMAGE: f"{WHOLE_IMAGE}@grounding:image",
    }
    segment = {label: f"segment-{n}@segment:image 1" for label, n in (REGIMES | {"untrained": "random-init"}).items()}
    found = [
        zero_shot_table(scored),
        difference_table(scored, facts),
        regime_table(scored),
        stage_table(scored),
        world_table(scored),
        prompt_table(scored),
    ]
    found += [mask_table(scored, "grounding", "Zero-shot grounding", ground)]
    found += [tuned_table(scored, facts, "linear", "A linear layer on the frozen encoder, AUROC")]
    found += [tuned_table(scored, facts, "finetune", "Fine-tuned classification, AUROC")]
    found += [mask_table(scored, "segment", "Segmentation", segment), class_table(cfg, scored, facts)]
    found += [funnel_table(cfg), audit_table(cfg)]
    found.append(protocol_table(cfg, facts, REGIMES))
    found.append(run_table(facts, pairs="n_train"))
    return [table for table in found if table["rows"]]


# --- figures ---


def _loss_file(prefix: str) -> str:
    return "-".join(["loss", *prefix.split("-")[:-1]]) + ".png"


def draw(cfg: Config, scored: dict[str, Scored], facts: dict) -> dict[str, str]:
    """Figures from scores alone; returns file -> caption, those of `pictures` included."""
    out = folder(cfg)
    for prefix, method in TRAINED.items():  # their losses have other scales
        if logs := loss_logs(cfg, facts, {label: prefix + name for label, name in REGIMES.items()}):
            draw_losses(out / _loss_file(prefix), logs, f"Training loss, {method}")
    if all(f"{name}@image" in scored for name in REGIMES.values()):
        figures.draw_classes(out / "classes.png", per_class(cfg, facts, [*REGIMES.values()]), REGIMES)
    if (out / "tail.json").exists():
        figures.draw_tail(out / "tail.png", json.loads((out / "tail.json").read_text()))
    return {
        "classes.png": "AUROC of every headline class against how often real training reports state its finding.",
        "tail.png": "How often reports name each entity, by rank within its type.",
        "pairs.png": "Real pairs, images that the audit dropped, synthetic pairs, images that the check rejected.",
        **{
            f.name: f"Zero-shot maps of the three regimes on a test image with a box or mask (outlined){of}. "
            "Each map is shown from its median (dark) to its 99.5th percentile (bright)."
            for f in sorted(out.glob("maps-*.png"))
            for of in [", GLoRIA" if "gloria" in f.name else ", ConVIRT"]
        },
        **{_loss_file(prefix): f"Training loss, {method}." for prefix, method in TRAINED.items()},
    }
