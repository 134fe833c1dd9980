"""Text of VLP: cleaning, sentences of a report, word pieces and words (reference: ConVIRT, GLoRIA).

One cleaning for both methods and for prompts, GLoRIA's: a text is cut at enumerators and full stops, lower-case
alphanumeric runs stay. Unlike the published code it keeps decimals ("2.8 cm") whole and never cuts a report short.
"""

import os
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

_ENUMERATOR = re.compile(r"(?:^|(?<=[.:;] ))\d+\.(?= |$)")  # where a sentence starts
_STOP = re.compile(r"\.(?!\d)|(?<!\d)\.")  # no decimal point
_WORD = re.compile(r"\d+\.\d+|[a-z0-9]+")
MAX_KNOWN = 1 << 16  # words whose pieces are kept
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def clean(text: str) -> str:
    """Lower-case alphanumeric words, one blank between them; other characters, and all that are not ASCII, go."""
    return " ".join(_WORD.findall(text.encode("ascii", "ignore").decode().lower()))


def sentences(text: str) -> list[str]:
    """Clean sentences of a section; those of one word are dropped."""
    parts = _STOP.split(_ENUMERATOR.sub(" ", " ".join(text.split())))
    return [s for s in map(clean, parts) if " " in s]


def report_sentences(findings: str, impression: str) -> list[str]:
    """All sentences, the impression first: a whole report that is too long loses its end."""
    return sentences(impression) + sentences(findings)


@dataclass
class TokenBatch:
    """Texts as BERT reads them, all int64 [B, L]. word_ids: 0 [CLS], 1..n the word that a piece belongs to,
    n + 1 [SEP], -1 padding."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    word_ids: torch.Tensor

    def to(self, device) -> "TokenBatch":
        return TokenBatch(**{k: v.to(device) for k, v in vars(self).items()})


class Prompts(NamedTuple):
    """Texts that C classes are asked by. of_class int64 [P]; negative bool [P]; characters int64 [P]: length of the
    text, which GLoRIA's published scorer takes for the number of its words."""

    tokens: TokenBatch
    of_class: torch.Tensor
    negative: torch.Tensor
    characters: torch.Tensor


class Tokeniser:
    """WordPiece as BERT's: of the hub, of a checkpoint's folder, or trained on the training texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        tokenizer.model_max_length = max_tokens
        self.known: dict[str, list[int]] = {}
        vocabulary = tokenizer.get_vocab()
        self.continues = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.bool)
        self.continues[[i for token, i in vocabulary.items() if token.startswith("##")]] = True

    def __len__(self) -> int:
        return len(self.continues)

    @classmethod
    def load(cls, name: str | Path, max_tokens: int | None = None) -> "Tokeniser":
        """From a folder or the hub; max_tokens: None = as saved."""
        complete = (Path(name) / "tokenizer.json").is_file()  # then no other file has to name its class
        tokenizer = (PreTrainedTokenizerFast if complete else AutoTokenizer).from_pretrained(str(name))
        return cls(tokenizer, max_tokens or tokenizer.model_max_length)

    @classmethod
    def train(cls, texts: Iterable[str], size: int, max_tokens: int) -> "Tokeniser":
        """A vocabulary of at most `size` pieces from clean texts: the same texts in any order, the same pieces."""
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loader processes fork
        # The trainer numbers inner letters in the order of a hash map, and ties are broken by number: fix them first.
        inner = [f"##{letter}" for letter in string.ascii_lowercase + string.digits + "."]
        learned = Tokenizer(models.WordPiece())
        learned.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*SPECIAL, *inner], show_progress=False)
        learned.train_from_iterator(sorted(texts), trainer)
        raw = Tokenizer(models.WordPiece(learned.get_vocab(), unk_token="[UNK]"))
        raw.normalizer = normalizers.BertNormalizer(lowercase=True)
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        ends = [(token, raw.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
        return cls(PreTrainedTokenizerFast(tokenizer_object=raw, **names), max_tokens)

    def save(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(str(folder))

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Clean texts -> TokenBatch, padded to the longest, cut at max_tokens."""
        found = [self._ids(text) for text in texts]
        ids = pad_sequence(found, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = (torch.arange(ids.shape[1]) < torch.tensor([len(each) for each in found])[:, None]).long()
        starts = ~self.continues[ids]
        return TokenBatch(ids, mask, (starts.cumsum(1) - 1).masked_fill(mask == 0, -1))

    def _ids(self, text: str) -> torch.Tensor:
        """int64 [L], cut at max_tokens. No piece goes over a space, so each word is cut into pieces once."""
        pieces = [piece for word in text.split() for piece in self._pieces(word)]
        return torch.tensor([self.tokenizer.cls_token_id, *pieces[: self.max_tokens - 2], self.tokenizer.sep_token_id])

    def _pieces(self, word: str) -> list[int]:
        if word not in self.known:
            if len(self.known) == MAX_KNOWN:
                self.known.clear()
            self.known[word] = self.tokenizer.encode(word, add_special_tokens=False)
        return self.known[word]

    def prompts(self, positive: Sequence[str | Sequence[str]], negative: Sequence[str | Sequence[str]] = ()) -> Prompts:
        """One text or a list of texts for each class. ValueError where a class has none."""
        texts, classes, negatives = [], [], []
        for is_negative, group in ((False, positive), (True, negative)):
            for number, some in enumerate(group):
                some = [some] if isinstance(some, str) else list(some)
                if not some or not all(map(clean, some)):
                    raise ValueError(f"class {number} needs a prompt with at least one word, not {some}")
                texts += some
                classes += [number] * len(some)
                negatives += [is_negative] * len(some)
        if negative and len(negative) != len(positive):
            raise ValueError(f"{len(positive)} classes, but negative prompts of {len(negative)}")
        length = torch.tensor([len(t) for t in texts])
        return Prompts(self([clean(t) for t in texts]), torch.tensor(classes), torch.tensor(negatives), length)
