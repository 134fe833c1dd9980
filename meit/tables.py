"""What REPRODUCTION.md shows beside the claims: controls, tables, figures. All from scored predictions."""

import numpy as np
import pandas as pd

from meit.config import Config
from meit.data import prompt_text
from meit.instructions import FIXED_INSTRUCTION
from meit.protocols import side_by_side
from shared.metrics import figures
from shared.metrics.text import document_frequencies
from shared.runs.evidence import Control, Scored, describe, folder
from shared.runs.tables import loss_logs, metric_table, run_table

BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
ROUGE = ("rouge_1_f1", "rouge_2_f1", "rouge_l_coco")
QUALITY = (*BLEU, "meteor", *ROUGE, "cider_d", "bertscore_f1", "finding_f1", "finding_macro_f1")
CONTROLS = {  # id -> what it is
    "zero": "all samples 0",
    "shuffle": "another record's ECG",
    "majority": "the most frequent training report",
    "nearest": "report of the training record with the nearest encoder vector",
}


def controls(scored: dict[str, Scored]) -> list[Control]:
    """Finding-level F1 of what should fail."""

    def of(name: str) -> list[Control]:
        return [(f"{name}-{k}", "finding_f1", f"{name}@{k}", f"{name}@ecg", note) for k, note in CONTROLS.items()]

    language = "the same LLM and LoRA, trained without an ECG"
    return [*of("meit"), ("llm-without-ecg", "finding_f1", "no-ecg@ecg", "meit@ecg", language), *of("real-ptb-xl")]


def quality_table(scored: dict[str, Scored], table_id: str, title: str, rows: dict[str, str], note: str = "") -> dict:
    """`metric_table` with those of QUALITY that the first entry has."""
    first = next(scored[key] for key in (*rows.values(), *scored) if key in scored)
    return metric_table(scored, table_id, title, rows, [m for m in QUALITY if first.has(m)], note)


def protocol_table(cfg: Config, scored: dict[str, Scored]) -> dict:
    """as_published against corrected on the same predictions, for the model and for models that are of no use."""
    reports = pd.read_parquet(folder(cfg) / "predictions" / "meit-train-reports.parquet").report.tolist()
    df = document_frequencies(reports)
    labels = {"MEIT": "meit@ecg", "shuffled ECG": "meit@shuffle", "majority report": "meit@majority"}
    columns, values, names = ["metric"], [], None
    for label, key in labels.items():
        if key not in scored:
            continue
        t = scored[key].tables[0]
        texts = (t.reference.tolist(), t.prediction.tolist(), df)
        both, prompt = side_by_side(*texts), side_by_side(*texts, left_in=prompt_text(FIXED_INSTRUCTION))
        columns += [f"{label}: {c}" for c in ("as_published", "as_published, prompt left in", "corrected")]
        values += [both.as_published, prompt.as_published, both.corrected]
        names = both.metric
    rows = [[names[i], *(float(v[i]) for v in values)] for i in range(len(names))]
    note = (
        "First seed, same texts in all columns of a model; only the scoring differs (meit/protocols.py). The public "
        "code's main scripts leave the assistant tag in both texts, its zero-shot script the whole prompt."
    )
    return {
        "id": "protocols",
        "title": "As published against corrected",
        "columns": columns,
        "rows": rows,
        "note": note,
    }


