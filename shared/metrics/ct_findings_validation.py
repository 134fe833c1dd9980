"""How well `ct_findings.extract` reads: against report sentences written and labelled by hand.

`tests/shared/ct_sentences.csv` holds sentences in many styles that no grammar of this repository produced: translated
Turkish in the manner of CT-RATE, translated Spanish, impressions, radiologists' prose, telegraphic notes, comparisons
with earlier scans, typing errors. Sample 1 shaped the lexicon. Sample 2 was held out until it ran once (then: precision
0.975, recall 0.963; with side 0.938 and 0.910; with place 0.906 and 0.884), and was then corrected on as well. Samples
1 to 3 and the lexicon have one author, who labelled each sample before the lexicon ran on it.

Samples 3 and 4 are held out: they never were corrected on, and their known errors are left in. Sample 3 was written
before the corrections on sample 2. Sample 4 was written later, without sight of the lexicon but knowing samples 1 to 3,
so that 25 findings are asserted at least 8 times each. It is the harder one (precision 0.945, recall 0.838; sample 3:
0.966 and 0.905), and no label of it was changed after the lexicon ran. They show how far the rules reach beyond the
sentences they were made on, not beyond their authors' idea of a report; `--ct-rate` measures on real ones.

Labels (column `says`): a finding name as such is present, name? uncertain, -name absent; "@" gives its places,
side.region with "both" for two sides: nodule@right.upper_lobe,left opacity?@both.lower_lobe fracture@.vertebra.
Places of what is absent are not labelled. History, indications and recommendations say nothing. Absent here counts what
is denied in so many words.

    python -m shared.metrics.ct_findings_validation                  # writes results/ct_findings_validation.csv
    python -m shared.metrics.ct_findings_validation --ct-rate CSV    # labels read from reports against labels given
"""

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from shared.metrics import findings_validation
from shared.metrics.ct_findings import CT_RATE_LABELS, FINDINGS, LOCATIONS, Found, ct_rate_labels, extract
from shared.metrics.ct_places import BOTH, Place

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "results" / "ct_findings_validation.csv"
SENTENCES = ROOT / "tests" / "shared" / "ct_sentences.csv"
SAMPLES = {"development": (1, 2), "held_out": (3, 4)}
_REGIONS = {region for finding in FINDINGS.values() for region in finding.regions} | {""}
MIN_SAID, MIN_AGREEMENT = 5, 0.8  # of a finding in the held-out sample, to headline a result
validated_findings = partial(findings_validation.validated_findings, RESULT)


def _places(said: str) -> frozenset[Place]:
    places = set()
    for place in filter(None, said.split(",")):
        side, _, region = place.partition(".")
        if side not in ("", "both", *BOTH) or region not in _REGIONS:
            raise ValueError(f"place {place!r}: write side.region with side left, right, both or nothing")
        places |= {Place(one, region) for one in (BOTH if side == "both" else (side,))}
    return frozenset(places)


def read_says(says: str) -> dict[str, Found]:
    """Labels of one sentence, in the form of `extract`. Raises ValueError for unknown findings, sides or regions."""
    out: dict[str, Found] = {}
    for word in says.split():
        name, _, places = word.partition("@")
        status = "absent" if name.startswith("-") else "uncertain" if name.endswith("?") else "present"
        name = name.strip("-?")
        if name not in FINDINGS:
            raise ValueError(f"label {word!r}: {name!r} is no finding; see ct_findings.FINDINGS")
        if name not in out or out[name].status == "absent":  # "no suspicious nodule; a granuloma" is a nodule
            out[name] = Found(status, _places(places))
    return out


def sentences(path: Path = SENTENCES) -> pd.DataFrame:
    """Columns sample, style, text, says (see above). Raises ValueError where a column is missing."""
    table = pd.read_csv(path, keep_default_na=False)
    if missing := {"sample", "style", "text", "says"} - set(table.columns):
        raise ValueError(f"{path}: no column {sorted(missing)}; needs sample, style, text, says")
    table["text"] = table["text"].str.replace("\\n", "\n", regex=False)
    return table


