"""What REPRODUCTION.md shows beside the claims: controls, tables, figures. All from scored predictions."""

from pathlib import Path

from argus.clinical import BACKENDS
from argus.config import Config
from argus.figures import draw_levels
from argus.manifest import SECTIONS
from argus.scoring import LEFT_OUT, MEAN, SIZES, WITH_METEOR
from shared.metrics import figures
from shared.metrics.scorecard import load_claims
from shared.runs.evidence import Control, Scored, claim_pairs, comparable, folder, gain
from shared.runs.tables import loss_logs, metric_table, run_table

BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
NGRAMS = (*BLEU, "bleu_4_r2gen", "meteor", "rouge_l_f1", "cider_d", "bertscore_f1")
FINDINGS = ("finding_f1", "finding_precision", "finding_recall", "finding_macro_f1", "place_finding_f1",
            "rest_finding_f1", "all_finding_f1", "label_f1", "hallucinated_priors", "unfinished")  # fmt: skip
HEADLINE, MACRO = "finding_macro_f1", "F1, mean over findings"  # what claims.yaml decides by
SHORT = ("finding_f1", "finding_macro_f1", "place_finding_f1", "bleu_4", "cider_d")
CLINICAL = {
    "green": ("green", "green_parsed_only", "green_truncated"),
    "ratescore": ("ratescore", "ratescore_undecided"),
    "radgraph": ("radgraph_simple", "radgraph_partial", "radgraph_complete"),
}
CONTROLS = {  # id -> what it is
    "zero": "every voxel 0, which is water: far from any chest, and farther where voxels are standardised",
    "mean": "the mean of training volumes: a chest, but nobody's",
    "shuffle": "another patient's volume",
    "majority": "the most frequent training report of the source",
    "typical": "the training report of the source that agrees best with all others",
    "constant": "a normal report of the source's section, which asserts no finding",
    "every": "one report that names every validated finding, which the mean over findings rewards most",
    "nearest": "report of the source's training volume with the nearest encoder vector",
}
ARMS = {  # experiment -> name of its compression
    "argus": "pixel shuffle", "avgpool": "average pooling (M3D's)", "attn-pool": "attention pooling",
    "avgpool-matched": "average pooling, as many parameters as pixel shuffle", "perceiver": "perceiver",
    "concat-1d": "concatenation along the sequence", "avgpool-seq": "average along the sequence",
    "radfm-perceiver": "RadFM's perceiver", "hilt": "hilt: low resolution queries high",
    "none": "none (one linear layer)",
}  # fmt: skip
ENCODERS = {"from-random": "random", "from-mae": "MAE", "from-clip": "CLIP", "from-supervised": "supervised"}
SCHEDULE = {
    "argus": "two stages, ViT tuned in the second",
    "frozen-vit": "two stages, ViT frozen",
    "one-stage": "one stage of as many updates, all with ViT and LLM",
    "vit-both-stages": "two stages, ViT tuned in both",
    "full-llm": "two stages, all of the LLM tuned",
}
SHARES = {"data-10": 10, "data-25": 25, "data-50": 50, "argus": 100}  # % of the training patients
RUNGS = {"argus": "normal", "avgpool": "normal, average pooling", "hr": "high, as many visual tokens",
         "hr-cheap": "high, larger patches", "hr-avgpool": "high, average pooling"}  # fmt: skip
INPUTS = {"argus": "resized to the input", "geometry-b": "fixed spacing, cropped or padded",
          "single-slice": "the middle slice only"}  # fmt: skip
SIZED = tuple(f"finding_f1_{size}" for size in SIZES)


def volume(rows: dict[str, str]) -> dict[str, str]:
    """experiment -> label, as label -> key of `score_all`."""
    return {label: f"{name}@volume" for name, label in rows.items()}


def controls(scored: dict[str, Scored]) -> list[Control]:
    """Finding-level F1 of what should fail: as the mean over the validated findings (the headline), over the mentions
    of these, over the mentions of all, at the right place."""
    found = []
    for metric in (HEADLINE, "finding_f1", "all_finding_f1", "place_finding_f1"):
        found += [(f"argus-{k}", metric, f"argus@{k}", "argus@volume", note) for k, note in CONTROLS.items()]
        language = "the same LLM and LoRA, trained without volumes"
        found.append(("llm-without-image", metric, "no-image@volume", "argus@volume", language))
    # Its ViT was pre-trained on the tier's own patients: so was that of `from-supervised`, not always the recipe's.
    own = "from-supervised@volume" if "from-supervised@volume" in scored else "argus@volume"
    note = f"the middle slice only, against {own.removesuffix('@volume')}"
    found.append(("single-slice", HEADLINE, "single-slice@volume", own, note))
    seen = "the ViT's own labels as sentences, without a language model: what it saw, so a ceiling, no control"
    return [*found, ("vit-labels", HEADLINE, "vit-labels@volume", "argus@volume", seen)]


