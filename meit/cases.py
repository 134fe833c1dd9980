"""Test ECGs beside their reference and what each fusion wrote, drawn while runs and signals are at hand."""

from meit.config import Config, parse
from meit.figures import draw_case
from meit.prep import prepare
from shared.runs.evidence import folder, read_predictions, run_folders

N_CASES = 3


def draw_cases(cfg: Config, names: list[str]) -> None:
    """ECGs of the first test records with different reports, beside the reference and what each fusion wrote."""
    for name in ("meit", "real-ptb-xl"):
        if name not in names:
            continue
        run = run_folders(cfg, name, cfg.reproduce.seeds[0])[0]
        store = prepare(parse(["--config", str(run / "config.yaml")])).store
        row_of = {r: i for i, r in enumerate(store.records.record_id)}
        main = read_predictions(cfg, name, cfg.reproduce.seeds[0])
        others = {"llava": "LLaVA-style", "flamingo": "Flamingo-style"}
        others = {n: label for n, label in others.items() if name == "meit" and n in names}
        tables = {"MEIT": main[main.input == "ecg"]}
        for other, label in others.items():
            table = read_predictions(cfg, other, cfg.reproduce.seeds[0])
            tables[label] = table[table.input == "ecg"]
        tables["MEIT, another record's ECG"] = main[main.input == "shuffle"]
        shown = tables["MEIT"].drop_duplicates("reference").head(N_CASES)
        for i, item in enumerate(shown.itertuples()):
            texts = {label: t.set_index("id").prediction[item.id] for label, t in tables.items()}
            draw_case(
                folder(cfg) / f"case-{name}-{i + 1}.png",
                store.signal_mv(row_of[item.id]),
                float(store.records.fs_hz.iloc[row_of[item.id]]),
                item.reference,
                texts,
                title=f"{name}, test record {item.id}",
                record=f"{name}/{item.id}",
            )
