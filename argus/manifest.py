"""CT-3DRRG: one manifest over CT-RATE, BIMCV-R and INSPECT (reference: "Data / CT-3DRRG").

Total, filters and splits of the paper's benchmark are not established, so each rule is a field of `Rules`. Every volume
that a data set names is either a row of the manifest or counted under one reason: kept + dropped = found, per source.

Sections: CT-RATE findings (option: findings + impression), BIMCV-R the whole report, INSPECT the impression. Splits are
by patient; CT-RATE's official validation set and INSPECT's official test set stay the test sets.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from shared.ct import LOADERS
from shared.ct.ct_io import read_header, resolve
from shared.ct.volume import CtReadError

SECTIONS = {"ct-rate": "findings", "bimcv-r": "report", "inspect": "impression"}
PARTS = ("train", "val", "test")
WORD = re.compile(r"[^\W\d_]+")
# Frequent words that the other language lacks; "a", "no", "es", "son" would not tell them apart.
SPANISH = frozenset("de la el los las del en con que se una por para sin al como más y".split())
ENGLISH = frozenset("the of and is are in with at there was were not to on for without which".split())


@dataclass(frozen=True)
class Rules:
    """What enters the benchmark. All values are ours: the paper's are not established.

    ct_rate: the section of CT-RATE to write: findings, impression or both. min_words: shorter targets are dropped.
    long_impression_words: longer impressions are flagged, not dropped (some are whole notes). min_slices,
    min_extent_mm: less is no chest. max_extent_mm: more is flagged, not dropped. train_reconstructions: volumes kept
    per CT-RATE scan for training (validation and test keep one). language: of BIMCV-R's text, "en" or "es".
    """

    ct_rate: str = "findings"
    min_words: int = 5
    long_impression_words: int = 200
    min_slices: int = 32
    min_extent_mm: float = 120.0
    max_extent_mm: float = 600.0
    train_reconstructions: int = 1
    language: str = "en"

    def __post_init__(self):
        if self.ct_rate not in ("findings", "impression", "both"):
            raise ValueError(f"data.rules: ct_rate '{self.ct_rate}' is none of findings, impression, both")

    def section(self, source: str) -> str:
        """Whose prompt and style a source's target has: a key of `data.PROMPTS`."""
        return "impression" if source == "ct-rate" and self.ct_rate == "impression" else SECTIONS[source]

    def target(self, source: str, findings: str, impression: str) -> str:
        """The text to write."""
        if source == "ct-rate" and self.ct_rate == "both":
            return clean(f"{findings} {impression}")
        return clean(impression if self.section(source) == "impression" else findings)


def build(
    roots: dict[str, Path], rules: Rules | None = None, seed: int = 0, workers: int = 8
) -> tuple[pd.DataFrame, dict]:
    """The manifest of the sources in `roots` (source -> the data set's own folder), and what was dropped.

    Manifest: INDEX_COLUMNS + source, part ("train", "val", "test"), section, target, n_words, flags (list of str: kept,
    but worth a look); volume_id, study_id and patient_id stay unique within a source only. Rows are in the order of
    source and index. `findings` and `impression` stay as the release wrote them.
    Report: rules, seed, and per source found, kept, dropped by reason, flagged, volumes / studies / patients per part,
    counts of rows that the loader left out.
    Opens the header of each file whose tables do not tell its number of slices. Raises CtReadError for tables that
    cannot be read, ValueError for an unknown source or a patient in two parts.
    """
    rules = rules or Rules()
    unknown = sorted(set(roots) - set(SECTIONS))
    if unknown or not roots:
        raise ValueError(f"sources {unknown or 'none'}: choose among {', '.join(SECTIONS)}")
    tables, report = [], {"rules": asdict(rules), "seed": seed, "sources": {}}
    for source in (name for name in SECTIONS if name in roots):
        table, report["sources"][source] = _source(source, Path(roots[source]), rules, seed, workers)
        tables.append(table)
    manifest = pd.concat(tables, ignore_index=True)
    report["found"] = sum(counts["found"] for counts in report["sources"].values())
    report["kept"] = len(manifest)
    return manifest, report


