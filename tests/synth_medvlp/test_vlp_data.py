"""Sentences and words of reports; what an access draws; augmentation; subsets and controls."""

import numpy as np
import pandas as pd
import pytest
import torch
from vlp_models import TEXTS, images, tokeniser

from synth_medvlp.data import (
    N_DRAWS,
    AugmentConfig,
    BySource,
    Collator,
    PairDataset,
    PairsConfig,
    augment,
    normalise,
)
from synth_medvlp.pairs import Pairs
from synth_medvlp.text import Tokeniser, clean, report_sentences, sentences

NO_CHANGE = AugmentConfig(crop=1.0, rotation_deg=0.0, jitter=0.0)
PLAIN = PairsConfig(augment=NO_CHANGE)


# --- text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is NO\n edema. Heart size is normal.", ["there is no edema", "heart size is normal"]),
        ("1. A 2.8 cm mass. 2. No effusion.", ["a 2.8 cm mass", "no effusion"]),
        ("1. Mass of 3.\n 2. No edema at 1.5 cm", ["mass of 3", "no edema at 1.5 cm"]),
        ("Cardiomegaly. Left-sided pacemaker.", ["left sided pacemaker"]),  # one word is no sentence
        ("Caf\u00e9 au lait, \u00b5m lines.", ["caf au lait m lines"]),
        ("___ . . .", []),
        ("", []),
        ("no stop at the end", ["no stop at the end"]),
        ("Nodule of 8 mm.Lungs are clear.", ["nodule of 8 mm", "lungs are clear"]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_the_impression_comes_first():
    assert report_sentences("Lungs are clear.", "No edema. No mass.") == ["no edema", "no mass", "lungs are clear"]
    assert clean("  There is: A mass!\n") == "there is a mass"


def test_words_of_pieces():
    tokens = tokeniser()
    found = tokens(["no pneumothorax", "the lungs are clear and of normal size today"])
    for row, text in enumerate(("no pneumothorax", "the lungs are clear and of normal size today")):
        pieces = tokens.tokenizer.convert_ids_to_tokens(found.input_ids[row].tolist())
        words: dict[int, str] = {}
        for piece, word, there in zip(pieces, found.word_ids[row].tolist(), found.attention_mask[row], strict=True):
            assert (word == -1) == (not there)
            words[word] = words.get(word, "") + piece.removeprefix("##")
        words.pop(-1, None)
        cut = text.split()[: len(words) - 2]
        assert list(words) == list(range(len(words)))
        assert words[0] == "[CLS]" and words[len(words) - 1] == "[SEP]"
        assert all(whole.startswith(w) for whole, w in zip(cut, list(words.values())[1:], strict=False))
    assert found.input_ids.shape[1] <= 24
    whole = tokens(["no pneumothorax"])
    assert int(whole.word_ids.max()) == 3 and whole.input_ids.shape[1] > 5  # one word of several pieces
    short = tokeniser(6)(["the lungs are clear and of normal size"])
    assert short.input_ids.shape == (1, 6) and short.input_ids[0, -1] == tokens.tokenizer.sep_token_id


@pytest.mark.parametrize("limit", [6, 24])
def test_pieces_word_by_word_are_those_of_the_whole_text(limit):
    tokens, texts = tokeniser(limit), [*TEXTS, "", "pneumo", " no   edema  ", "caf\u00e9 4.5 cm x-ray"]
    for text, ids, mask in zip(texts, *list(vars(tokens(texts)).values())[:2], strict=True):
        assert ids[mask == 1].tolist() == tokens.tokenizer.encode(text, truncation=True, max_length=limit)


def test_the_tokenizer_depends_on_the_texts_alone(tmp_path):
    a, b = (Tokeniser.train(texts, 100, 12) for texts in (TEXTS, TEXTS[::-1]))
    assert a.tokenizer.get_vocab() == b.tokenizer.get_vocab()
    order = sorted(a.tokenizer.get_vocab(), key=a.tokenizer.get_vocab().get)
    assert order[:7] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##a", "##b"]  # never a hash map's order
    a.save(tmp_path)
    loaded = Tokeniser.load(tmp_path)
    assert loaded.max_tokens == 12 and len(loaded) == len(a) <= 100
    for key, value in vars(a(TEXTS)).items():
        assert torch.equal(getattr(loaded(TEXTS), key), value)


def test_prompts():
    found = tokeniser().prompts(["There is edema.", ["mass", "a mass"]], ["no edema", "no mass"])
    assert found.of_class.tolist() == [0, 1, 1, 0, 1] and found.negative.tolist() == [False] * 3 + [True] * 2
    assert found.characters.tolist() == [15, 4, 6, 8, 7]
    assert torch.equal(found.tokens.input_ids[0], tokeniser()(["there is edema", "no edema"]).input_ids[0])
    for positive, negative in ((["edema", []], []), (["edema", "?!"], []), (["edema"], ["a", "b"])):
        with pytest.raises(ValueError, match="prompt"):
            tokeniser().prompts(positive, negative)


# --- data set


def pairs(n: int, name: str = "a", findings=None) -> Pairs:
    table = pd.DataFrame({
        "findings": [f"{name} finding {i}. {name} more {i}." for i in range(n)] if findings is None else findings,
        "impression": [f"{name} impression {i}." for i in range(n)],
    })  # fmt: skip
    pixels = np.zeros((n, 8, 8), np.uint8)
    pixels[:, 0, 0] = np.arange(n)
    return Pairs(pixels, table, {})


def pairing(dataset: PairDataset) -> list[tuple[int, str]]:
    """(number of the image, text) of all items."""
    return [(int(item["image"][0, 0]), item["text"]) for item in map(dataset.__getitem__, range(len(dataset)))]


def test_images_stay_with_their_texts():
    dataset = PairDataset([pairs(20), pairs(10, "b")], [None, None], PLAIN, seed=0)
    assert len(dataset) == 30 and dataset.left_out == 0
    assert all(text.split()[-1] == str(number) for number, text in pairing(dataset))
    names = [text[0] for _, text in pairing(dataset)]
    assert names.count("b") == 10 and names != sorted(names)  # shuffled before any prefix
    assert {text.split()[1] for _, text in pairing(dataset)} == {"finding", "more", "impression"}


def test_masks_and_subsets_are_nested():
    mask = np.arange(20) % 2 == 0
    sets = [
        PairDataset([pairs(20), pairs(10, "b")], [mask, None], PairsConfig(n=n, augment=NO_CHANGE), seed=3)
        for n in (5, 12, 20)
    ]
    found = [[tuple(place) for place in dataset.places] for dataset in sets]
    assert found[0] == found[1][:5] and found[1] == found[2][:12]
    assert all(row % 2 == 0 for folder, row in found[2] if folder == 0) and len(set(found[2])) == 20
    with pytest.raises(ValueError, match=r"data\.n: 21 .* 20"):
        PairDataset([pairs(20), pairs(10, "b")], [mask, None], PairsConfig(n=21), seed=3)
    other = PairDataset([pairs(20), pairs(10, "b")], [mask, None], PairsConfig(n=20), seed=4)
    assert [tuple(place) for place in other.places] != found[2]


def test_shuffled_pairs_fit_nowhere():
    dataset = PairDataset([pairs(20)], [None], PairsConfig(shuffle_pairs=True, augment=NO_CHANGE), seed=0)
    found = pairing(dataset)
    assert all(text.split()[-1] != str(number) for number, text in found)
    assert {number for number, _ in found} == {int(text.split()[-1]) for _, text in found} == set(range(20))


def test_batches_of_one_source():
    dataset = PairDataset([pairs(40), pairs(23, "b")], [None, None], PLAIN, 3)
    sampler, orders = BySource(dataset, 8), []
    for dataset.epoch in (0, 1, 0):
        orders.append(list(sampler))
        batches = dataset.places[orders[-1], 0].reshape(-1, 8)
        assert (batches == batches[:, :1]).all()
        assert sorted(batches[:, 0]) == [0] * 5 + [1] * 2  # 7 items of the second folder fill no batch
        assert len(set(orders[-1])) == len(orders[-1]) == len(sampler) == 56
        assert (np.diff(batches[:, 0]) != 0).any() and batches[:, 0].tolist() != sorted(batches[:, 0])
    assert orders[0] == orders[2] != orders[1]
    with pytest.raises(ValueError, match=r"data\.by_source.*train\.micro_batch"):
        BySource(dataset, 64)


def test_draws_follow_seed_epoch_and_item():
    a, b = (PairDataset([pairs(30)], [None], PLAIN, seed=0) for _ in range(2))
    first = pairing(a)
    assert first == pairing(a) == pairing(b)
    a.epoch = 1
    changed = [x != y for x, y in zip(first, pairing(a), strict=True)]
    assert 10 < sum(changed) < 30  # two of three sentences are others
    assert not np.array_equal(a[0]["draws"], a[1]["draws"])


def test_a_whole_report():
    dataset = PairDataset([pairs(3)], [None], PairsConfig(sentences=0), seed=0)
    number, text = pairing(dataset)[0]
    assert text == f"a impression {number} a finding {number} a more {number}"


def test_some_sentences_in_their_order():
    dataset, seen = PairDataset([pairs(1)], [None], PairsConfig(sentences=2), seed=0), set()
    for dataset.epoch in range(30):
        seen.add(dataset[0]["text"])
    assert seen == {"a impression 0 a finding 0", "a impression 0 a more 0", "a finding 0 a more 0"}
    whole = PairDataset([pairs(1)], [None], PairsConfig(sentences=9), seed=0)  # a report may have fewer
    assert whole[0]["text"] == "a impression 0 a finding 0 a more 0"


def test_pairs_without_text_are_counted():
    some = pairs(3, findings=["", None, "Lungs are clear."])
    some.table["impression"] = ["edema", "no edema", ""]
    dataset = PairDataset([some], [None], PLAIN, seed=0)
    assert dataset.left_out == 1 and sorted(dataset.texts) == [["lungs are clear"], ["no edema"]]
    with pytest.raises(ValueError, match="none of 1 pairs"):
        PairDataset([some], [np.array([True, False, False])], PLAIN, seed=0)


def test_bad_values_name_the_key():
    with pytest.raises(ValueError, match=r"data\.regime: 'other' is none of"):
        PairsConfig(regime="other")
    with pytest.raises(ValueError, match=r"data\.sentences: -1"):
        PairsConfig(sentences=-1)


# --- images


def draws(n: int, **fixed) -> torch.Tensor:
    """Uniform numbers; fixed: column -> value."""
    found = torch.rand(n, N_DRAWS, generator=torch.Generator().manual_seed(0))
    names = ("flip", "zoom", "shift_x", "shift_y", "angle", "brightness", "contrast")
    for name, value in fixed.items():
        found[:, names.index(name)] = value
    return found


def test_augmentation_off_changes_nothing():
    x = images(4).float() / 255
    assert torch.allclose(augment(x, draws(4), NO_CHANGE), x, atol=1e-5)


def test_a_flip_only_where_it_is_asked_for():
    x = images(6).float() / 255
    flipped = augment(x, draws(6, flip=0.2), AugmentConfig(1.0, 0.0, 0.0, flip=True))
    assert torch.allclose(flipped, x.flip(2), atol=1e-5)
    assert torch.allclose(augment(x, draws(6, flip=0.8), AugmentConfig(1.0, 0.0, 0.0, flip=True)), x, atol=1e-5)
    left = torch.zeros(50, 32, 32)
    left[:, 10:22, 4:10] = 1  # a marker on one side stays there
    seen = augment(left, draws(50), AugmentConfig(jitter=0.0))
    assert (seen[:, :, :16].sum((1, 2)) > 10 * seen[:, :, 16:].sum((1, 2))).all()


def test_a_crop_is_a_window_of_the_image():
    column = torch.linspace(0, 1, 32).expand(1, 32, 32)  # intensity = place
    for shift in (0.0, 0.5, 1.0):
        seen = augment(column, draws(1, zoom=0.0, shift_x=shift), AugmentConfig(0.64, 0.0, 0.0))[0, 16]
        width = seen[-2] - seen[1]
        assert width.item() == pytest.approx(0.8 * 29 / 31, abs=0.01)  # a side of sqrt(0.64)
        assert seen[0].item() == pytest.approx(0.2 * shift, abs=0.02)


def test_a_rotation_turns_about_the_middle():
    x = torch.zeros(1, 33, 33)
    x[0, 16, 26] = x[0, 16, 16] = 1
    seen = augment(x, draws(1, angle=1.0), AugmentConfig(1.0, 90.0, 0.0))[0]
    assert seen[16, 16] > 0.9 and seen[26, 16] + seen[6, 16] > 0.9 and seen[16, 26] < 0.1


def test_jitter_keeps_intensities_in_range():
    x = images(20).float() / 255
    seen = augment(x, draws(20), AugmentConfig(1.0, 0.0, 0.3))
    assert seen.min() >= 0 and seen.max() <= 1
    brighter, darker = (augment(x, draws(20, brightness=v, contrast=0.5), AugmentConfig(1.0, 0.0, 0.2)).mean()
                        for v in (1.0, 0.0))  # fmt: skip
    assert brighter > x.mean() + 0.05 and darker < x.mean() - 0.05


def test_normalisation():
    x = images(2)
    assert torch.allclose(normalise(x, "half")[:, 0], x / 127.5 - 1, atol=1e-6)
    found = normalise(x, "imagenet")
    assert found.shape == (2, 3, 32, 32)
    assert torch.allclose(found[:, 2], (x / 255 - 0.406) / 0.225, atol=1e-5)


def test_a_batch():
    dataset = PairDataset([pairs(6)], [None], PLAIN, seed=0)
    found = Collator(tokeniser(), NO_CHANGE, "half")([dataset[i] for i in range(4)])
    assert set(found) == {"pixel_values", "input_ids", "attention_mask", "word_ids"}
    assert found["pixel_values"].shape == (4, 1, 8, 8) and found["pixel_values"].dtype == torch.float32
    numbers = ((found["pixel_values"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    texts = tokeniser().tokenizer.batch_decode(found["input_ids"], skip_special_tokens=True)
    assert numbers == [int(dataset[i]["image"][0, 0]) for i in range(4)]
    assert [t.split()[0] for t in texts] == ["a"] * 4
