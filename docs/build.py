"""`make report`: the committed scorecards, figures and predictions -> docs/site, one index and one page per paper.

Nothing is computed again: numbers are copied from scorecards, samples from predictions, pictures are only re-encoded.
Pages need no server and fetch nothing from outside; without scripts they show the same, one sample below another.

    python -m docs.build [--results results] [--out docs/site]
"""

import argparse
import html
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from PIL import Image

from shared.ecg.tasks import TASKS
from shared.metrics import report, scorecard
from shared.metrics.benchmark import COLUMNS, Row
from shared.metrics.report import number
from shared.metrics.report_html import (
    as_published,
    claims_table,
    command,
    controls_table,
    copyable,
    counts,
    inline,
    minus,
    secondary,
)

HERE = Path(__file__).parent
ROOT = HERE.parent
PAPERS = tuple(re.search(r"^PAPERS := (.+)$", (ROOT / "Makefile").read_text(), re.M)[1].split())  # the one list
TIERS = tuple(t for t in scorecard.TIERS if t != "smoke")  # smoke proves the plumbing, it is no evidence
SHEETS = {"ecg-conditions.png": "One simulated 12-lead ECG per condition.",
          "cxr-findings.png": "One simulated chest radiograph per finding.",
          "ct-findings.png": "One simulated chest CT per finding."}  # fmt: skip
MAX_WIDTH_PX, QUALITY, N_SAMPLES, N_TOP = 1500, 72, 12, 3  # samples: per group; top: classes shown per task
SAMPLE_PICTURES = ("case-", "attention", "maps")  # figures that show test samples
# What the sample browser compares: group -> (experiment, input, how it is called)
COMPARED = {
    "meit": {
        "meit": [("meit", "ecg", "MEIT"), ("llava", "ecg", "LLaVA-style"), ("flamingo", "ecg", "Flamingo-style"),
                 ("meit", "shuffle", "MEIT, another record's ECG")],
        "real-ptb-xl": [("real-ptb-xl", "ecg", "MEIT"), ("real-ptb-xl", "shuffle", "MEIT, another record's ECG")],
    },
    "kmerl": {"kmerl": [("kmerl", "12 leads", "K-MERL, 12 leads"), ("kmerl", "I+II", "K-MERL, leads I and II"),
                        ("merl", "12 leads", "MERL, 12 leads")]},
    "supreme": {"supreme": [("supreme", "ecg", "SuPreME"), ("merl", "ecg", "MERL"),
                            ("supreme", "ecg~shuffled", "SuPreME, another record's ECG")]},
    "synth_medvlp": {"real": [("real", "image", "Real pairs"), ("synthetic", "image", "Synthetic pairs"),
                              ("mix", "image", "Real and synthetic pairs")]},
    "argus": {"argus": [("argus", "volume", "Argus"), ("avgpool", "volume", "Average pooling"),
                        ("no-image", "volume", "LLM without image"),
                        ("argus", "shuffle", "Argus, another patient's volume")]},
}  # fmt: skip


def described(paper: str) -> tuple[str, str]:
    """Heading and first paragraph of the package's README."""
    heading, about = (ROOT / paper / "README.md").read_text(encoding="utf-8").split("\n\n")[:2]
    return heading.removeprefix("# ").strip(), about


# --- pictures ---


def blocks(dark: np.ndarray, gap: int) -> list[tuple[int, int]]:
    """Runs of True in a profile [n], as (start, end); gaps of up to `gap` are bridged."""
    at = np.flatnonzero(dark)
    parts = np.split(at, np.flatnonzero(np.diff(at) > gap) + 1)
    return [(int(part[0]), int(part[-1]) + 1) for part in parts if len(part)]


def without_text(image: Image.Image) -> Image.Image:
    """The ECG of a case without the column of texts beside it, which the page shows as text."""
    columns = blocks((np.asarray(image.convert("L")) < 250).any(0), gap=12)
    return image.crop((0, 0, min(columns[0][1] + 8, image.width), image.height)) if columns else image


