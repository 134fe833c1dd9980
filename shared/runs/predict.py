"""What the `predict` of every paper shares: the options, and the check that there is a trained run."""

import argparse
from pathlib import Path


def predict_parser(doc: str, paper: str, run: str) -> argparse.ArgumentParser:
    """--checkpoint (default: seed 0 of `run` at the laptop tier) and --out; a paper adds what it reads and asks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    checkpoint = Path("runs") / paper / "laptop" / run / "seed0" / "checkpoint"
    parser.add_argument("--checkpoint", type=Path, default=checkpoint, help=f"of a run; default: {checkpoint}")
    parser.add_argument("--out", type=Path, default=Path("prediction.png"), help="the picture")
    parser.set_defaults(paper=paper)
    return parser


def parsed(parser: argparse.ArgumentParser, args: list[str] | None) -> argparse.Namespace:
    """The options; ends the program where the checkpoint is no run's."""
    options = parser.parse_args(args)
    if not (options.checkpoint.parent / "config.yaml").is_file():
        make = f"make reproduce-{options.paper}"
        parser.error(f"{options.checkpoint}: no trained run; train one with `{make}` or give --checkpoint")
    return options