def _source(source: str, root: Path, rules: Rules, seed: int, workers: int) -> tuple[pd.DataFrame, dict]:
    loader = LOADERS[source]
    table = loader.read_index(root, **({"language": rules.language} if source == "bimcv-r" else {}))
    left_out, found = table.attrs.get("warnings", {}), len(table)
    table.attrs = {}
    dropped: Counter = Counter()
    table["source"], table["section"] = source, rules.section(source)
    table["part"] = loader.split(table, seed)  # before any drop: a rule must not move a patient between the parts
    parts_of = table.groupby("patient_id").part.nunique()
    if (parts_of > 1).any():
        raise ValueError(f"{source}: patient {parts_of.index[parts_of > 1][0]} is in two parts of the split")
    table["target"] = [rules.target(source, row.findings, row.impression) for row in table.itertuples()]
    table["n_words"] = table.target.str.split().str.len().astype(int)
    table = _drop(table, table.flag.where(table.flag != "", None), dropped)
    table = _drop(table, [_text_reason(row, rules) for row in table.itertuples()], dropped)
    table, reasons = _measured(table, root, rules, workers)
    table = _drop(table, reasons, dropped)
    table = _drop(table, _duplicates(table, root), dropped)
    if source == "ct-rate":
        table = _drop(table, _other_reconstructions(table, rules), dropped)
    table["flags"] = [_flags(row, rules) for row in table.itertuples()]
    counts = {"found": found, "kept": len(table), "dropped": dict(sorted(dropped.items())), "left_out": left_out}
    counts["flagged"] = dict(sorted(Counter(flag for flags in table["flags"] for flag in flags).items()))
    counts["parts"] = {part: _counts(table[table.part == part]) for part in PARTS}
    return table, counts


def _drop(table: pd.DataFrame, reasons: Iterable[str | None], dropped: Counter) -> pd.DataFrame:
    """Rows without a reason; the others are counted."""
    reasons = pd.Series(list(reasons), index=table.index, dtype=object)
    dropped.update(reasons.dropna())
    return table[reasons.isna()].copy()


def _counts(table: pd.DataFrame) -> dict[str, int]:
    return {"volumes": len(table), "studies": table.study_id.nunique(), "patients": table.patient_id.nunique()}


# ----------------------------------------------------------------------------------------------------------- text


def clean(text: str) -> str:
    """White space collapsed; case, punctuation and numbers stay."""
    return " ".join(text.split())


def looks_spanish(text: str) -> bool:
    """Whether Spanish function words outnumber English ones: reports that the machine left untranslated."""
    words = Counter(WORD.findall(text.lower()))
    return sum(words[w] for w in SPANISH) > sum(words[w] for w in ENGLISH)


def _text_reason(row, rules: Rules) -> str | None:
    if not row.target:
        return "empty report"
    if row.n_words < rules.min_words:
        return "short report"
    if row.language == "en" and looks_spanish(row.target):
        return "not translated"
    return None


def _flags(row, rules: Rules) -> list[str]:
    flags = []
    if row.section == "impression" and row.n_words > rules.long_impression_words:
        flags.append("long impression")
    if row.n_slices * row.spacing_mm[0] > rules.max_extent_mm:
        flags.append("long z extent")
    return flags


# -------------------------------------------------------------------------------------------------------- volumes


def _measured(table: pd.DataFrame, root: Path, rules: Rules, workers: int) -> tuple[pd.DataFrame, list[str | None]]:
    """n_slices and spacing_mm filled in from the headers where no table gives them; why each row is dropped, or None.

    Files are as stored: their slice axis is the array's axis nearest to head-feet.
    """

    def measure(row) -> tuple[int, tuple, str | None]:
        n_slices, spacing_mm, reason = row.n_slices, tuple(row.spacing_mm), None
        if not n_slices or not spacing_mm:
            try:
                header = read_header(resolve(root, row.path))
            except CtReadError as error:
                return 0, (), error.reason
            axis = _slice_axis(header.orientation)
            n_slices = header.shape[axis]
            spacing_mm = (header.spacing_mm[axis], *(s for k, s in enumerate(header.spacing_mm) if k != axis))
        if n_slices < rules.min_slices:
            reason = "too few slices"
        elif n_slices * spacing_mm[0] < rules.min_extent_mm:
            reason = "short z extent"
        return n_slices, spacing_mm, reason

    with ThreadPoolExecutor(workers) as pool:
        measured = list(pool.map(measure, table.itertuples()))
    table = table.copy()
    table["n_slices"] = [n for n, _, _ in measured]
    table["spacing_mm"] = pd.Series([spacing for _, spacing, _ in measured], index=table.index, dtype=object)
    return table, [reason for _, _, reason in measured]