def picture(image: Image.Image, file: Path, alt: str, caption: str = "", wide: bool = False) -> str:
    """Writes a WebP and returns the figure; it links to its file, where it can be enlarged."""
    image = image.convert("RGB")
    if image.width > MAX_WIDTH_PX:
        image = image.resize((MAX_WIDTH_PX, round(image.height * MAX_WIDTH_PX / image.width)), Image.Resampling.LANCZOS)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, "WEBP", quality=QUALITY, method=4)
    text = f"<figcaption>{inline(caption)}</figcaption>" if caption else ""
    size = f'width="{image.width}" height="{image.height}"'
    shown = f'<img src="img/{file.name}" alt="{html.escape(alt)}" {size} loading="lazy">'
    link = f'<a href="img/{file.name}">{shown}</a>'
    box = f'<div class="scroll wide">{link}</div>' if wide else link
    return f"<figure>{box}{text}</figure>"


# --- test samples ---


def sample(title: str, lines: Iterable[tuple[str, str | None]], figure: str = "") -> tuple[str, str]:
    """(Title, HTML) of a sample. lines: (name, HTML); None instead of HTML makes the name a heading."""
    parts = [f'<dt class="head">{n}</dt>' if text is None else f"<dt>{n}</dt><dd>{text}</dd>" for n, text in lines]
    body = f"<dl>{''.join(parts)}</dl>" if parts else ""
    return title, f'<article class="sample"><h4>{inline(title)}</h4>{figure}{body}</article>'


def read(folder: Path, name: str, seed: int, kind: str) -> pd.DataFrame | None:
    """Predictions of one input, or None where they are not there."""
    file = folder / "predictions" / f"{name}-seed{seed}.parquet"
    rows = pd.read_parquet(file, filters=[("input", "==", kind)]) if file.exists() else ()
    return rows if len(rows) else None


def marked(text: str, reference: str) -> str:
    """A report; phrases that stand in the reference as they are, are marked."""
    theirs = {p.strip(" .").lower() for p in reference.split(". ")}
    return ". ".join(f"<mark>{inline(p)}</mark>" if p.strip(" .").lower() in theirs else inline(p)
                     for p in text.split(". "))  # fmt: skip


def report_samples(tables: Mapping[str, pd.DataFrame], group: str, pictures: dict[str, str]) -> Iterator[tuple]:
    """The first test records of a group, those with a picture first: reference and what each model wrote.

    pictures: "group/id" of a record -> its pictures; those shown are taken out.
    """
    first = next(iter(tables.values()))
    texts = {label: t.set_index("id").prediction for label, t in tables.items()}
    drawn = first[(f"{group}/" + first.id).isin(pictures)]
    others = first[~first.id.isin(drawn.id)]
    others = (others.groupby("source") if "source" in others else others).head(N_SAMPLES)
    for item in pd.concat([drawn, others]).itertuples():
        lines = [("Reference report", inline(item.reference))]
        lines += [(label, marked(t[item.id], item.reference)) for label, t in texts.items() if item.id in t.index]
        yield sample(f"{group}, test record {item.id}", lines, pictures.pop(f"{group}/{item.id}", ""))


def label_samples(
    tables: Mapping[str, pd.DataFrame], labels: pd.DataFrame, names: Mapping, pictures: dict[str, str]
) -> Iterator[tuple]:
    """The first test records of each data set with a label, those with a picture first: their true classes per task,
    and the highest scores.

    pictures: "data set/id" of a record -> its pictures; those shown are taken out.
    """
    scores = {label: rows.set_index(["dataset", "id"]).prediction for label, rows in tables.items()}
    for dataset, mine in labels.groupby("dataset", sort=False):
        widths = mine.groupby("task", sort=False).reference.first().map(len)
        starts = widths.cumsum() - widths  # a record has one score per class of all tasks, in this order
        test = mine[mine.part == "test"]
        known = test.id[test.reference.map(lambda r: np.any(r == 1))].unique()
        drawn = [record for record in known if f"{dataset}/{record}" in pictures]
        for record in [*drawn, *(r for r in known[:N_SAMPLES] if r not in drawn)]:
            lines: list[tuple[str, str | None]] = []
            for row in test[test.id == record].itertuples():
                true = np.flatnonzero(row.reference == 1)
                lines += [
                    (row.task, None),
                    ("Reference", inline("; ".join(names[row.task][i] for i in true) or "none")),
                ]
                for label, predicted in scores.items():
                    values = predicted[dataset, record][starts[row.task] :][: widths[row.task]].astype(float)
                    top = [
                        (i, f"{inline(names[row.task][i])} {minus(number(float(values[i])))}")
                        for i in np.argsort(-values)
                    ]
                    lines.append((label, "; ".join(f"<mark>{t}</mark>" if i in true else t for i, t in top[:N_TOP])))
            yield sample(f"{dataset}, test record {record}", lines, pictures.pop(f"{dataset}/{record}", ""))


