"""Where a checkpoint is, and what is known of the run that made it.

The checkpoint of a run is `runs/<paper>/<tier>/<experiment>/seed<k>/checkpoint`: weights and tokenizer, with the run's
config.yaml and run.json one level up. A published folder (`shared/runs/publish.py`) holds all of them side by side.
"""

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name
PUBLIC = (".safetensors", ".json", ".txt", ".model", ".jinja", ".yaml", ".md")  # kinds of files: no pickles


def fetched(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint; `owner/name` that is no folder here is downloaded from the hub, once, by HF_ENDPOINT
    and HF_TOKEN. Another path that does not exist is returned as it is: the caller knows best what to say of it.

    FileNotFoundError where the hub does not give it.
    """
    if Path(checkpoint).is_dir() or not HUB_NAME.fullmatch(str(checkpoint)):
        return Path(checkpoint)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        endpoint = os.environ.get("HF_ENDPOINT")
        return Path(snapshot_download(str(checkpoint), endpoint=endpoint, allow_patterns=[f"*{end}" for end in PUBLIC]))
    except (HTTPError, OSError) as error:
        why = in_one_line(error)
        raise FileNotFoundError(f"{checkpoint}: no trained run here, and none on the hub: {why}") from error


def in_one_line(error: Exception) -> str:
    """What an error of the hub says."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def run_file(folder: Path, name: str) -> Path:
    """`config.yaml` or `run.json` of the run behind a checkpoint: in its folder, else one level up (there or not)."""
    inside = folder / name
    return inside if inside.is_file() else folder.parent / name


def trained(paper: str) -> Callable[[str], Path]:
    """The type of `--checkpoint` for argparse: the folder of a trained run, or of a published one by its name."""

    def folder_of(text: str) -> Path:
        try:
            folder = fetched(text)
        except FileNotFoundError as error:
            raise ArgumentTypeError(str(error)) from error
        if not run_file(folder, "config.yaml").is_file():
            why = f"no trained run; train one with `make reproduce-{paper}` or give --checkpoint"
            raise ArgumentTypeError(f"{text}: {why}")
        return folder

    return folder_of
