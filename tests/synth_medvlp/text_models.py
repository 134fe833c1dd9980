"""Tiny random checkpoints of the formats that read and write reports: DeBERTa as RaTE-NER, Llama."""

import torch
from report_requests import REPORTS

from synth_medvlp import train_writer
from synth_medvlp.lexicon import TYPES


def tiny_deberta(folder):
    """A tiny random DeBERTa-v2 token classifier with RaTE-NER's labels and a word-piece-like tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import DebertaV2Config, DebertaV2ForTokenClassification, PreTrainedTokenizerFast

    letters = [chr(c) for c in range(33, 127)]
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "\u2581", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    labels = ["O", *(f"{p}-{kind}" for kind in TYPES for p in "BI")]
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=512, id2label=dict(enumerate(labels)), label2id={k: i for i, k in enumerate(labels)},
        relative_attention=True, pos_att_type=["p2c", "c2p"], pad_token_id=0,
    )  # fmt: skip
    DebertaV2ForTokenClassification(config).save_pretrained(folder)
    return folder


def tiny_llama(folder, form="chat"):
    """A Llama with a chat template, or (plain) in the small writer's form, untaught."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_writer.train_tokenizer([text for report in REPORTS for text in report], 400)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=4096, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    if form == "chat":
        tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
