"""Test volumes beside their reference and what each model wrote, drawn while runs and volumes are at hand."""

from argus.config import Config, parse
from argus.evaluate import drawn_findings
from argus.figures import draw_case
from argus.prep import prepare
from shared.runs.evidence import folder, read_predictions, run_folders

N_CASES = 1  # per source
OTHERS = {"avgpool": "Average pooling", "no-image": "LLM without image"}


def draw_cases(cfg: Config, names: list[str]) -> None:
    """Volumes of the first test records of each source with different reports, beside what was written of them."""
    if "argus" not in names:
        return
    seed = cfg.reproduce.seeds[0]
    run = run_folders(cfg, "argus", seed)[0]
    prepared = prepare(parse(["--config", str(run / "config.yaml")]))
    records = prepared.table.set_index("id")
    main = read_predictions(cfg, "argus", seed)
    tables = {"Argus": main[main.input == "volume"]}
    for name, label in OTHERS.items():
        if name in names:
            table = read_predictions(cfg, name, seed)
            tables[label] = table[table.input == "volume"]
    tables["Argus, another patient's volume"] = main[main.input == "shuffle"]
    texts = {label: t.set_index("id").prediction for label, t in tables.items() if len(t)}
    findings = drawn_findings(prepared)
    for source, rows in tables["Argus"].groupby("source", sort=False):
        chosen = rows[[bool(placed(findings.get(i, []))) for i in rows.id]]
        chosen = chosen if len(chosen) else rows
        for i, item in enumerate(chosen.drop_duplicates("reference").head(N_CASES).itertuples()):
            record = records.loc[item.id]
            hu = 1000 * prepared.batch([record.row])[0, 0]
            spacing_mm = tuple(map(float, record.spacing_mm))
            at, what = spot(findings.get(item.id, []), record.source_shape, hu.shape)
            title = f"{source}, test record {item.id}" + (f"; at the cross: {what}" if what else "")
            path = folder(cfg) / f"case-{source}-{i + 1}.png"
            shown = {label: t[item.id] for label, t in texts.items()}
            draw_case(path, hu, spacing_mm, at, item.reference, shown, title, bool(what), f"argus/{item.id}")


def placed(findings: list[dict]) -> list[dict]:
    """Those with a box on one side: the box of a finding on both is centred where it is not."""
    return [f for f in findings if len(f["box"]) and f["side"] != "bilateral"]


def spot(findings: list[dict], file_shape, shape) -> tuple[tuple[int, int, int], str]:
    """(Voxel (z, y, x), words) of the middle of the smallest finding that is `placed`; the middle of the volume and ""
    where there is none.

    findings: of truth.parquet, boxes in voxels of the file, [D, H, W] file_shape; shape: of the volume at hand, which
    shows the whole file (geometry A).
    """
    if not placed(findings):
        return tuple(n // 2 for n in shape), ""
    finding = min(placed(findings), key=lambda f: f["volume_mm3"])
    ends = zip(finding["box"][:3], finding["box"][3:], file_shape, shape, strict=True)
    words = " ".join(str(finding[k]) for k in ("side", "place", "name") if finding[k]).replace("_", " ")
    return tuple(min(int((a + b) / 2 * n / m), n - 1) for a, b, m, n in ends), f"{words}, {finding['size_mm']:.0f} mm"