def quality_table(scored: dict[str, Scored], rows: dict[str, str]) -> dict:
    """Findings, and how many different reports a run writes: few where it answers with habit."""
    note = (
        "Distinct reports: of one seed, on average. rest_finding_f1 leaves out "
        f"{', '.join(name.replace('_', ' ') for name in LEFT_OUT)} (named after the first laptop runs were seen); "
        "all_finding_f1 also counts findings whose reading is not validated; hallucinated_priors is the share of "
        "reports that cite an earlier examination or a date (no simulated report does); unfinished, of those that do "
        "not end with a sentence, as where generation was cut."
    )
    table = metric_table(scored, "quality", "Findings", rows, FINDINGS, note)
    table["columns"].append("distinct reports")
    for row in table["rows"]:
        n_distinct = [seed.prediction.nunique() for seed in scored[rows[row[0]]].tables]
        row.append(round(sum(n_distinct) / len(n_distinct), 1))
    return table


def clinical_table(scored: dict[str, Scored], rows: dict[str, str]) -> dict:
    """Metrics of published models; `not computed` where a model was not given."""
    metrics = [m for name in BACKENDS for m in CLINICAL[name]]
    present = {label: key for label, key in rows.items() if key in scored}
    some = {label: key for label, key in present.items() if set(metrics) & set(scored[key].scores)}
    note = (
        "Needs the published weights (`eval.green`, `eval.ratescore`, `eval.radgraph`); what is not computed is not 0. "
        "GREEN was trained on chest X-ray reports."
    )
    rows, title = some or dict(list(present.items())[:1]), "Clinical metrics of published models"
    return metric_table(scored, "clinical", title, rows, metrics, note)


def source_table(scored: dict[str, Scored], rows: dict[str, str]) -> dict:
    """Finding F1, over all mentions and as the mean over findings, and BLEU-4: per source, pooled, as their mean."""
    present = [scored[key] for key in rows.values() if key in scored]
    parts = [p for p in (*SECTIONS, MEAN) if any(f"finding_f1:{p}" in e.scores for e in present)]
    metrics = [m for name in ("finding_f1", HEADLINE, "bleu_4") for m in (name, *(f"{name}:{p}" for p in parts))]
    note = "Sources differ in length and style of their target, so a pooled n-gram score says little."
    return metric_table(
        scored, "sources", "Per source, pooled, and mean over sources", rows, metrics, note, absent=None
    )


def mention_table(scored: dict[str, Scored]) -> dict:
    """What the claims compare, by the metric that decided until simulator seed 2."""
    rows = []
    for claim in load_claims(Path(__file__).parent / "claims.yaml"):
        for pair in claim_pairs(claim) if claim["metric"] == HEADLINE and claim["tiers"] else ():
            ours, theirs = (f"{name}@volume" for name in pair)
            if comparable(scored, ours, theirs):
                differences = (list(gain(scored, metric, ours, theirs)) for metric in (HEADLINE, "finding_f1"))
                rows.append([f"{claim['id']}: {' > '.join(pair)}", *differences])
    columns = ["claim", f"{HEADLINE}, which decides", "finding_f1"]
    title = "Differences of the claims, as the mean over findings and over all mentions"
    return {"id": "mentions", "title": title, "columns": columns, "rows": rows}


def by_finding(entry: Scored, shuffled: Scored | None) -> dict:
    """F1 of each validated finding, of the model and of another patient's volume."""
    names = [n for n in entry.scores if n.startswith("finding_f1/")]
    body = [
        [n.removeprefix("finding_f1/"), *(list(e.level(n)) if e else None for e in (entry, shuffled))] for n in names
    ]
    columns = ["finding", "Argus", "another patient's volume"]
    return {"id": "findings", "title": "F1 of each finding", "columns": columns, "rows": body}


def token_table(scored: dict[str, Scored], facts: dict) -> dict:
    """Arms of compression: visual tokens, trained parameters, quality."""
    rows = []
    for name, label in ARMS.items():
        run = next((r for key, r in sorted(facts["runs"].items()) if key.startswith(f"{name}/seed")), None)
        if run and f"{name}@volume" in scored:
            levels = (list(scored[f"{name}@volume"].level(m)) for m in SHORT)
            n_seeds = len(scored[f"{name}@volume"].seeds)
            rows.append([label, n_seeds, run.get("visual_tokens"), run.get("trainable"), *levels])
    columns = ["compression", "seeds", "visual tokens", "trained parameters", *SHORT]
    note = "Trained parameters are those of the second stage: ViT, compressor with its head, LoRA."
    title = "Compression of visual tokens"
    return {"id": "compression", "title": title, "columns": columns, "rows": rows, "note": note}


def encoder_table(cfg: Config, scored: dict[str, Scored]) -> dict:
    """Levels by what the ViT was pre-trained with, the recipe's own last, and paired differences to random weights."""
    own = "supervised on further patients" if cfg.reproduce.encoders else "supervised"
    rows = {label: f"{name}@volume" for name, label in ENCODERS.items()} | {f"{own} (the recipe)": "argus@volume"}
    table = metric_table(scored, "encoders", "What the ViT was pre-trained with", rows, SHORT)
    table["columns"].append(f"{HEADLINE}, less that of random weights")
    for row in table["rows"]:
        pair = rows[row[0]], "from-random@volume"
        row.append(list(gain(scored, HEADLINE, *pair)) if len({*pair}) == 2 and comparable(scored, *pair) else None)
    return table


