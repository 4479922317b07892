"""Stage `tokenizer`: a byte-level BPE (Sennrich et al. 2016, Radford et al. 2019) trained on a bounded sample of the
text tars, or a given one taken over; checked on every held-out document; written as a Hugging Face directory.

Ids: `<|endoftext|>` 0 (ends every text, and is the first context), `<|pad|>` 1, `<|im_start|>` 2, `<|im_end|>` 3,
then the 256 bytes, then merges. Any text in any language round-trips. Memory: the sample's different words and their
counts, at most a few times the sample; it does not grow with the corpus.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.corpus.document import Document, utf8_bytes
from pipeline.corpus.text_tars import read_text_tar, text_tars
from pipeline.errors import DataError, PipelineError
from pipeline.files import disk_errors, write_json, write_text
from pipeline.manifest import Manifest, Work
from pipeline.progress import log, progress
from pipeline.recipe import Recipe, TokenizerSettings
from pipeline.tokens.encode import Encoder, read_tokenizer_json, special_token
from pipeline.tokens.sample import sample_documents
from pipeline.tokens.text_sizes import text_bytes
from pipeline.tracking import Tracker

END_OF_TEXT, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, TURN_START, TURN_END)
MIN_PAIR_COUNT = 2  # a pair seen once is no regularity of the language
LONGEST_RUN = 256  # letters, signs or blanks in training text; the trainer's time grows with the length of a word
COMPARED_CHARACTERS = 100_000  # of held-out text on which transformers' reading of the directory is compared with ours
BATCH_CHARACTERS = 1 << 20

_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)" + _WORDS  # character for character as published: gigatoken knows them by that
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# ChatML. What stands between the `generation` marks is what the assistant is trained to say, its end mark included.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Files of a Hugging Face tokenizer that are taken over; code (.py) never is.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Make `tokenizer/`. Raises: DataError (see train, take_over, check)."""
    text = recipe.workdir / "text"
    held_out = text_tars(text, "validation")
    if not held_out:
        raise DataError(
            f"{text}: no held-out text to check the tokenizer on; raise corpus.validation and give two "
            "documents or more (one long text is many with `split: paragraph` in its source)"
        )
    settings = recipe.tokenizer
    counts: dict[str, Any] = {}
    if settings.path:
        files = take_over(Path(settings.path), work.folder)
    else:
        files, counts = train(text_bytes(text, "train"), settings, work.folder)
    encoder = Encoder.open(work.folder)
    checked, metrics = check(encoder, held_out, work.folder, exact=settings.path is None)
    log.info(
        f"tokenizer: {encoder.vocab_size:,} words, {metrics['bytes_per_token']:.2f} bytes/token on held-out text, "
        f"{checked['held_out']['documents']:,} documents encoded and decoded again, with {encoder.engine}"
    )
    return work.finish(
        files, {"vocab_size": encoder.vocab_size, "engine": encoder.engine, **counts, **checked}, metrics
    )


# --- training ------------------------------------------------------------------------------------------------------