def sample_pictures(paper: str, card: Mapping, folder: Path, img: Path) -> dict[str, str]:
    """Test record, as its picture names it -> its pictures."""
    found: dict[str, str] = {}
    for f in (f for f in card["figures"] if f["file"].startswith(SAMPLE_PICTURES)):
        image, stem = Image.open(folder / f["file"]), Path(f["file"]).stem
        record = image.info.get("Record")
        image = without_text(image) if paper == "meit" else image
        file = img / f"{paper}-{card['tier']}-{stem}.webp"
        shown = picture(image, file, f"{f['caption']} ({stem})", f["caption"], wide=not stem.startswith("maps"))
        key = record or (stem[0].upper() + stem[1:]).replace("-", ": ", 1)
        found[key] = found.get(key, "") + shown
    return found


def samples(paper: str, card: Mapping, folder: Path, img: Path) -> list[tuple[str, str]]:
    """Title and HTML of all samples of a tier, those with a picture first."""
    seed, facts = card["seeds"][0], json.loads((folder / "runs.json").read_text())
    pictures, found = sample_pictures(paper, card, folder, img), []
    for group, compared in COMPARED[paper].items():
        tables = {label: read(folder, name, seed, kind) for name, kind, label in compared}
        tables = {label: rows for label, rows in tables.items() if rows is not None}
        run = facts["runs"].get(f"{group}/seed{seed}", {})
        labels = folder / "predictions" / f"labels-{run.get('data_hash')}.parquet"
        if tables and labels.exists():
            names = run.get("classes") or {name: [c.description for c in t.classes] for name, t in TASKS.items()}
            found += label_samples(tables, pd.read_parquet(labels), names, pictures)
        elif tables:
            found += report_samples(tables, group, pictures)
    return [sample(name, [], shown) for name, shown in pictures.items()] + found


def browser(found: Sequence[tuple[str, str]], tier: str) -> str:
    options = "".join(f"<option>{html.escape(title)}</option>" for title, _ in found)
    back, on = (f'<button type="button" data-step="{step}">{text}</button>'
                for step, text in ((-1, "← Previous"), (1, "Next →")))  # fmt: skip
    bar = f'{back}{on}<label><select aria-label="Sample">{options}</select></label><output aria-live="polite"></output>'
    bar = f'<div class="bar" hidden>{bar}</div>'
    body = "".join(article for _, article in found)
    return f'<div class="browser" role="group" tabindex="0" aria-label="Test samples, {tier}">{bar}{body}</div>'


# --- pages ---


def section(name: str, title: str, body: str) -> str:
    return f'<section><h2 id="{name}">{title}</h2>{body}</section>\n' if body else ""


def figures(folder: Path, captions: Mapping[str, str], img: Path, prefix: str) -> str:
    """captions: file in `folder` -> caption."""
    shown = (picture(Image.open(folder / file), img / f"{prefix}{Path(file).stem}.webp", text, text)
             for file, text in captions.items())  # fmt: skip
    return f'<div class="figures">{"".join(shown)}</div>' if captions else ""


def tier_sections(paper: str, card: Mapping, folder: Path, img: Path) -> str:
    tier = card["tier"]
    found = samples(paper, card, folder, img)
    legend = """Left and right arrow keys leaf through them. Texts and scores (as the model gives them, the highest
    of each task) are those of the first seed on the first test records, not chosen by result; what stands in the
    reference is marked. Pictures were drawn by the run."""
    captions = {f["file"]: f["caption"] for f in card["figures"] if not f["file"].startswith(SAMPLE_PICTURES)}
    protocols = [secondary(t, True) for t in card["tables"] if as_published(t)]
    others = [secondary(t) for t in card["tables"] if not as_published(t)]
    parts = {
        "Test samples": f"<p>{inline(legend)}</p>{browser(found, tier)}" if found else "",
        "Controls": controls_table(card) if card["controls"] else "",
        "As published and corrected": "".join(protocols),
        "Figures": figures(folder, captions, img, f"{paper}-{tier}-"),
        "Tables": "".join(others),
        "The run": f"<p>{inline(report.run_text(card))}</p>",
    }
    return "".join(section(f"{t.lower().replace(' ', '-')}-{tier}", f"{t}, {tier}", body) for t, body in parts.items())


