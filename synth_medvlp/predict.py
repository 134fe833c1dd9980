"""One radiograph and one sentence -> their score and where the sentence points:

    python -m synth_medvlp.predict IMAGE "left pleural effusion"
    python -m synth_medvlp.predict IMAGE "left pleural effusion" --checkpoint runs/../checkpoint --out heat.png

IMAGE is a PNG, JPG or DICOM file. A score alone says little, so the share of real training images that score lower is
printed too, where these are at hand. The picture shows the film, and the map of the sentence over it.
"""

from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from shared.runs.checkpoint import run_file
from shared.runs.predict import predict_parser, refusals
from synth_medvlp.config import Config, parse
from synth_medvlp.datasets import mimic_cxr_jpg
from synth_medvlp.datasets.images import read_pixels
from synth_medvlp.datasets.reading import read_image
from synth_medvlp.figures import draw_maps
from synth_medvlp.generate import real
from synth_medvlp.grounding import upsampled
from synth_medvlp.model import VlpModel, load
from synth_medvlp.record import CxrReadError, CxrRecord
from synth_medvlp.text import clean
from synth_medvlp.trees import simulated_tree

BATCH = 64


def film(path: Path, cfg: Config) -> np.ndarray:
    """uint8 [size, size] of a file, by the geometry of the training images. Raises CxrReadError."""
    pixels, view = read_pixels(path)
    record = CxrRecord(path.stem, path.stem, path.stem, "", pixels, view or "other")
    return read_image(record, cfg.data.geometry, cfg.data.size_px)


@torch.inference_mode()
def scores(model: VlpModel, images: np.ndarray, prompt: str, scorer: str | None) -> np.ndarray:
    """Scores [n] of images uint8 [n, size, size]."""
    negatives = [f"no {prompt}"]
    parts = (torch.from_numpy(np.array(images[i : i + BATCH])) for i in range(0, len(images), BATCH))
    found = [model.scores(model.pixels(some), ([prompt], negatives), scorer)[:, 0].float() for some in parts]
    return torch.cat(found).numpy()


def higher_than(model: VlpModel, score: float, prompt: str, cfg: Config, n: int) -> float | None:
    """Share of up to n real training images that score lower; None where the training set is not at hand (a published
    run on another machine): nothing is simulated for one score."""
    if cfg.data.simulate and not simulated_tree(mimic_cxr_jpg.NAME, cfg.data.simulate).exists():
        return None
    try:
        images = real(cfg).images
    except (FileNotFoundError, CxrReadError):
        return None
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:n])
    return float((scores(model, images[rows], prompt, cfg.eval.scorer) < score).mean())


def main(args: list[str] | None = None) -> dict[str, float | None]:
    parser = predict_parser(__doc__, "synth_medvlp", "mix")
    parser.add_argument("image", type=Path)
    parser.add_argument("prompt", help="what is asked, such as 'left pleural effusion'")
    parser.add_argument(
        "--compare",
        type=int,
        default=500,
        help="real training images, where they are at hand, to compare the score with",
    )
    options = parser.parse_args(args)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not clean(options.prompt):
        parser.error("the prompt has no word: ask for a finding, such as 'left pleural effusion'")
    cfg = parse(["--config", str(run_file(options.checkpoint, "config.yaml"))])
    with refusals(parser):
        image = film(options.image, cfg)
    model = load(options.checkpoint)
    score = float(scores(model, image[None], options.prompt, cfg.eval.scorer)[0])
    print(f"{score:.3f}  {options.prompt}")
    share = higher_than(model, score, options.prompt, cfg, options.compare) if options.compare else None
    if share is not None:
        print(f"higher than {share:.0%} of the real training images")
    with torch.inference_mode():
        heat = model.maps(model.pixels(torch.from_numpy(image[None].copy())), options.prompt).float().numpy()
    title = options.image.stem[:40]
    draw_maps(options.out, title, image, None, {f"{options.prompt}: {score:.3f}": upsampled(heat, len(image))[0]})
    print(f"picture: {options.out}")
    return {"score": score, "higher_than": share}


if __name__ == "__main__":
    main()
