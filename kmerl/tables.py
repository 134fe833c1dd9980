"""What REPRODUCTION.md shows beside the claims: controls, tables, figures. All from scored predictions."""

from kmerl.config import Config, parse
from kmerl.evaluate import setup
from kmerl.figures import draw_lead_counts, draw_lead_sets
from kmerl.inputs import ALL_LEADS, PARTIAL
from kmerl.leads import CLINICAL_SETS
from kmerl.predict import attend
from shared.ecg.plot import draw_attention
from shared.metrics.figures import draw_losses
from shared.runs.evidence import Control, Scored, describe, folder, run_folders
from shared.runs.tables import level_table, levels, loss_logs, run_table
from shared.runs.tasks import AUROC_NOTE, protocol_table, richest_record

METHODS = {  # label -> key of `score_all` without the lead set; {} stands for it
    "K-MERL": "kmerl@{}",
    "MERL, zero fill": "merl@{}/zero",
    "MERL, record mean": "merl@{}/record_mean",
    "MERL, training mean": "merl@{}/lead_mean",
    "MERL, limb leads completed": "merl@{}/einthoven+zero",
    "MERL trained with masked leads": "merl-masked@{}/zero",
    "the same, limb leads completed": "merl-masked@{}/einthoven+zero",
    "MERL masked by K-MERL's rule": "merl-masked-kmerl@{}/zero",
    "MERL masked, with entities": "merl-entities@{}/zero",
    "MERL-ViT, zero fill": "merl-vit@{}/zero",
    "K-MERL, random weights": "random-init@{}",
}
SHOWN = ("K-MERL", "MERL, zero fill", "MERL, training mean", "MERL trained with masked leads")  # in figures
ABLATIONS = {
    "K-MERL": "kmerl",
    "joint tokens": "joint-tokens",
    "no lead embedding": "no-lead-embedding",
    "no masking": "no-masking",
    "0, 3, 6 or 9 leads masked": "mask-few-leads",
    "a quarter of batches with 12 leads": "some-full-leads",
    "no segment masking": "segments-0",
    "half of the segments masked": "segments-50",
    "without entity loss": "no-entities",
    "without contrastive loss": "no-contrast",
    "entity labels of other records": "permuted-entities",
    "random weights": "random-init",
}


PROTOCOLS = {"labels corrected": "kmerl", "labels as published": "as-published"}


def key_of(pattern: str, lead_set: str) -> str:
    """Key of an entry; twelve leads need no fill."""
    return pattern.split("/")[0].format(lead_set) if lead_set == ALL_LEADS else pattern.format(lead_set)


def controls(scored: dict[str, Scored]) -> list[Control]:
    """AUROC of what should fail."""
    notes = {
        "kmerl@12 leads~zeroed": "all samples 0",
        "kmerl@12 leads~shuffled": "another record's ECG",
        "kmerl@12 leads~permuted": "every lead in another lead's place at test time",
        "random-init@12 leads": "K-MERL before training",
        "permuted-entities@12 leads": "trained on the entity labels of other records",
        "merl@12 leads~shuffled": "MERL, another record's ECG (against MERL)",
    }
    found = [(key, f"{'merl' if key.startswith('merl@') else 'kmerl'}@12 leads", note) for key, note in notes.items()]
    found += [(f"{name}@12 leads~shuffled", f"{name}@12 leads", None) for name in ("real-kmerl", "real-random")]
    return [(key.replace("@12 leads", "").replace("~", "-"), "auroc", key, ours, note) for key, ours, note in found]


def lead_set_table(scored: dict[str, Scored]) -> dict:
    rows = {}
    for label, pattern in METHODS.items():
        keys = {s: key_of(pattern, s) for s in (*PARTIAL, "partial", ALL_LEADS)}
        rows[label] = levels(scored, {s: (k, "auroc") for s, k in keys.items()})
    columns = {s: s for s in PARTIAL} | {"partial": "mean of these", ALL_LEADS: ALL_LEADS}
    return level_table("lead-sets", "Zero-shot with the clinical lead sets", columns, rows, AUROC_NOTE)


