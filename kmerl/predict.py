"""One ECG, any leads -> scores and a picture of where each name looked:

    python -m kmerl.predict RECORD --leads I,II --classes "atrial fibrillation,left bundle branch block"

RECORD is a WFDB record (path without or with extension), or a CSV file with one column per lead, named in the header,
in mV; for CSV give `--fs-hz`. The text encoder and its cache are those of the run.
"""

from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from kmerl.baselines import load
from kmerl.config import parse
from kmerl.leads import lead_mask
from kmerl.prep import prepare, text_encoder
from shared.ecg.decode import whole_patches
from shared.ecg.plot import draw_attention
from shared.ecg.record import LEADS
from shared.ecg.wfdb_io import read_file
from shared.runs.checkpoint import run_file
from shared.runs.predict import predict_parser, refusals


@torch.inference_mode()
def attend(
    model, signal_mv: np.ndarray, queries: torch.Tensor, names: list[str], leads: tuple[str, ...], fs_hz: float
) -> tuple[dict[str, tuple[float, np.ndarray]], float]:
    """name -> (score, attention [12, M] over segments, 0 where a lead is missing); length of a segment in s.

    signal_mv: [12, n] at the model's rate; queries: [Q, d_text], vectors of `names`.
    """
    step = model.step_samples
    ecg = torch.from_numpy(np.ascontiguousarray(signal_mv[None, :, : signal_mv.shape[1] // step * step]))
    mask = torch.from_numpy(lead_mask(leads))
    scores = model.scores(ecg, queries, mask)[0].float().sigmoid()
    weights, lead, segment = model.attention(ecg, queries, mask)
    found = {}
    for i, name in enumerate(names):
        grid = np.zeros((len(LEADS), ecg.shape[-1] // step), np.float32)
        grid[lead.numpy(), segment.numpy()] = weights[0, i].float().numpy()
        found[name] = (float(scores[i]), grid)
    return found, step / fs_hz


def main(args: list[str] | None = None) -> dict[str, float]:
    parser = predict_parser(__doc__, "kmerl", "kmerl")
    parser.add_argument("record", type=Path)
    parser.add_argument("--leads", default=",".join(LEADS), help="leads that the model may see, comma-separated")
    parser.add_argument("--classes", required=True, help="plain names of conditions, comma-separated")
    parser.add_argument("--fs-hz", type=float, help="sampling rate of a CSV file")
    options = parser.parse_args(args)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    leads = tuple(name.strip() for name in options.leads.split(",") if name.strip())
    names = [name.strip() for name in options.classes.split(",") if name.strip()]
    cfg = parse(["--config", str(run_file(options.checkpoint, "config.yaml"))])
    model = load(options.checkpoint).eval()
    with refusals(parser):
        if getattr(model, "query_network", None) is None or model.cfg.method != "kmerl" or model.cfg.tokens != "lead":
            raise ValueError(f"{options.checkpoint}: no K-MERL with lead tokens and query network; take such a run")
        if not names:
            raise ValueError("--classes names no condition")
        lead_mask(leads)
        signal_mv, fs_hz = read_file(options.record, options.fs_hz, leads)
        signal_mv = whole_patches(signal_mv, fs_hz, cfg.data.fs_hz, cfg.n_samples, model.step_samples)
        data = prepare(cfg)
        reports = data.records.store.records.report.iloc[data.rows].tolist()
        vectors = torch.from_numpy(text_encoder(cfg, reports)(names))
    found, segment_s = attend(model, signal_mv, vectors, names, leads, cfg.data.fs_hz)
    draw_attention(options.out, signal_mv, cfg.data.fs_hz, found, segment_s, leads, title=options.record.stem)
    for name, (score, _) in found.items():
        print(f"{score:.3f}  {name}")
    print(f"picture: {options.out}")
    return {name: score for name, (score, _) in found.items()}


if __name__ == "__main__":
    main()
