"""What a finished tokenizer is worth: exact or not, bytes per token by source and language, beside others; its use of
its vocabulary. All but the first goes to tokenizer/report.json, for people and for report.html."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.document import Document, in_batches, utf8_bytes
from pipeline.corpus.text_tars import read_text_tar
from pipeline.errors import DataError, PipelineError
from pipeline.progress import log, progress
from pipeline.tokens.encode import Encoder, read_tokenizer_json
from pipeline.tokens.sample import sample_documents

REPORT = "report.json"
COMPARED_CHARACTERS = 100_000  # of held-out text on which transformers' reading of the directory is compared with ours
BATCH_CHARACTERS = 1 << 20
USE_BYTES = 64 * 1024 * 1024  # of training text in which the uses of each token are counted
SHOWN_TOKENS = 20  # of the rarest, and of those that are never used
# Where there is no text, this is what transformers' reading is compared on.
PROBE = "The 3 quick foxes' naïve plan:\n\tdef f(x): return x ** 2  # 1234567\r\n 道可道，非常道。 🙂 <|endoftext|>"


@dataclass
class Ratios:
    """Bytes and tokens of documents, by `all`, `source …` and `language …`."""

    bytes: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def add(self, document: Document, size: int, tokens: int) -> None:
        for name in ("all", f"source {document.source}", f"language {document.language or 'unknown'}"):
            self.bytes[name] = self.bytes.get(name, 0) + size
            self.tokens[name] = self.tokens.get(name, 0) + tokens

    def __call__(self) -> dict[str, float]:
        """Bytes per token, by name."""
        return {name: self.bytes[name] / max(self.tokens[name], 1) for name in sorted(self.bytes)}


def check(encoder: Encoder, held_out: list[Path], folder: Path, exact: bool) -> tuple[dict[str, Any], dict[str, float]]:
    """Encode and decode every held-out document, and count.

    exact: a document that does not come back is a fault (our own tokenizers); else it is counted and told (a given one
    may normalise). Returns counts (per source, per language) and metrics (bytes/token).
    Raises: DataError when transformers reads the directory otherwise than we do.
    """
    ratios = Ratios()
    lossy: list[str] = []
    documents = 0
    with progress("tokenizer: checking held-out text", sum(tar.stat().st_size for tar in held_out)) as bar:
        for batch in batches(held_out):
            if not documents:
                compare_with_transformers(encoder, batch, folder)
            rows = encoder.encode([document.text for document in batch])
            for document, row in zip(batch, rows, strict=True):
                size = utf8_bytes(document.text)
                ratios.add(document, size, len(row))
                if encoder.decode(row) != document.text:
                    lossy.append(document.id)
                documents += 1
                bar.advance(size)
    if lossy and exact:
        raise PipelineError(f"the tokenizer does not give back document {lossy[0]} (and {len(lossy) - 1} more)")
    if lossy:
        log.warning(f"the given tokenizer changes {len(lossy):,} of {documents:,} held-out documents, first {lossy[0]}")
    found = ratios()
    counts = {
        "held_out": {
            "documents": documents,
            "bytes": ratios.bytes["all"],
            "tokens": ratios.tokens["all"],
            "lossy": len(lossy),
        },
        "bytes_per_token": {name: round(ratio, 4) for name, ratio in found.items()},
    }
    metrics = {"bytes_per_token": found["all"]}
    metrics |= {f"bytes_per_token.{name[7:]}": ratio for name, ratio in found.items() if name.startswith("source ")}
    return counts, metrics


def check_without_text(encoder: Encoder, folder: Path) -> None:
    """Where all tokens are imported: transformers reads the directory as we do. Raises: DataError where it does not."""
    compare_with_transformers(encoder, [Document(PROBE, "(a line of tests)", "")], folder)


def report(
    encoder: Encoder,
    mine: Mapping[str, float],
    held_out: Sequence[Path],
    training: Mapping[Path, float],
    others: Sequence[str],
) -> dict[str, Any]:
    """Bytes per token of this tokenizer (mine) and of others on held-out text, and how it uses its vocabulary.

    training: bytes of text in each training tar. Raises: DataError when another tokenizer cannot be loaded.
    """
    table = [{"tokenizer": "this one", "vocab_size": encoder.vocab_size, "bytes_per_token": dict(mine)}]
    for other in others:
        theirs = Encoder(read_tokenizer_json(Path(other)), None, other)
        ratios = Ratios()
        for batch in batches(held_out):
            _, ends = theirs.encode_batch([document.text for document in batch])
            for document, tokens in zip(batch, np.diff(ends, prepend=0).tolist(), strict=True):
                ratios.add(document, utf8_bytes(document.text), tokens)
        found = {name: round(ratio, 4) for name, ratio in ratios().items()}
        table.append({"tokenizer": other, "vocab_size": theirs.vocab_size, "bytes_per_token": found})
        log.info(f"tokenizer: {other} has {found['all']:.2f} bytes/token on the same text, this one {mine['all']:.2f}")
    return {"held_out_bytes_per_token": table, "use": _use(encoder, sample_documents(training, USE_BYTES))}


def _use(encoder: Encoder, documents: Iterable[Document]) -> dict[str, Any]:
    """How often each token stands in training text: how many never do, and which are the rarest."""
    uses = np.zeros(encoder.vocab_size, dtype=np.int64)
    size = 0
    for batch in in_batches(documents, BATCH_CHARACTERS):
        ids, _ = encoder.encode_batch([document.text for document in batch])
        uses += np.bincount(ids, minlength=encoder.vocab_size)
        size += sum(utf8_bytes(document.text) for document in batch)
    words = {number: word for word, number in encoder.vocabulary().items()}
    ids = np.array(sorted(words))
    unused = ids[uses[ids] == 0]
    order = ids[np.argsort(uses[ids], kind="stable")]
    rarest = list(itertools.islice((one for one in order.tolist() if uses[one]), SHOWN_TOKENS))
    return {
        "bytes": size,
        "tokens": int(uses.sum()),
        "unused": len(unused),
        "unused_first": [_named(encoder, words, one) for one in unused[:SHOWN_TOKENS].tolist()],
        "rarest": [_named(encoder, words, one) | {"uses": int(uses[one])} for one in rarest],
    }


def _named(encoder: Encoder, words: Mapping[int, str], number: int) -> dict[str, Any]:
    return {"id": number, "token": words[number], "text": encoder.decode(np.array([number]))}


def batches(tars: Sequence[Path]) -> Iterator[list[Document]]:
    """The documents of text tars, about a megabyte at a time."""
    return in_batches(itertools.chain.from_iterable(map(read_text_tar, tars)), BATCH_CHARACTERS)


def compare_with_transformers(encoder: Encoder, documents: list[Document], folder: Path) -> None:
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
