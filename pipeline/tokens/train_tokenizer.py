"""Stage `tokenizer`: a byte-level BPE (Sennrich et al. 2016, Radford et al. 2019) trained on a bounded sample of the
text tars, or a given one taken over; checked on every held-out document; written as a Hugging Face directory.

Ids: `<|endoftext|>` 0 (ends every text, and is the first context), `<|pad|>` 1, `<|im_start|>` 2, `<|im_end|>` 3,
then the 256 bytes, then merges. Any text in any language round-trips. Memory: the sample's different words and their
counts, at most a few times the sample; it does not grow with the corpus.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.corpus.document import utf8_bytes
from pipeline.corpus.text_tars import text_tars
from pipeline.errors import DataError
from pipeline.files import write_json, write_text
from pipeline.manifest import Manifest, Work
from pipeline.memory import peak_resident
from pipeline.progress import log, progress
from pipeline.recipe import Recipe, TokenizerSettings
from pipeline.tokens.chat_template import CHAT_TEMPLATE, END_OF_TEXT, PAD, SPECIAL_TOKENS, TURN_END, TURN_START
from pipeline.tokens.encode import Encoder
from pipeline.tokens.given_tokenizer import take_over
from pipeline.tokens.pre_tokenizers import pre_tokenizer
from pipeline.tokens.sample import sample_documents
from pipeline.tokens.text_sizes import text_bytes
from pipeline.tokens.tokenizer_check import REPORT, check, check_without_text, report
from pipeline.tracking import Tracker

MIN_PAIR_COUNT = 2  # a pair seen once is no regularity of the language
LONGEST_RUN = 256  # letters, signs or blanks in training text; the trainer's time grows with the length of a word


def run(recipe: Recipe, work: Work, tracker: Tracker) -> Manifest:
    """Make `tokenizer/`. Raises: DataError (see train, take_over, check)."""
    settings, text = recipe.tokenizer, recipe.workdir / "text"
    if recipe.only_imports:
        return _without_text(settings, work)
    held_out, training = text_tars(text, "validation"), text_bytes(text, "train")
    if not held_out:
        raise DataError(
            f"{text}: no held-out text to check the tokenizer on; raise corpus.validation and give two "
            "documents or more (one long text is many with `split: paragraph` in its source)"
        )
    counts: dict[str, Any] = {}
    if settings.given:
        files = take_over(settings, work.folder)
    else:
        files, counts = train(training, settings, work.folder)
    encoder = Encoder.open(work.folder)
    checked, metrics = check(encoder, held_out, work.folder, exact=settings.given is None)
    found = report(encoder, checked["bytes_per_token"], held_out, training, settings.compare)
    # Not among the outputs: naming one more tokenizer to compare with must not make a model stale.
    write_json(work.folder / REPORT, found | {"sample": counts.get("sample")})
    metrics["peak_memory_mib"] = peak_resident() / 2**20
    log.info(
        f"tokenizer: {encoder.vocab_size:,} words ({found['use']['unused']:,} not used in "
        f"{found['use']['bytes']:,} bytes of training text), {metrics['bytes_per_token']:.2f} bytes/token on held-out "
        f"text, {checked['held_out']['documents']:,} documents encoded and decoded again, with {encoder.engine}; "
        f"the process has held {metrics['peak_memory_mib']:,.0f} MiB at most"
    )
    return work.finish(files, _counts(encoder) | counts | checked, metrics)


def _without_text(settings: TokenizerSettings, work: Work) -> Manifest:
    """Take over the tokenizer of imported tokens."""
    files = take_over(settings, work.folder)
    encoder = Encoder.open(work.folder)
    check_without_text(encoder, work.folder)
    log.info(f"tokenizer: {encoder.vocab_size:,} words, of {settings.given}; there is no text to measure it on")
    return work.finish(files, _counts(encoder))


def _counts(encoder: Encoder) -> dict[str, Any]:
    return {"vocab_size": encoder.vocab_size, "engine": encoder.engine, "engine_why": encoder.why}


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
    tokenizer.pre_tokenizer = pre_tokenizer(settings.pretokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    counts: dict[str, Any] = {"sample_bytes": 0, "sample_documents": 0, "sample": {}}
    wanted = min(settings.sample_bytes, int(sum(sizes.values())))
    with progress("tokenizer: reading a sample", wanted) as bar:

        def texts() -> Iterator[str]:
            for document in sample_documents(sizes, settings.sample_bytes):
                size = utf8_bytes(document.text)
                counts["sample_bytes"] += size
                counts["sample_documents"] += 1
                languages = counts["sample"].setdefault(document.source, {})
                language = document.language or "unknown"
                languages[language] = languages.get(language, 0) + size
                bar.advance(size)
                yield cut_long_runs(document.text)
            log.info(f"tokenizer: {counts['sample_bytes']:,} bytes are read; learning {settings.vocab_size:,} words")

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
