"""Reports without a language model: what the same test scores when nothing is generated (controls the paper lacks)."""

from collections import Counter

import torch


def majority_report(train_reports: list[str]) -> str:
    """The most frequent training report; ties go to the one seen first."""
    return Counter(train_reports).most_common(1)[0][0]


def nearest_reports(test: torch.Tensor, train: torch.Tensor, train_reports: list[str]) -> list[str]:
    """For each test vector the report of the training record with the largest cosine similarity.

    test: [N, d], train: [M, d], both of unit length, as MEIT's encoder gives them.
    """
    nearest = (test @ train.T).argmax(dim=1)  # [N]
    return [train_reports[i] for i in nearest.tolist()]