def tables(cfg: Config, scored: dict[str, Scored], facts: dict) -> list[dict]:
    main = {"Argus": "argus@volume", "average pooling": "avgpool@volume", "attention pooling": "attn-pool@volume"}
    main |= {"LLM without image": "no-image@volume", "labels of the ViT, no LLM": "vit-labels@volume"} | {
        f"Argus, {k}": f"argus@{k}" for k in CONTROLS
    }
    found = [
        quality_table(scored, main),
        metric_table(scored, "ngrams", "N-grams", main, NGRAMS,
                    "The scores of `constant` show what overlap is worth without any finding. BLEU on lower-case text, "
                    "`_r2gen` without punctuation and list numbers; BERTScore needs `eval.bertscore`; METEOR, the "
                    f"slowest, is computed of {', '.join(WITH_METEOR)} only."),
        source_table(scored, main),
        mention_table(scored),
    ]  # fmt: skip
    if "argus@volume" in scored:
        found += [clinical_table(scored, main), by_finding(scored["argus@volume"], scored.get("argus@shuffle"))]
    scale = {f"{share} %": f"{name}@volume" for name, share in SHARES.items()}
    transfer = {
        "never trained on the source": "held-out-scored@volume",
        "trained on all three": "one-stage-scored@volume",
        "never trained on it, another patient's volume": "held-out-scored@shuffle",
    }
    if sum(f"{name}@volume" in scored for name in ENCODERS):
        found.append(encoder_table(cfg, scored))
    fixed = "The ViT and the language model that the tier starts from are the same." if cfg.reproduce.encoders else ""
    sizes = "Small, medium, large: thirds of the sizes that a finding has in the test set."
    for rows, args in (
        (volume(SCHEDULE), ("schedule", "Stages", SHORT)),
        (scale, ("data", "Share of the training patients, as many updates", SHORT, fixed)),
        (volume(RUNGS), ("resolution", "Resolution", (*SHORT[:3], *SIZED, "bleu_4"), sizes)),
        (volume(INPUTS), ("inputs", "What the ViT sees", (*SHORT[:3], *SIZED, "bleu_4"), sizes)),
        (transfer, ("held-out", "A source that was never trained on (single stage, as many epochs)", SHORT)),
    ):
        if sum(key in scored for key in rows.values()) > 1:
            table_id, title, *more = args
            found.append(metric_table(scored, table_id, title, rows, *more))
    found += [token_table(scored, facts), run_table(facts, **{"truncated reports": "n_truncated"})]
    return [table for table in found if table["rows"]]


def draw(cfg: Config, scored: dict[str, Scored], facts: dict) -> dict[str, str]:
    """Figures that need no volumes; returns file -> caption, those of `pictures` included."""
    out = folder(cfg)
    for stage, prefix in (("1", "align-"), ("2", "")):
        if logs := loss_logs(cfg, facts, {name: prefix + name for name in ("argus", "avgpool", "attn-pool")}):
            figures.draw_losses(out / f"loss-{stage}.png", logs, f"Training loss per token, stage {stage}")
    levels = {label: scored[f"{n}@volume"].level(HEADLINE) for n, label in ARMS.items() if f"{n}@volume" in scored}
    if len(levels) > 1:
        draw_levels(out / "compression.png", list(levels), {"": levels}, MACRO, "Compression arms")
    share = {s: scored[f"{n}@volume"].level(HEADLINE) for n, s in SHARES.items() if f"{n}@volume" in scored}
    if len(share) > 1:
        lines = {MACRO: tuple(zip(*share.values(), strict=True))}
        figures.draw_curve(out / "data.png", list(share), lines, "% of the training patients", MACRO, "Data")
    rungs = {RUNGS[n]: scored[f"{n}@volume"] for n in RUNGS if f"{n}@volume" in scored}
    sized = {label: dict(zip(SIZES, map(e.level, SIZED), strict=True)) for label, e in rungs.items()
             if set(SIZED) <= set(e.scores)}  # fmt: skip
    if any(name.startswith("hr@") for name in scored) and sized:
        draw_levels(out / "sizes.png", list(SIZES), sized, "finding F1", "Size of the finding, by resolution")
    case = "A test volume, its reference and what was written; the cross marks where a finding was drawn."
    return {
        "compression.png": "The compression arms; `none` and RadFM's leave other token counts.",
        "sizes.png": "Finding F1 by the size of the finding (thirds of its kind), at normal and high resolution.",
        "data.png": "Over the share of the training patients.",
        "loss-1.png": "Training loss of stage 1, in which the compressor learns alone.",
        "loss-2.png": "Training loss of stage 2.",
        **{f.name: case for f in sorted(out.glob("case-*.png"))},
    }
