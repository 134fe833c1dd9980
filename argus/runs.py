"""Small things that training and evaluation need of the libraries."""

from transformers.utils import logging


def quiet() -> None:
    """No loading bars and notes of the library; warnings that matter are ours."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
