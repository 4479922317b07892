"""Tiny model directories and text tars for tests of fine-tuning: real formats, made in a second."""

from __future__ import annotations

from pathlib import Path

from pipeline.corpus.document import Document
from pipeline.corpus.text_tars import TextTarWriter
from pipeline.manifest import Work

SPECIAL = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "def add(a, b): return the sum of two numbers, as the user asks the assistant to.\n" * 3


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of some 300 words with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    bpe.train_from_iterator([TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=SPECIAL[0],
        bos_token=SPECIAL[0],
        pad_token=SPECIAL[1],
        extra_special_tokens=list(SPECIAL[2:]),
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)


def write_llama(folder: Path) -> Path:
    """A Llama of 30,000 weights with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    write_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def write_bert(folder: Path) -> Path:
    """An encoder with the same tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    write_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=1,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


SMALL = {"vocab_size": 320, "pad_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
NARROW = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 1}
BART = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
WIDE = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 0}
KINDS: dict[str, dict[str, object]] = {
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "Qwen2ForCausalLM": {**WIDTHS, "num_key_value_heads": 1, "max_position_embeddings": 128},
    "MistralForCausalLM": {**WIDTHS, "num_key_value_heads": 1, "max_position_embeddings": 128},
    "RobertaForMaskedLM": {**WIDTHS, "max_position_embeddings": 130},
    "T5ForConditionalGeneration": NARROW,
    "BartForConditionalGeneration": {**BART, **WIDE, "max_position_embeddings": 128, "forced_eos_token_id": 0},
}


def write_model(folder: Path, kind: str) -> Path:
    """A tiny model of a class of `transformers`, one of KINDS, with the same tokenizer."""
    import torch
    import transformers

    write_tokenizer(folder)
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    model(model.config_class(**SMALL, **KINDS[kind])).save_pretrained(folder)
    return folder


def write_lstm(folder: Path) -> Path:
    """Our recurrent model with the same tokenizer."""
    import torch

    from pipeline.model.lstm import HeadwaterLstmConfig, HeadwaterLstmForCausalLM

    write_tokenizer(folder)
    torch.manual_seed(0)
    config = HeadwaterLstmConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, max_position_embeddings=128, pad_token_id=1, eos_token_id=0
    )
    HeadwaterLstmForCausalLM(config).save_pretrained(folder)
    return folder


def write_text(folder: Path, train: list[Document], validation: list[Document]) -> Path:
    """Text tars as the shard stage leaves them, with a manifest."""
    paths = []
    for part, documents in (("train", train), ("validation", validation)):
        with TextTarWriter(folder / part, "python-00000", 1 << 20) as tar:
            for number, document in enumerate(documents):
                tar.add(f"python-00000-{number:07d}", document)
        paths += tar.paths
    Work("shard", folder, "key", {}, {}).finish(paths)
    return folder


def python_file(package: str, name: str, text: str) -> Document:
    """A document as the source type python_docs makes it."""
    return Document(text, f"{package}/{name}", "python", "code", {"package": package, "path": name})
