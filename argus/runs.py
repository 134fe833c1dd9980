"""Small things that training and evaluation need of the libraries."""

import torch
from transformers.utils import logging


def quiet() -> None:
    """No loading bars and notes of the library; warnings that matter are ours."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def end_processes() -> None:
    """Leave the process group, if there is one: its threads must not outlive the interpreter, which would abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