def task_table(scored: dict[str, Scored]) -> dict:
    rows, columns = {}, {}
    labels = {
        label: key_of(pattern, ALL_LEADS) for label, pattern in METHODS.items() if "fill" in label or "/" not in pattern
    }
    labels |= {"MERL trained with masked leads": f"merl-masked@{ALL_LEADS}"}
    labels |= {
        "K-MERL, engineered prompts": "kmerl-prompts@12 leads",
        "MERL, engineered prompts": "merl-prompts@12 leads",
    }
    labels |= {"K-MERL, labels as published": "as-published@12 leads"}
    for label, key in labels.items():
        if key in scored:
            rows[label] = levels(scored, {m: (key, m) for m in scored[key].scores})
            columns |= {m: m.removeprefix("auroc:").replace("auroc", "mean") for m in scored[key].scores}
    note = (
        AUROC_NOTE + " min10: over classes with at least 10 positives; seen, unseen: classes whose plain name, as the "
    )
    note += "dictionary of kmerl/entities.yaml reads it, stands for training entities only, or does not."
    return level_table("tasks", "Zero-shot per task, 12 leads", columns, rows, note)


def count_table(scored: dict[str, Scored]) -> dict:
    rows = {
        label: levels(scored, {c: (k, "auroc") for c, k in keys.items()}) for label, keys in random_keys(scored).items()
    }
    columns = {c: str(c) for c in range(1, 12)} | {"mean": "mean of 1..11"}
    return level_table(
        "lead-counts", "Zero-shot with random sets of leads, by number of leads", columns, rows, AUROC_NOTE
    )


def random_keys(scored: dict[str, Scored]) -> dict[str, dict]:
    """Label -> number of leads (or "mean") -> key."""
    runs = {"K-MERL": ("random-sets-kmerl", ""), "MERL, zero fill": ("random-sets-merl", "/zero"),
            "MERL, training mean": ("random-sets-merl", "/lead_mean"),
            "MERL trained with masked leads": ("random-sets-masked", "/zero")}  # fmt: skip
    found = {}
    for label, (name, fill) in runs.items():
        keys = {c: f"{name}@{c} random{fill}" for c in range(1, 12)} | {"mean": f"{name}@random{fill}"}
        keys = {c: k for c, k in keys.items() if k in scored}
        if keys:
            found[label] = keys
    return found


def ablation_table(scored: dict[str, Scored]) -> dict:
    rows = {}
    for label, name in ABLATIONS.items():
        rows[label] = levels(scored, {s: (f"{name}@{s}", "auroc") for s in ("I", "partial", ALL_LEADS)})
    columns = {"I": "lead I", "partial": "partial leads", ALL_LEADS: ALL_LEADS}
    return level_table("ablations", "Ablations, zero-shot", columns, rows, AUROC_NOTE)


def supervised_table(scored: dict[str, Scored]) -> dict:
    """One task, because a supervised model knows no other."""
    metric, rows = "auroc:ptb-xl-superclass", {}
    names = {"K-MERL, zero-shot": "kmerl@{}", "MERL, zero-shot": "merl@{}/zero"}
    names |= {"supervised, lead tokens": "supervised@{}", "supervised, ResNet18": "supervised-resnet@{}/zero"}
    for label, pattern in names.items():
        rows[label] = levels(scored, {s: (key_of(pattern, s), metric) for s in ("I", "partial", ALL_LEADS)})
    if not any(key.startswith("supervised") for key in scored):
        rows = {}
    columns = {"I": "lead I", "partial": "partial leads", ALL_LEADS: ALL_LEADS}
    note = "AUROC of PTB-XL superclass; [95 % interval over patients and seeds]. Missing leads of ResNets are zero."
    return level_table("supervised", "Zero-shot against supervised from scratch", columns, rows, note)


def probe_table(scored: dict[str, Scored], cfg: Config) -> dict:
    rows = {}
    for label, name in {"K-MERL": "kmerl", "MERL-ResNet": "merl", "K-MERL, random weights": "random"}.items():
        for lead_set in (ALL_LEADS, "I"):
            keys = {r: f"probe-{name}@probe:{lead_set} {r:g}" for r in cfg.eval.probe.ratios}
            keys |= {r: f"probe-{name}@probe:{lead_set}/zero {r:g}" for r in keys if keys[r] not in scored}
            rows[f"{label}, {lead_set}"] = levels(scored, {f"{r:g}": (k, "auroc") for r, k in keys.items()})
    columns = {f"{r:g}": f"{100 * r:g} % of the labels" for r in cfg.eval.probe.ratios}
    return level_table("probes", f"Linear probing, {cfg.eval.probe.protocol}", columns, rows, AUROC_NOTE)


