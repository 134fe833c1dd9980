"""The options that the `predict` of every paper has."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.runs.checkpoint import trained


def predict_parser(doc: str, paper: str, run: str) -> argparse.ArgumentParser:
    """--checkpoint (default: seed 0 of `run` at the laptop tier) and --out; a paper adds what it reads and asks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    checkpoint = f"runs/{paper}/laptop/{run}/seed0/checkpoint"
    which = f"of a run, or a published one; default: {checkpoint}"
    parser.add_argument("--checkpoint", type=trained(paper), default=checkpoint, help=which)
    parser.add_argument("--out", type=Path, default=Path("prediction.png"), help="the picture")
    return parser


@contextmanager
def refusals(parser: argparse.ArgumentParser) -> Iterator[None]:
    """A run that is not served, or an input that cannot be read, is an error of the command line."""
    try:
        yield
    except (ValueError, OSError) as error:  # the loaders' errors are ValueErrors
        parser.error(str(error))