def train(sizes: Mapping[Path, float], settings: TokenizerSettings, folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """Train on a sample of text tars and write the directory; returns its files and the counts of the sample.

    sizes: bytes of text in each tar.

    Raises: DataError when the text holds fewer regularities than `vocab_size` words.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if not sizes:
        raise DataError("all text is held out, none is left to train a tokenizer on; lower corpus.validation")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(settings.pretokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    counts = {"sample_bytes": 0, "sample_documents": 0}
    wanted = min(settings.sample_bytes, int(sum(sizes.values())))
    with progress("tokenizer: reading a sample", wanted) as bar:

        def texts() -> Iterator[str]:
            for document in sample_documents(sizes, settings.sample_bytes):
                size = utf8_bytes(document.text)
                counts["sample_bytes"] += size
                counts["sample_documents"] += 1
                bar.advance(size)
                yield cut_long_runs(document.text)

        tokenizer.train_from_iterator(texts(), trainer)
    if (found := tokenizer.get_vocab_size()) < settings.vocab_size:
        raise DataError(
            f"tokenizer.vocab_size is {settings.vocab_size:,}, but the sample of {counts['sample_bytes']:,} bytes of "
            f"text supports at most {found:,} words; set tokenizer.vocab_size={found} or less, or give more text"
        )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "additional_special_tokens": [TURN_START, TURN_END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    }
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(folder / "tokenizer_config.json", config)
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
    return [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")], counts


_RUN = re.compile(rf"[^\W\d_]{{{LONGEST_RUN}}}|[^\w\s]{{{LONGEST_RUN}}}|[^\S\r\n]{{{LONGEST_RUN}}}")


def cut_long_runs(text: str) -> str:
    """Put a line end into runs that are no words of any language (encoded data, rows of signs), every LONGEST_RUN.

    One such run of a megabyte would hold up the trainer for minutes: each merge reads the whole of every word it is in.
    """
    if max(map(len, text.split()), default=0) <= LONGEST_RUN and " " * LONGEST_RUN not in text:
        return text
    return _RUN.sub(r"\g<0>\n", text)


def _pre_tokenizer(name: str) -> Any:
    """The published pre-tokenizer, in the form in which its own tokenizer.json has it."""
    from tokenizers import Regex, pre_tokenizers

    if name == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(Regex({"llama3": LLAMA3, "qwen2": QWEN2}[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# --- taking over ---------------------------------------------------------------------------------------------------


def take_over(given: Path, folder: Path) -> list[Path]:
    """Copy a given tokenizer's files after a look at them.

    Raises: DataError when tokenizer.json is missing or broken, or the folder names no eos_token.
    """
    read_tokenizer_json(given)
    Encoder.open(given, fast=False)
    if special_token(given, "pad_token") is None:
        log.warning(f"{given}: names no pad_token; its eos_token will fill up batches")
    made = []
    for name in TOKENIZER_FILES:
        if (given / name).is_file():
            with disk_errors(folder / name):
                shutil.copyfile(given / name, folder / name)
            made.append(folder / name)
    return made


# --- checking ------------------------------------------------------------------------------------------------------


def check(encoder: Encoder, held_out: list[Path], folder: Path, exact: bool) -> tuple[dict[str, Any], dict[str, float]]:
    """Encode and decode every held-out document, and count.

    exact: a document that does not come back is a fault (our own tokenizers); else it is counted and told (a given one
    may normalise). Returns counts (per source, per language) and metrics (bytes/token).
    Raises: DataError when transformers reads the directory otherwise than we do.
    """
    bytes_by: dict[str, int] = {}
    tokens_by: dict[str, int] = {}
    lossy: list[str] = []
    documents = 0
    with progress("tokenizer: checking held-out text", sum(tar.stat().st_size for tar in held_out)) as bar:
        for batch in _batches(held_out):
            if not documents:
                _compare_with_transformers(encoder, batch, folder)
            rows = encoder.encode([document.text for document in batch])
            for document, row in zip(batch, rows, strict=True):
                size = utf8_bytes(document.text)
                for name in ("all", f"source {document.source}", f"language {document.language or 'unknown'}"):
                    bytes_by[name] = bytes_by.get(name, 0) + size
                    tokens_by[name] = tokens_by.get(name, 0) + len(row)
                if encoder.decode(row) != document.text:
                    lossy.append(document.id)
                documents += 1
                bar.advance(size)
    if lossy and exact:
        raise PipelineError(f"the tokenizer does not give back document {lossy[0]} (and {len(lossy) - 1} more)")
    if lossy:
        log.warning(f"the given tokenizer changes {len(lossy):,} of {documents:,} held-out documents, first {lossy[0]}")
    ratios = {name: bytes_by[name] / max(tokens_by[name], 1) for name in bytes_by}
    counts = {
        "held_out": {"documents": documents, "bytes": bytes_by["all"], "tokens": tokens_by["all"], "lossy": len(lossy)},
        "bytes_per_token": {name: round(ratio, 4) for name, ratio in sorted(ratios.items())},
    }
    metrics = {"bytes_per_token": ratios["all"]}
    metrics |= {f"bytes_per_token.{name[7:]}": ratios[name] for name in sorted(ratios) if name.startswith("source ")}
    return counts, metrics


def _batches(tars: list[Path]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    held = 0
    for tar in tars:
        for document in read_text_tar(tar):
            batch.append(document)
            held += len(document.text)
            if held >= BATCH_CHARACTERS:
                yield batch
                batch, held = [], 0
    if batch:
        yield batch


def _compare_with_transformers(encoder: Encoder, documents: list[Document], folder: Path) -> None:
    """Users load the directory with AutoTokenizer: it must give the ids that the model is trained on."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever goes wrong there, the directory is of no use
        raise DataError(f"{folder}: transformers cannot load this tokenizer ({' '.join(str(error).split())})") from None
    compared = 0
    for document in documents:
        text = document.text[: COMPARED_CHARACTERS - compared]
        compared += len(text)
        theirs = loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if theirs != encoder.reference_ids([text])[0]:
            raise DataError(
                f"{folder}: transformers' {type(loaded).__name__} and tokenizer.json give other ids for document "
                f"{document.id}; correct tokenizer_class in tokenizer_config.json (PreTrainedTokenizerFast reads "
                "tokenizer.json as it is)"
            )
        if compared >= COMPARED_CHARACTERS:
            break
