"""One ECG -> a score for every condition of a vocabulary, the best ones printed, and where the best one looked:

    python -m supreme.predict RECORD
    python -m supreme.predict RECORD --vocabulary "atrial fibrillation,left bundle branch block"

RECORD is a WFDB record (path without or with extension), or a CSV file with one column per lead, named in the header,
in mV; for CSV give `--fs-hz`. The vocabulary is the name of a downstream task (csn, ptb-xl-form ..), `terms` (what the
model was trained on, the default), or names of conditions, comma-separated. The text encoder and its cache are those of
the run.
"""

from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from shared.ecg.decode import whole_patches
from shared.ecg.plot import draw_attention
from shared.ecg.record import LEADS
from shared.ecg.tasks import TASKS
from shared.ecg.wfdb_io import read_file
from shared.runs.checkpoint import run_file
from shared.runs.predict import predict_parser, refusals
from supreme.baselines import load
from supreme.config import Config, parse
from supreme.model import SupremeModel
from supreme.prep import prepare, text_encoder


@torch.inference_mode()
def attend(
    model, signal_mv: np.ndarray, queries: torch.Tensor, names: list[str], fs_hz: float
) -> tuple[dict[str, tuple[float, np.ndarray]], float]:
    """name -> (score, attention [12, M] over segments); length of a segment in s.

    signal_mv: [12, n] at the model's rate; queries: [Q, d_text], vectors of `names`.
    """
    step = model.step_samples
    ecg = torch.from_numpy(np.ascontiguousarray(signal_mv[None, :, : signal_mv.shape[1] // step * step]))
    scores = model.scores(ecg, queries)[0].float().sigmoid().tolist()
    weights = model.attention(ecg, queries)[0].float().numpy()
    return dict(zip(names, zip(scores, weights, strict=True), strict=True)), step / fs_hz


def vocabulary_of(text: str, cfg: Config) -> list[str]:
    """Plain names of conditions, without repetition."""
    if text == "terms":
        return [term.preferred for term in prepare(cfg).terms]
    if text in TASKS:
        return list(dict.fromkeys(c.description for c in TASKS[text].classes))
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def main(args: list[str] | None = None) -> dict[str, float]:
    parser = predict_parser(__doc__, "supreme", "supreme")
    parser.add_argument("record", type=Path)
    parser.add_argument("--vocabulary", default="terms", help=f"terms, one of {', '.join(TASKS)}, or names")
    parser.add_argument("--top", type=int, default=10, help="how many conditions to print")
    parser.add_argument("--fs-hz", type=float, help="sampling rate of a CSV file")
    options = parser.parse_args(args)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(["--config", str(run_file(options.checkpoint, "config.yaml"))])
    model = load(options.checkpoint)
    with refusals(parser):
        if not isinstance(model, SupremeModel) or model.cfg.encoder != "vit" or model.cfg.head != "cfn":
            raise ValueError(f"{options.checkpoint}: no SuPreME with lead tokens and fusion network; take such a run")
        signal_mv, fs_hz = read_file(options.record, options.fs_hz, LEADS)
        signal_mv = whole_patches(signal_mv, fs_hz, cfg.data.fs_hz, cfg.n_samples, model.step_samples)
        names = vocabulary_of(options.vocabulary, cfg)
        if not names:
            raise ValueError("--vocabulary names no condition")
        queries = torch.from_numpy(text_encoder(cfg)(names))
    found, segment_s = attend(model, signal_mv, queries, names, cfg.data.fs_hz)
    best = sorted(found, key=lambda name: -found[name][0])
    for name in best[: options.top]:
        print(f"{found[name][0]:.3f}  {name}")
    shown = {best[0]: found[best[0]]}
    draw_attention(options.out, signal_mv, cfg.data.fs_hz, shown, segment_s, title=options.record.stem)
    print(f"picture: {options.out}")
    return {name: found[name][0] for name in best}


if __name__ == "__main__":
    main()