def tables(cfg: Config, scored: dict[str, Scored], facts: dict) -> list[dict]:
    found = []
    fusion = {"MEIT": "meit@ecg", "LLaVA-style": "llava@ecg", "Flamingo-style": "flamingo@ecg"}
    rows = fusion | {"LLM without ECG": "no-ecg@ecg"} | {f"MEIT, {k}": f"meit@{k}" for k in CONTROLS}
    rows |= {"MEIT, 8 ECG tokens": "tokens-8@ecg", "MEIT, plain tuning": "plain@ecg"}
    rows |= {"LLaVA-style, 16 tokens": "llava-16@ecg", "Flamingo-style, 16 tokens": "flamingo-16@ecg"}
    rows |= {"MEIT, random encoder at the start": "random-encoder@ecg"}
    found.append(quality_table(scored, "quality", "Report quality, corrected protocol", rows))
    if "meit@ecg" in scored:
        found.append(protocol_table(cfg, scored))
    real = {"MEIT": "real-ptb-xl@ecg"} | {f"MEIT, {k}": f"real-ptb-xl@{k}" for k in CONTROLS}
    if "real-ptb-xl@ecg" in scored:
        entry = scored["real-ptb-xl@ecg"]
        title = f"Real ECGs: {describe(entry)}"
        t = entry.tables[0]
        note = (
            f"References are {languages(t.reference)}, as in the release; the model (first seed) wrote "
            f"{languages(t.prediction)}. Findings are read in all three languages; n-grams compare words as written. "
            "Pre-trained on simulated PTB-XL records, tuned on the other folds."
        )
        found.append(quality_table(scored, "real-ptb-xl", title, real, note))
    transfer = {
        "PTB-XL-tuned": "ptb-xl@ecg",
        "MIMIC-tuned": "zero-shot@ecg",
        "MIMIC-tuned, plain": "zero-shot-plain@ecg",
    }
    transfer["MIMIC-tuned, shuffled ECG"] = "zero-shot@shuffle"
    noise = {k.removeprefix("noise@"): k for k in scored if k.startswith("noise@")}
    families = {k: k for k in scored if k.startswith(("family-", "size-"))}
    published = {"MEIT": "as-published@ecg", "MEIT, shuffle": "as-published@shuffle"}
    for table_id, title, rows in (
        ("zero-shot", "Transfer to the second hospital (PTB-XL profile)", transfer),
        ("noise", "Perturbation", noise),
        ("families", "LLM families and sizes", families),
        ("as-published", "Split by record, one fixed instruction (as_published)", published),
    ):
        if sum(k in scored for k in rows.values()) > 1:
            found.append(quality_table(scored, table_id, title, rows))
    found += [attention_table(facts), run_table(facts, **{"truncated reports": "n_truncated"})]
    return [table for table in found if table["rows"]]


def attention_table(facts: dict) -> dict:
    """How much each layer looks at the ECG: softmax mass on its column, and the norms of its key and value."""
    rows = []
    for name, run in sorted(facts["runs"].items()):
        if "attention" in run:
            layers = zip(*(run["attention"][key] for key in ("mass", "k_norm", "v_norm")), strict=True)
            rows += [[name, i, *layer] for i, layer in enumerate(layers, 1)]
    columns = ["run", "layer", "attention on the ECG", "key norm", "value norm"]
    return {"id": "attention", "title": "What the layers do with the ECG vector", "columns": columns, "rows": rows}


MARKERS = {  # words that PTB-XL's reports of one language use and those of the others do not
    "German": ("sinusrhythmus", "normales", "lagetyp", "linkstyp", "abnormal,", "extrasystole", "nicht", "vorhof"),
    "Swedish": ("sinusrytm", "normalt", "el-axel", "vänster", "förmaks", "avvikande"),
    "English": ("rhythm", "normal ecg", "atrial", "sinus bradycardia", "sinus tachycardia", "trace", "waves"),
}


def languages(texts: pd.Series) -> str:
    """`71 % German, 20 % English, 9 % other`, by marker words."""
    found = texts.str.lower().map(
        lambda t: next((k for k, words in MARKERS.items() if any(w in t for w in words)), "other")
    )
    return ", ".join(f"{share:.0%} {name}" for name, share in pd.Series(found).value_counts(normalize=True).items())


def draw(cfg: Config, scored: dict[str, Scored], facts: dict) -> dict[str, str]:
    """Figures that need no signals; returns file -> caption, those of `pictures` included."""
    out = folder(cfg)
    if logs := loss_logs(cfg, facts, {name: name for name in ("meit", "llava", "flamingo")}):
        figures.draw_losses(out / "loss.png", logs, "Training loss per token")
    for kind, label in (("noise", "largest noisy fraction of the record (published)"), ("snr", "signal-to-noise, dB")):
        entries = {float(k.split("-", 1)[1]): k for k in scored if k.startswith(f"noise@{kind}-")}
        if entries:
            if kind == "noise":
                entries[0.0] = "noise@ecg"
            x = sorted(entries)
            levels = {m: np.array([scored[entries[p]].level(m) for p in x]).T for m in ("rouge_l_coco", "finding_f1")}
            lines = {m: tuple(v) for m, v in levels.items()}
            figures.draw_curve(out / f"{kind}.png", x, lines, label, "score", "Quality under noise at test time")
    return {
        "loss.png": "Training loss of the three fusions.",
        "noise.png": "Quality under the published perturbation: one noise trace on all leads, in a window.",
        "snr.png": "Quality under white noise of its own on every lead, at a true signal-to-noise ratio.",
        **{f.name: f"A test record of `{f.stem[5:-2]}`." for f in sorted(out.glob("case-*.png"))},
    }
