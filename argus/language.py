"""Text for a small language model, in the place of a pre-trained one (laptop and gpu tiers; Deviations).

A published LLM comes able to put a list of findings into prose, and that is what stage 1 builds on: the projector only
has to give it the list. A small random one learns it from reports of simulated patients beyond those of the data
(`data.texts`), whose volumes nobody ever draws, each behind a list of its findings:

    [BOS] nodule right upper lobe; emphysema [prompt] A nodule of 7 mm in the right upper lobe is seen. .. [EOS]

The list stands where the visual tokens will. Like these it does not say everything: a tenth of the findings and three
tenths of their places are left out, so that the model does not count on words, which no visual token spells.
"""

import numpy as np
import pandas as pd

from argus.config import DataConfig
from argus.data import prompt_ids
from argus.manifest import Rules
from shared.ct.simulate import draw_studies
from shared.ct.simulate_layouts import simulator_hash
from shared.metrics.ct_findings import Found, extract
from shared.runs.config import hash_of
from shared.tokens import Examples, examples_of

LEFT_OUT, WITHOUT_PLACE = 0.1, 0.3  # shares of the findings of a list


def drawn_reports(data: DataConfig) -> pd.DataFrame:
    """section and target of as many further patients of each source as `data.texts` says, sources mixed evenly."""
    if not (data.simulate and data.texts):
        raise ValueError("data.texts: objective 'language' needs a number of further simulated patients per source")
    rows, rules = [], Rules(**data.rules)
    for source, n in data.texts.items():
        first = data.simulate.n_patients.get(source, 0)  # the patients before it have volumes
        studies = [s for k in range(n) for s in draw_studies(source, data.simulate.seed, first + k)]
        reports = [rules.target(source, s.report.findings, s.report.impression) for s in studies]
        place = (np.arange(len(reports)) + 0.5) / len(reports)
        rows.append(pd.DataFrame({"section": rules.section(source), "target": reports, "place": place}))
    mixed = pd.concat(rows).sort_values("place", kind="stable", ignore_index=True)
    return mixed[mixed.target != ""].drop(columns="place").reset_index(drop=True)


def texts_hash(data: DataConfig) -> str:
    """Identifies the texts: the simulator, its seed and the patients, and what their lists leave out."""
    return hash_of(
        [simulator_hash(), data.simulate and vars(data.simulate), data.rules, data.texts, LEFT_OUT, WITHOUT_PLACE]
    )


def in_words(name: str, found: Found, placed: bool) -> str:
    """ "nodule left lower lobe, right upper lobe"; "nodule" where not placed."""
    places = sorted(" ".join(filter(None, place)) for place in found.places) if placed else []
    return " ".join([name, ", ".join(filter(None, places))]).replace("_", " ").strip()


def listed(report: str, rng: np.random.Generator) -> str:
    """Most of what a report asserts, in words and in random order."""
    found = [(name, f) for name, f in extract(report).items() if f.status != "absent" and rng.random() >= LEFT_OUT]
    return "; ".join(in_words(*found[k], placed=rng.random() >= WITHOUT_PLACE) for k in rng.permutation(len(found)))


def lists_of(texts: pd.DataFrame, seed: int) -> list[str]:
    """The list of each report of `drawn_reports`."""
    rng = np.random.default_rng(seed)
    return [listed(report, rng) for report in texts.target]


class LanguageDataset(Examples):
    """Reports behind their lists of findings; loss on report and end token only. `reports` stay whole."""

    def __init__(self, texts: pd.DataFrame, lists: list[str], data: DataConfig, tokenizer):
        self.reports = texts.target.tolist()
        lists = tokenizer(lists, add_special_tokens=False).input_ids
        n_bos = int(tokenizer.bos_token_id is not None)
        prompts = {section: prompt_ids(section, tokenizer) for section in texts.section.unique()}
        of_row = [prompts[s][:n_bos] + ids + prompts[s][n_bos:] for s, ids in zip(texts.section, lists, strict=True)]
        self.examples, self.n_truncated = examples_of(of_row, self.reports, data.max_tokens, tokenizer)