def _slice_axis(orientation: str) -> int:
    """Array axis (z, y, x) that runs head-feet; the slowest where the header does not say."""
    return next((2 - index for index, letter in enumerate(orientation) if letter in "SI"), 0)


def _duplicates(table: pd.DataFrame, root: Path) -> list[str | None]:
    """ "duplicate volume" for a file whose content an earlier row holds; test rows count as earliest, then validation.

    Content is told by the CRC-32 and the length that end every gzip file, and the size on disk: eight bytes read per
    volume. Also "duplicate report" for a study that repeats the text of another study of the same patient.
    """
    order = sorted(range(len(table)), key=lambda k: (-PARTS.index(table.part.iloc[k]), k))
    reasons: list[str | None] = [None] * len(table)
    files: set[tuple] = set()
    texts: dict[tuple[str, str], str] = {}
    for k in order:
        row = table.iloc[k]
        fingerprint = _fingerprint(resolve(root, row.path))
        if fingerprint in files:
            reasons[k] = "duplicate volume"
            continue
        files.add(fingerprint)
        if texts.setdefault((row.patient_id, row.target), row.study_id) != row.study_id:
            reasons[k] = "duplicate report"
    return reasons


def _fingerprint(path: Path) -> tuple:
    size = path.stat().st_size
    if path.suffix != ".gz" or size < 18:
        return (str(path),)
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        return size, file.read(8)


def _other_reconstructions(table: pd.DataFrame, rules: Rules) -> list[str | None]:
    """Per CT-RATE scan the lowest numbers are kept (`_1` exactly, else the next that is left)."""
    number = table.volume_id.str.rsplit("_", n=1).str[1].astype(int)
    rank = number.groupby(table.study_id).rank(method="first")
    limit = table.part.map({"train": rules.train_reconstructions}).fillna(1)
    return [None if is_kept else "other reconstruction" for is_kept in rank <= limit]


# ---------------------------------------------------------------------------------------------------------- files


def save(manifest: pd.DataFrame, report: dict, folder: Path) -> str:
    """Write manifest.parquet, splits.json (volume ids per source and part) and report.json; returns the SHA-256 of
    the id lists, which identifies the split."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = manifest.copy()
    table["labels"] = [json.dumps(labels, sort_keys=True) for labels in table["labels"]]
    for name in ("spacing_mm", "origin_mm", "direction"):
        table[name] = table[name].map(list)
    ids = {
        source: {part: rows.volume_id[rows.part == part].tolist() for part in PARTS}
        for source, rows in manifest.groupby("source", sort=True)
    }
    content = json.dumps(ids, indent=0).encode() + b"\n"
    sha256 = hashlib.sha256(content).hexdigest()
    table.to_parquet(folder / "manifest.parquet.part", index=False)
    (folder / "splits.json.part").write_bytes(content)
    (folder / "report.json.part").write_text(json.dumps(report | {"splits_sha256": sha256}, indent=1))
    for name in ("manifest.parquet", "splits.json", "report.json"):
        os.replace(folder / f"{name}.part", folder / name)
    return sha256


def load(folder: Path) -> tuple[pd.DataFrame, dict]:
    """What `save` wrote: manifest and report; ValueError where the parts do not belong together."""
    folder = Path(folder)
    report = json.loads((folder / "report.json").read_text())
    found = hashlib.sha256((folder / "splits.json").read_bytes()).hexdigest()
    if found != report["splits_sha256"]:
        raise ValueError(f"{folder / 'splits.json'}: not the split of report.json; build the manifest again")
    manifest = pd.read_parquet(folder / "manifest.parquet")
    manifest["labels"] = [json.loads(labels) for labels in manifest["labels"]]
    for name in ("spacing_mm", "origin_mm", "direction"):
        manifest[name] = manifest[name].map(tuple)
    return manifest, report


def describe(report: dict) -> str:
    """The report as text: per source what was found, kept, dropped by reason, and the parts."""
    lines = []
    for source, counts in report["sources"].items():
        lines.append(f"{source}: {counts['found']} volumes found, {counts['kept']} kept")
        for title in ("left_out", "dropped", "flagged"):
            lines += [f"  {title.replace('_', ' ')}: {n} {reason}" for reason, n in counts[title].items()]
        for part, sizes in counts["parts"].items():
            lines.append(f"  {part}: " + ", ".join(f"{n} {name}" for name, n in sizes.items()))
    return "\n".join(lines)
