"""Every command that the pages show: `make` knows its targets, and the parser of its module accepts its options."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys

import jsonargparse
import pytest

from docs.build import PAPERS, ROOT
from shared.runs import predict

PAGES = [ROOT / name for name in ("README.md", "AUDIT.md", "CONTRIBUTING.md", *(f"{p}/README.md" for p in PAPERS))]
OURS = (*PAPERS, "shared", "docs", "tests")
BY_HAND = ("--agreement", "--thresholds")  # of `extract`, which reads them without a parser


class Accepted(Exception):
    """Raised in place of what a program does after it has parsed its options."""


def commands(text: str) -> list[str]:
    """Command lines of the shell blocks of a page, continued lines joined, and whole commands between backticks."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines += [line for line in re.findall(r"`((?:make|python -m) [^`]+)`", text) if not re.search(r"<|\.\.", line)]
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith(("#", ">"))]


def python(command: str) -> list[str]:
    """[module, options ...] of a `python -m` line of this repository; [] for anything else."""
    words = [w for w in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", w)]
    words = words[words.index("-m") + 1 :] if "-m" in words else []
    if words[:1] == ["torch.distributed.run"] or "torchrun" in command:
        words = words[words.index("-m") + 1 :] if "-m" in words else []
    return words if words and words[0].split(".")[0] in OURS else []


def accepted(module: str, options: list[str], monkeypatch) -> bool:
    """The program takes the options, or has no parser. SystemExit where its parser refuses them."""
    file = ROOT / module.replace(".", "/")
    file = file / "__main__.py" if file.is_dir() else file.with_suffix(".py")
    assert file.is_file(), f"no module {module}"
    source = file.read_text()
    if set(options) & set(BY_HAND) or "def main(" not in source or not (options or "parse" in source):
        return all(option in source for option in options if option.startswith("--"))
    for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):

        def stops(self, args=None, *more, whole=parser.parse_args, **named):
            whole(self, args, *more, **named)
            if args is None or list(args) == options:
                raise Accepted
            return whole(self, args, *more, **named)

        monkeypatch.setattr(parser, "parse_args", stops)
    monkeypatch.setattr(predict, "trained", lambda paper: str)  # a checkpoint that the reader will have made
    monkeypatch.setattr(sys, "argv", [module, *options])
    name = module + ".__main__" * (file.name == "__main__.py")
    with pytest.raises(Accepted):
        importlib.import_module(name).main()
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, monkeypatch):
    found = dict.fromkeys(commands(page.read_text(encoding="utf-8")))
    assert page.name != "README.md" or len(found) >= 4, "a README shows how to reproduce, train and predict"
    for command in found:
        lines = [command]
        if command.startswith("make "):
            words = shlex.split(command)
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert not done.returncode, f"{page}: {command}: {done.stderr}"
            lines = [line for line in done.stdout.splitlines() if " -m " in line]
        for module, *options in filter(None, map(python, lines)):
            with monkeypatch.context() as patched:
                try:
                    assert accepted(module, options, patched)
                except SystemExit:
                    pytest.fail(f"{page}: {command}: {module} refuses {options}")


@pytest.mark.parametrize("target", ["reproduce", "rescore", "plan", "check-data", "data"])
def test_an_unknown_paper_is_an_error_of_make(target):
    done = subprocess.run(["make", "-n", f"{target}-foo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and f"No rule to make target '{target}-foo'" in done.stderr
