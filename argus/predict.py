"""One chest CT -> report and pictures: `python -m argus.predict VOLUME --checkpoint CHECKPOINT`.

VOLUME is a NIfTI file (.nii, .nii.gz) or the folder of a DICOM series. The picture shows three planes for each sentence
of the report, through the place that the LLM attended to most while it wrote the sentence, and its attention as heat.
"""

import re
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from torch.nn import functional as F
from transformers.utils import logging

from argus.compress import Grouped, small_grid
from argus.data import PROMPTS, load_tokenizer, prompt_batch
from argus.figures import draw_planes
from argus.hilt import Hilt
from argus.manifest import Rules
from argus.model import ArgusModel
from argus.prep import HU
from shared.ct.ct_io import check_chest, read_nifti
from shared.ct.dicom import read_dicom
from shared.ct.geometry import Geometry, prepare
from shared.ct.volume import CtVolume
from shared.metrics.figures import DPI, save
from shared.runs.checkpoint import run_file
from shared.runs.predict import predict_parser, refusals
from shared.runs.processes import device


def read(path: Path, series_uid: str = "") -> CtVolume:
    """A NIfTI file or the folder of a DICOM series, as HU in LPS; CtReadError where it is broken or no chest CT."""
    volume = read_dicom(path, series_uid) if path.is_dir() else read_nifti(path)
    return check_chest(volume, path)


