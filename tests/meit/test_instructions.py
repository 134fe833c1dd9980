"""The instruction pool: committed file, size, distances between instructions, plain sentences."""

import itertools
import re

from meit.data import prompt_text, train_tokenizer
from meit.instructions import FIXED_INSTRUCTION, OBJECTS, OPENERS, STYLES, VERBS, compose, instruction_pool


def _tokens(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def test_the_committed_file_is_what_compose_gives():
    assert instruction_pool() == compose()


def test_256_unique_and_no_near_duplicates():
    pool = instruction_pool()
    assert len(pool) == len({text.lower() for text in pool}) == 256
    tokens = [_tokens(text) for text in pool]
    jaccard = [len(a & b) / len(a | b) for a, b in itertools.combinations(tokens, 2)]
    assert max(jaccard) < 0.85, "two instructions differ in little more than one word"


def test_every_part_is_used_about_equally_often():
    text = "\n".join(instruction_pool()).lower()
    for part in OBJECTS + STYLES:
        assert text.count(part.lower()) == 16, part
    for verb in VERBS:
        assert len(re.findall(rf"(?:^|please |could you |, |to ){verb} ", text, re.MULTILINE)) == 32, verb
    lines = text.splitlines()
    for opener, _ in OPENERS[1:]:
        assert sum(line.startswith(opener.lower()) for line in lines) == 32, opener


def test_each_is_one_short_english_sentence_about_an_ecg():
    words = re.compile(r"ecg|electrocardiogram|tracing|recording|recorded signal|heart|cardiac")
    for text in [*instruction_pool(), FIXED_INSTRUCTION]:
        assert text.isascii() and text == " ".join(text.split())
        assert text[0].isupper() and text[-1] in ".?" and not re.search(r"[.?]", text[:-1]), text
        assert (text[-1] == "?") == text.startswith(("Could you", "Would you")), text
        assert words.search(text.lower()), text
        assert 6 <= len(text.split()) <= 26, text  # leaves most of the 128-token window to the report
        assert not re.search(r"\b(\w+) \1\b", text), text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text.replace("an ECG", "")), text


def test_the_fixed_instruction_is_not_in_the_pool():
    assert FIXED_INSTRUCTION not in instruction_pool()


def test_every_token_of_the_fixed_instruction_is_trained():
    # a small language model has seen the pool and reports only: another token keeps the embedding it was drawn with
    pool = instruction_pool()
    reports = ["sinus rhythm. normal ecg", "atrial fibrillation. left axis deviation. abnormal ecg"] * 500
    tokenizer = train_tokenizer(reports + [prompt_text(text) for text in pool])
    seen = {token for ids in tokenizer([prompt_text(text) for text in pool]).input_ids for token in ids}
    prompt = tokenizer(prompt_text(FIXED_INSTRUCTION)).input_ids
    assert set(prompt) <= seen, tokenizer.convert_ids_to_tokens(sorted(set(prompt) - seen))
    closest = max(len(_tokens(FIXED_INSTRUCTION) & t) / len(_tokens(FIXED_INSTRUCTION) | t) for t in map(_tokens, pool))
    assert closest < 0.7, "the fixed instruction is one of the pool in other words"
