"""Tables and loss curves that the papers' own `tables.py` put together, from scored predictions and facts of runs."""

from collections.abc import Sequence

from shared.runs.config import RunConfig
from shared.runs.evidence import Scored, comparable, gain, paired

NOT_COMPUTED = "not computed"
SEEDS = "seeds"  # column of a table of levels


def levels(scored: dict[str, Scored], cells: dict[str, tuple[str, str]]) -> dict:
    """One row of `level_table`: column -> level of (key of `score_all`, metric), where it was scored."""
    there = {c: (scored[key], metric) for c, (key, metric) in cells.items() if key in scored}
    seeds = {len(entry.seeds) for entry, _ in there.values()} - {0}  # of a score that no run made
    found = {c: entry.level(metric) for c, (entry, metric) in there.items() if entry.has(metric)}
    return found | ({SEEDS: seeds} if there else {})


def gains(scored: dict[str, Scored], cells: dict[str, tuple[str, str]], metric: str) -> dict:
    """One row of `level_table`: column -> paired difference of (ours, theirs), keys of `score_all`, where it is one."""
    found = {c: sides for c, sides in cells.items() if comparable(scored, *sides)}
    seeds = {len(paired(*(scored[side] for side in sides), metric)[0]) for sides in found.values()}
    return {c: gain(scored, metric, *sides) for c, sides in found.items()} | ({SEEDS: seeds} if found else {})


def level_table(
    table_id: str,
    title: str,
    columns: dict[str, str],
    rows: dict[str, dict],
    note: str = "",
    of: str = "model",
    absent: str | None = None,
) -> dict:
    """rows: label -> a row of `levels` or `gains`; columns: key -> heading. A row or column without a cell is left out,
    unless `absent` says what to show in its place. How many seeds are behind a row is shown where rows differ: with
    fewer an interval is wider. of: what a row stands for."""
    rows = {
        label: dict(cells) for label, cells in rows.items() if cells.keys() > {SEEDS} or (cells and absent is not None)
    }
    seeds = {label: cells.pop(SEEDS) for label, cells in rows.items()}
    shown = {k: h for k, h in columns.items() if absent is not None or any(k in cells for cells in rows.values())}
    body = [[label, *(list(cells[k]) if k in cells else absent for k in shown)] for label, cells in rows.items()]
    headings = [of, *shown.values()]
    if len(set().union(*seeds.values())) > 1:
        for row in body:
            counts = sorted(seeds[row[0]])
            row.insert(1, f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else next(iter(counts), None))
        headings.insert(1, SEEDS)
    table = {"id": table_id, "title": title, "columns": headings, "rows": body}
    return table | ({"note": note} if note else {})


def metric_table(
    scored: dict[str, Scored],
    table_id: str,
    title: str,
    rows: dict[str, str],
    metrics: Sequence[str],
    note: str = "",
    absent: str | None = NOT_COMPUTED,
) -> dict:
    """A column per metric, headed by the name of the variant that ran. rows: label -> key of `score_all`; absent: what
    is shown of a metric that an entry has not."""
    present = {label: scored[key] for label, key in rows.items() if key in scored}
    names = {m: next((e.metric(m)[0].name for e in present.values() if e.has(m)), m) for m in metrics}
    found = {label: levels(scored, {m: (rows[label], m) for m in metrics}) for label in present}
    return level_table(table_id, title, names, found, note, of="run", absent=absent)


def run_table(facts: dict, **extra: str) -> dict:
    """The runs behind the numbers. extra: column heading -> key of a run's facts, for what the paper adds."""
    columns = {"commit": "commit", "parameters": "parameters", "trained": "trainable", "steps": "steps",
               "train s": "train_s", "samples/s": "samples_per_s", "evaluation s": "evaluation_s"} | extra  # fmt: skip
    rows = [[name, *(run.get(k) for k in columns.values())] for name, run in sorted(facts["runs"].items())]
    return {"id": "runs", "title": "Runs", "columns": ["run", *columns], "rows": rows}


def loss_logs(cfg: RunConfig, facts: dict, runs: dict[str, str]) -> dict[str, list]:
    """Label -> one log of (step, loss) per seed of the tier, where all are there. runs: label -> experiment."""
    logs = {label: [facts["runs"].get(f"{name}/seed{s}", {}).get("loss") for s in cfg.reproduce.seeds]
            for label, name in runs.items()}  # fmt: skip
    return {label: seeds for label, seeds in logs.items() if all(seeds)}