def real_table(scored: dict[str, Scored]) -> dict:
    """The real records: zero-shot, and probes out of fold."""
    names = {"K-MERL": ("kmerl", ""), "MERL, zero fill": ("merl", "/zero")}
    names |= {"MERL trained with masked leads": ("masked", "/zero"), "K-MERL, random weights": ("random", "")}
    rows, data = {}, {}
    for label, (name, fill) in names.items():
        for run, kind in ((f"real-{name}", ""), (f"real-probe-{name}", "oof:")):
            keys = {s: f"{run}@{kind}{s}{fill if s != ALL_LEADS else ''}" for s in CLINICAL_SETS}
            for key in scored.keys() & keys.values():
                data[kind] = describe(scored[key])
            row = f"{label}, {'probe (superclass)' if kind else 'zero-shot'}"
            rows[row] = levels(scored, {s: (key, "auroc") for s, key in keys.items()})
    note = (
        f"{AUROC_NOTE} Zero-shot ({data.get('', 'not run')}): mean over the four PTB-XL tasks, nothing tuned on real "
        f"records. Probe ({data.get('oof:', 'not run')}): superclass. Encoders pre-trained on simulated records."
    )
    return level_table("real", "Real ECGs of PTB-XL", {s: s for s in CLINICAL_SETS}, rows, note)


def tables(cfg: Config, scored: dict[str, Scored], facts: dict) -> list[dict]:
    found = [
        lead_set_table(scored),
        task_table(scored),
        count_table(scored),
        ablation_table(scored),
        supervised_table(scored),
    ]
    found += [probe_table(scored, cfg), real_table(scored), protocol_table(cfg, facts, PROTOCOLS)]
    found.append(run_table(facts, entities="n_entities", **{"distinct reports": "n_distinct_texts"}))
    return [table for table in found if table["rows"]]


def draw(cfg: Config, scored: dict[str, Scored], facts: dict) -> dict[str, str]:
    """Figures from scores alone; returns file -> caption, those of `pictures` included."""
    out = folder(cfg)
    if logs := loss_logs(cfg, facts, {"kmerl": "kmerl"}):
        draw_losses(out / "loss.png", logs, "Training loss of K-MERL")
    sets = {label: {s: scored[key_of(p, s)].level("auroc") for s in CLINICAL_SETS if key_of(p, s) in scored}
            for label, p in METHODS.items() if label in SHOWN}  # fmt: skip
    sets = {label: levels for label, levels in sets.items() if levels}
    if sets:
        draw_lead_sets(out / "lead-sets.png", sets, "zero-shot macro AUROC, mean over tasks")
    counts = {}
    for label, keys in random_keys(scored).items():
        counts[label] = {c: scored[k].level("auroc") for c, k in keys.items() if c != "mean"}
        whole = key_of(METHODS[label], ALL_LEADS)
        if whole in scored:
            counts[label][12] = scored[whole].level("auroc")
    if counts:
        draw_lead_counts(out / "lead-counts.png", counts, "zero-shot macro AUROC, mean over tasks")
    attention = "Where class names look: attention of the query network, test record."
    return {
        "lead-counts.png": "Zero-shot AUROC against the number of leads, random sets; the point at 12 is all leads.",
        "lead-sets.png": "Zero-shot AUROC with the clinical lead sets.",
        "loss.png": "Training loss.",
        **{f.name: attention for f in sorted(out.glob("attention-*.png"))},
    }


def draw_attention_cases(cfg: Config, experiments: list[str]) -> None:
    """Attention of true classes on a test record with several findings, with all leads and with two."""
    if "kmerl" not in experiments:
        return
    run = run_folders(cfg, "kmerl", cfg.reproduce.seeds[0])[0]
    run_cfg = parse(["--config", str(run / "config.yaml")])
    evaluation, _ = setup(run_cfg, run / "checkpoint")
    if evaluation.model.query_network is None:
        return
    dataset, record, signal_mv, slots = richest_record(run, evaluation)
    texts = evaluation.downstream[dataset].class_names()
    true = list(dict.fromkeys(texts[i] for i in slots))[:3]
    chosen = [i for i, t in enumerate(texts) if t in true]
    vectors, names = evaluation.queries[dataset][chosen], [texts[i] for i in chosen]
    for lead_set in (ALL_LEADS, "I+II"):
        leads, fs_hz = CLINICAL_SETS[lead_set], run_cfg.data.fs_hz
        queries, segment_s = attend(evaluation.model, signal_mv, vectors, names, leads, fs_hz)
        file = folder(cfg) / f"attention-{lead_set.replace(' ', '-').replace('+', '-')}.png"
        title = f"test record {record}, {lead_set}"
        draw_attention(file, signal_mv, fs_hz, queries, segment_s, leads, title, f"{dataset}/{record}")