def prepared_as(volume: CtVolume, data: dict) -> CtVolume:
    """The volume as the training data of a run (section `data:` of its config) were prepared; float32 HU."""
    spacing = data["spacing_mm"]
    geometry = Geometry(
        tuple(data["shape"]),
        None if spacing is None else tuple(spacing),
        tuple(data["clip_hu"]),
        data.get("clip", "before"),
    )  # a run from before the key has none
    volume = prepare(volume, geometry)
    hu = np.rint(volume.hu)  # the store holds int16
    if data["slice_only"]:
        hu = np.broadcast_to(hu[len(hu) // 2], hu.shape)
    return replace(volume, hu=hu)


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of the sentences in `text`."""
    stop = r"(?<!^\d)(?<!\s\d)[.!?](?=\s|$)"  # not the point of "1." or "3.5"
    found = re.finditer(rf"\S.*?(?:{stop}|$)", text, flags=re.DOTALL)
    return [match.span() for match in found]


def spans(pieces: list[str], text: str) -> list[tuple[int, int]]:
    """(first, last + 1) token of each sentence of `text` = the joined pieces, one a token; none is left without one."""
    ends = np.cumsum([len(piece) for piece in pieces])
    bounds = [int(np.searchsorted(ends, end)) + 1 for _, end in sentences(text)]
    return [(min(first, last - 1), last) for first, last in zip([0, *bounds], bounds, strict=False)]


def pieces_of(ids: list[int], tokenizer) -> list[str]:
    """What each token adds to the decoded text; a character of several tokens comes with its last one."""
    texts = [tokenizer.decode(ids[: k + 1], skip_special_tokens=True) for k in range(len(ids))]
    whole = [text.rstrip("\ufffd") for text in texts]
    return [now[len(before) :] for before, now in zip(["", *whole[:-1]], whole, strict=True)]


def place_of(model: ArgusModel, weights: torch.Tensor, shape) -> torch.Tensor | None:
    """Attention on visual tokens [n, M] -> [n, D, H, W]; None where visual tokens have no place (learned queries)."""
    arm = model.compressor
    if isinstance(arm, Hilt):
        grid = small_grid(model.encoder.grid, model.config.settings["factors"])
    elif isinstance(arm, Grouped) and arm.how not in ("avgpool_seq", "concat_1d"):
        grid = arm.grid if arm.how == "none" else small_grid(arm.grid, arm.factors)
    else:
        return None
    return F.interpolate(weights.view(-1, 1, *grid), tuple(shape), mode="trilinear", align_corners=False)[:, 0]


def served(checkpoint: Path) -> dict:
    """Config of a run that writes reports of volumes; ValueError for any other."""
    run = yaml.safe_load(run_file(checkpoint, "config.yaml").read_text())
    if run["model"]["objective"] != "report":
        raise ValueError(f"{checkpoint}: a run of objective '{run['model']['objective']}', which writes no reports of "
                         "volumes; take one of objective 'report'")  # fmt: skip
    return run


@torch.inference_mode()
def report(volume: CtVolume, checkpoint: Path, section: str | None = None) -> tuple[str, CtVolume, list]:
    """(report, the volume as the model saw it, [(sentence, attention [D, H, W] or None)]).

    section: findings | report | impression; None = of the run's first source. Attention is the mean over layers, heads
    and the sentence's tokens, where it is more than what the tokens of this report give to a place on average; of a
    single sentence, more than its least.
    """
    run = served(checkpoint)
    section = section or Rules(**run["data"]["rules"]).section(run["data"]["sources"][0])
    tokenizer, model = load_tokenizer(str(checkpoint)), ArgusModel.from_pretrained(checkpoint).to(device()).eval()
    seen = prepared_as(volume, run["data"])
    x = (torch.from_numpy(seen.hu.astype(np.float32))[None, None] / HU).to(model.device)
    prompt = {k: v.to(model.device) for k, v in prompt_batch([section], tokenizer).items()}
    new = model.generate(**prompt, volume=x, max_new_tokens=run["eval"]["max_new_tokens"])
    pieces = pieces_of(new[0].tolist(), tokenizer)
    text = "".join(pieces)
    parts, of = [text[a:b] for a, b in sentences(text)], spans(pieces, text)
    if model.encoder is None or not parts:
        return text.strip(), seen, [(part, None) for part in parts]
    weights = model.attend(**prompt, new_ids=new, volume=x)[0].cpu()  # [T, M]
    by_sentence = torch.stack([weights[a:b].mean(0) for a, b in of])
    # some tokens draw attention whatever is written; what is special of a sentence is above that
    usual = weights.mean(0) if len(parts) > 1 else by_sentence.min()
    by_sentence = (by_sentence - usual).clamp(min=0)
    maps = place_of(model, by_sentence, seen.hu.shape)
    return text.strip(), seen, [(part, None if maps is None else maps[k].numpy()) for k, part in enumerate(parts)]


def draw(path: Path, volume: CtVolume, parts: list, title: str = "") -> None:
    """A row of three planes per sentence, through the maximum of its attention (the middle, where there is none)."""
    parts = parts or [("(empty)", None)]
    row_in, width_in, head_in = 2.9, 13.0, 0.5
    height_in = head_in + row_in * len(parts)
    fig = Figure(figsize=(width_in, height_in), dpi=DPI)
    fig.text(0.015, 1 - 0.15 / height_in, title, fontsize=11, va="top", parse_math=False)
    for k, (sentence, attention) in enumerate(parts):
        bottom = 1 - (head_in + (k + 1) * row_in) / height_in
        boxes = [(j * 3.0 / width_in + 0.01, bottom, 2.85 / width_in, (row_in - 0.35) / height_in) for j in range(3)]
        at = [n // 2 for n in volume.hu.shape]
        if attention is not None:
            at = [int(i) for i in np.unravel_index(int(attention.argmax()), attention.shape)]
        axes = [fig.add_axes(box) for box in boxes]
        draw_planes(axes, volume.hu, volume.spacing_mm, at, "lung", overlay=attention)
        note = "" if attention is not None else "\n\n(no attention that has a place)"
        body = "\n".join(textwrap.wrap(sentence, 42)) + note
        fig.text(9.15 / width_in, bottom + (row_in - 0.5) / height_in, body, fontsize=11, va="top", parse_math=False)
    save(fig, path)


def main(args: list[str] | None = None) -> str:
    parser = predict_parser(__doc__, "argus", "argus")
    parser.add_argument("volume", type=Path)
    parser.add_argument("--series", default="", help="SeriesInstanceUID, where the folder holds several series")
    parser.add_argument("--section", choices=list(PROMPTS), help="what to write; default: of the run's first source")
    options = parser.parse_args(args)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with refusals(parser):
        served(options.checkpoint)
        volume = read(options.volume, options.series)
    text, seen, parts = report(volume, options.checkpoint, options.section)
    draw(options.out, seen, parts, title=options.volume.name)
    print(text)
    print(f"picture: {options.out}")
    return text


if __name__ == "__main__":
    main()
