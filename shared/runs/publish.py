"""A trained run -> a folder as the hub expects it, and, where asked, the hub:

    python -m shared.runs.publish runs/meit/laptop/meit/seed0 published/meit
    python -m shared.runs.publish runs/meit/laptop/meit/seed0 published/meit --push OWNER/NAME

The folder holds weights (safetensors), the model's config.json, its tokenizer, the run's config.yaml and run.json, and
a model card, README.md. It is what `from_pretrained` and `python -m <paper>.predict --checkpoint` take, and so is
OWNER/NAME. Pushing needs HF_TOKEN or `hf auth login`. A new repository is private. HF_ENDPOINT names another hub, which
may need HF_HUB_DISABLE_XET=1.
"""

import argparse
import os
import shutil
from pathlib import Path

from shared.runs.card import Run, card, read_run
from shared.runs.checkpoint import HUB_NAME, PUBLIC, in_one_line


class PublishError(RuntimeError):
    """Nothing, or not all, was published; the message says why and what to do."""


def write(run: Run, out: Path, name: str = "") -> None:
    """Write the folder; files of an earlier publication are replaced. name: on the hub, for the card.

    PublishError where the checkpoint holds a file that is not published (a pickle), or `out` files of something else.
    """
    weights = sorted((run.folder / "checkpoint").iterdir())
    odd = [file.name for file in weights if file.suffix not in PUBLIC or not file.is_file()]
    if odd:
        raise PublishError(f"{run.folder / 'checkpoint'}: {', '.join(odd)}: only {' '.join(PUBLIC)} are published")
    files = {file.name: file for file in (*weights, run.folder / "config.yaml", run.folder / "run.json")}
    out.mkdir(parents=True, exist_ok=True)
    if strange := sorted({file.name for file in out.iterdir()} - {*files, "README.md"}):
        raise PublishError(f"{out} holds {', '.join(strange)}, which this run does not; give a new folder")
    for target, file in files.items():
        if target in ("config.json", "config.yaml", "run.json"):
            (out / target).write_text(without_paths(file.read_text(encoding="utf-8"), run), encoding="utf-8")
        else:
            shutil.copyfile(file, out / target)
    (out / "README.md").write_text(without_paths(str(card(run, name or out.name)), run), encoding="utf-8")


def without_paths(text: str, run: Run) -> str:
    """Where `runs` and `results` lay on the run's machine is nobody's business; other runs are named within them."""
    for key in ("runs", "results"):
        if Path(run.config[key]).is_absolute():
            text = text.replace(run.config[key], key)
    return text


def push(folder: Path, repo: str) -> str:
    """Upload a published folder as one commit to OWNER/NAME, which is made, private, where it does not exist.

    Returns its address. PublishError: no token, no answer, no permission.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=get_token())
    try:
        url = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Published by shared.runs.publish")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise PublishError(
            f"{repo}: {api.endpoint} did not take it: {in_one_line(error)}; {folder} is complete, the same command "
            "pushes it again"
        ) from error
    return str(url)


def check_push(repo: str) -> None:
    """PublishError where a push could not begin: no name of a repository, no token."""
    from huggingface_hub import get_token

    if not HUB_NAME.fullmatch(repo):
        raise PublishError(f"--push {repo}: give OWNER/NAME")
    if get_token() is None:
        raise PublishError("--push needs a token that may write: set HF_TOKEN, or `hf auth login`")


def main(args: list[str] | None = None) -> Path:
    """Publish; returns the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="runs/<paper>/<tier>/<experiment>/seed<k>")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--push", metavar="OWNER/NAME", default="", help="upload it there")
    options = parser.parse_args(args)
    try:
        if options.push:
            check_push(options.push)
        write(read_run(options.run), options.out, options.push)
        print(f"wrote {options.out}")
        if options.push:
            print(f"pushed to {push(options.out, options.push)}")
    except (PublishError, FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    return options.out


if __name__ == "__main__":
    main()