def _items(found: dict[str, Found], statuses: Sequence[str], location: str) -> set[tuple]:
    depth = LOCATIONS[location]
    return {
        (name, *place[:depth])
        for name, f in found.items()
        if f.status in statuses
        for place in f.places or {Place("", "")}
    }


def _counted(pairs: Iterable[tuple[set, set]]) -> dict[str, float]:
    """n_said, tp, fp, fn, precision, recall of (labels, read) sets; NaN where a ratio has nothing below the line."""
    tp = fp = fn = 0
    for label, read in pairs:
        tp, fp, fn = tp + len(label & read), fp + len(read - label), fn + len(label - read)
    precision, recall = (tp / n if n else float("nan") for n in (tp + fp, tp + fn))
    return {"n_said": tp + fn, "tp": tp, "fp": fp, "fn": fn, "precision": precision, "recall": recall}


def validation_table(texts: Sequence[str], labels: Sequence[dict[str, Found]]) -> pd.DataFrame:
    """Precision and recall of `extract`: a row per finding (asserted: present or uncertain), and pooled rows.

    Pooled: "micro" (findings asserted), "micro side" and "micro place" (with side, with side and region), and "micro
    present", "micro uncertain", "micro absent" (the status itself must agree).
    """
    read, asserted = [extract(text) for text in texts], ("present", "uncertain")
    rows = {}
    for name in FINDINGS:
        one = [
            tuple(_items({k: f for k, f in side.items() if k == name}, asserted, "none") for side in pair)
            for pair in zip(labels, read, strict=True)
        ]
        rows[name] = _counted(one)
    pooled = {"micro": (asserted, "none"), "micro side": (asserted, "side"), "micro place": (asserted, "place")}
    pooled |= {f"micro {status}": ((status,), "none") for status in ("present", "uncertain", "absent")}
    for row, (statuses, location) in pooled.items():
        rows[row] = _counted(
            (_items(a, statuses, location), _items(b, statuses, location)) for a, b in zip(labels, read, strict=True)
        )
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("finding")


def full_table(path: Path = SENTENCES) -> pd.DataFrame:
    """`validation_table` of development and held-out samples, and whether a finding may headline (by the latter)."""
    rows = sentences(path)
    parts = []
    for part, samples in SAMPLES.items():
        some = rows[rows["sample"].isin(samples)]
        parts.append(validation_table(list(some["text"]), list(map(read_says, some["says"]))).add_prefix(f"{part}_"))
    table = parts[0].join(parts[1])
    agreement = table[["held_out_precision", "held_out_recall"]].min(axis=1)
    enough = (table["held_out_n_said"] >= MIN_SAID) & (agreement >= MIN_AGREEMENT)
    table["headline"] = enough & table.index.isin(list(FINDINGS))
    return table.reset_index()


def ct_rate_table(path: Path) -> pd.DataFrame:
    """Per CT-RATE label, and pooled: agreement of the labels read from reports with the labels given beside them.

    path: CSV with a text column (report_text, or Findings_EN and Impressions_EN) and the 18 label columns, 0 or 1.
    Raises ValueError where they are not there.
    """
    table = pd.read_csv(path)
    texts = ["report_text"] if "report_text" in table.columns else ["Findings_EN", "Impressions_EN"]
    if missing := {*texts, *CT_RATE_LABELS} - set(table.columns):
        raise ValueError(f"{path}: no column {sorted(missing)}; join the reports with the label table first")
    reports = table[texts].fillna("").agg("\n".join, axis=1)
    read = [{label for (label,) in ct_rate_labels(text)} for text in reports]
    given = [{label for label in CT_RATE_LABELS if row[label] == 1} for _, row in table.iterrows()]
    rows = {
        label: _counted((a & {label}, b & {label}) for a, b in zip(given, read, strict=True))
        for label in CT_RATE_LABELS
    }
    rows["micro"] = _counted(zip(given, read, strict=True))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("label").reset_index()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m shared.metrics.ct_findings_validation")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--ct-rate", type=Path, metavar="CSV", help="reports with the 18 labels; writes nothing")
    args = parser.parse_args(argv)
    table = ct_rate_table(args.ct_rate) if args.ct_rate else full_table()
    if not args.ct_rate:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(args.out, index=False, float_format="%.4f")
    print(table.to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
