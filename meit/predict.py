"""One ECG -> report and picture: `python -m meit.predict RECORD --checkpoint runs/meit/laptop/meit/seed0/checkpoint`.

RECORD is a WFDB record (path without or with extension), or a CSV file with one column per lead, named in the header,
in mV; for CSV give `--fs-hz`.
"""

from pathlib import Path

import numpy as np
import torch
import yaml
from transformers.utils import logging

from meit.data import load_tokenizer, normalise, prompt_instruction, prompt_text
from meit.figures import draw_case
from meit.model import MeitModel
from shared.ecg.decode import resampled
from shared.ecg.wfdb_io import read_file
from shared.runs.checkpoint import run_file
from shared.runs.predict import predict_parser, refusals


def served(checkpoint: Path) -> dict:
    """Config of a run that writes reports of ECGs; ValueError for any other."""
    run = yaml.safe_load(run_file(checkpoint, "config.yaml").read_text())
    if run["model"]["fusion"] in ("none", "words"):
        raise ValueError(f"{checkpoint}: a pre-training run, which writes no reports of ECGs; take a run of a fusion")
    return run


def report(signal_mv: np.ndarray, fs_hz: float, checkpoint: Path) -> str:
    """The model's report of one ECG, resampled and normalised as its training data were."""
    run = served(checkpoint)
    signal_mv = resampled(signal_mv, fs_hz, run["data"]["fs_hz"])
    tokenizer, model = load_tokenizer(str(checkpoint)), MeitModel.from_pretrained(checkpoint).eval()
    prompt = tokenizer(prompt_text(prompt_instruction(run["data"]["instructions"])), add_special_tokens=False)
    ids = torch.tensor([prompt.input_ids])
    ecg = torch.from_numpy(normalise(signal_mv[None], run["data"]["normalise"]))
    new = model.generate(ids, torch.ones_like(ids), ecg=ecg, max_new_tokens=run["eval"]["max_new_tokens"])
    return tokenizer.decode(new[0], skip_special_tokens=True).strip()


def main(args: list[str] | None = None) -> str:
    parser = predict_parser(__doc__, "meit", "meit")
    parser.add_argument("record", type=Path)
    parser.add_argument("--fs-hz", type=float, help="sampling rate of a CSV file")
    options = parser.parse_args(args)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with refusals(parser):
        served(options.checkpoint)
        signal_mv, fs_hz = read_file(options.record, options.fs_hz)
    text = report(signal_mv, fs_hz, options.checkpoint)
    draw_case(options.out, signal_mv, fs_hz, "", {"MEIT": text}, title=options.record.stem)
    print(text)
    print(f"picture: {options.out}")
    return text


if __name__ == "__main__":
    main()