def paper_page(paper: str, cards: Mapping[str, Mapping], results: Path, img: Path) -> str:
    claims = scorecard.load_claims(ROOT / paper / "claims.yaml")
    for card in cards.values():
        report.check_same_claims(claims, card)
    name, about = described(paper)
    states = [f"<small>{tier}</small>{counts(card)}{copyable(command(paper, tier))}" for tier, card in cards.items()]
    states = states or [f"<strong>No results yet.</strong> This makes them: {copyable(command(paper))}"]
    parts = section("claims", "Claims", claims_table(paper, claims, cards))
    parts += "".join(tier_sections(paper, card, results / paper / tier, img) for tier, card in cards.items())
    links = "".join(f'<a href="#{i}">{t}</a>' for i, t in re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', parts))
    top = f'<h1>{inline(name)}</h1><p class="lead">{inline(about)}</p>'
    top += "".join(f'<div class="state">{state}</div>' for state in states)
    return f'{top}<nav class="toc" aria-label="On this page">{links}</nav>{parts}'


def index_page(cards: Mapping[str, Mapping[str, Mapping]], results: Path, img: Path) -> str:
    rows = []
    for paper in PAPERS:
        name, about = described(paper)
        title = "".join(re.findall(r"\*([^*]+)\*", about)[:1])  # the first emphasis of a README is the paper's title
        states = [f"<small>{tier}</small>{counts(card)}" for tier, card in cards[paper].items()]
        link = f'<a href="{paper}.html">{inline(name)}</a><small>{inline(title)}</small>'
        state = "".join(states) or "no results yet"
        rows.append(f'<tr><th scope="row">{link}</th><td>{state}</td><td>{copyable(command(paper))}</td></tr>')
    head = "".join(f'<th scope="col">{h}</th>' for h in ("Paper", "Claims by verdict", "Command"))
    text = "<h1>Five papers of medical multimodal learning, reproduced</h1>"
    text += """<p class="lead">Every claim of a paper is put as a comparison, measured over seeds and judged by its
    confidence interval. Each page shows the claims, the controls, the figures and test samples of one paper.</p>"""
    text += f'<table class="index stacked"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    text += section("reading", "How to read", f'<p class="prose">{inline(report.HOW_TO_READ)}</p>')
    sheets = {file: caption for file, caption in SHEETS.items() if (results / file).exists()}
    text += section("data", "Simulated data", figures(results, sheets, img, ""))
    if (results / "bench.json").exists():
        text += section("speed", "Speed", speed(json.loads((results / "bench.json").read_text())))
    return text


def speed(bench: Mapping) -> str:
    """results/bench.json as a table."""
    rows = [Row(**row).cells() for row in bench["rows"]]
    note = "`make bench` measures it anew; a ratio is of two measurements in one run."
    title = f"Measured on {bench['machine']['cores']} CPU cores"
    return secondary({"title": title, "columns": COLUMNS, "rows": rows, "note": note}, is_open=True)


def write_page(out: Path, name: str, title: str, body: str) -> None:
    pages = {"index": "All papers"} | {p: re.split("[:,]", described(p)[0])[0] for p in PAPERS}
    here = ' aria-current="page"'
    nav = "".join(f'<a href="{p}.html"{here if p == name else ""}>{inline(t)}</a>' for p, t in pages.items())
    page = Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(title=title, nav=nav, body=body)
    (out / f"{name}.html").write_text(page, encoding="utf-8")


def main(args: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path, default=HERE / "site")
    options = parser.parse_args(args)
    out, results = options.out, options.results
    shutil.rmtree(out / "img", ignore_errors=True)  # pictures of earlier results
    out.mkdir(parents=True, exist_ok=True)
    for file in ("style.css", "site.js"):
        shutil.copyfile(HERE / file, out / file)
    files = {p: {t: results / p / t / "scorecard.json" for t in TIERS} for p in PAPERS}
    cards = {p: {t: scorecard.read(f) for t, f in of_tier.items() if f.exists()} for p, of_tier in files.items()}
    write_page(out, "index", "Five papers, reproduced", index_page(cards, results, out / "img"))
    for paper in PAPERS:
        write_page(out, paper, f"{described(paper)[0]}: results", paper_page(paper, cards[paper], results, out / "img"))
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 2**20
    print(f"wrote {out / 'index.html'}: {len(PAPERS)} papers, {size:.1f} MB")
    return out


if __name__ == "__main__":
    main()
