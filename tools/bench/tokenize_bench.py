"""Text tars to token tars: Headwater's stage beside `tokenizers.encode_batch_fast` and tiktoken, with the same
vocabulary, the same reading and the same writing; what they write must be equal to the last byte.

A third of the text is English (documentation and prose), a third Python, a third Chinese: words of jieba's dictionary
drawn by their frequency, as little Chinese prose lies on every machine. With --input all of it is yours.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure import Contender, Outcome, measure
from texts import Corpus, read_jsonl

BATCH = 1000  # documents handed to the others at a time
_DOCUMENT = 3000  # characters of a Chinese document, about


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    Corpus.add_options(parser)
    parser.add_argument("--vocabulary", type=int, default=32_768, help="words of the tokenizer (default 32,768)")
    parser.add_argument("--threads", type=int, default=1, help="cores for each (default 1)")
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json; else one is trained on the text")


def run(options: argparse.Namespace) -> Outcome:
    """Make the text tars and a tokenizer, measure all, compare what they wrote."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        _prepare(options, folder)
        settings: dict[str, Any] = {"folder": name, "threads": options.threads}
        contenders = [
            Contender("Headwater", "tokenize_bench:ours", settings=settings, threads=options.threads),
            Contender(
                "Headwater, shuffling", "tokenize_bench:ours", settings=settings | {"shuffle": True},
                threads=options.threads,
            ),
            Contender("tokenizers", "tokenize_bench:reference", "tokenizers", settings, options.threads),
            Contender("tiktoken", "tokenize_bench:tiktoken", "tiktoken", settings, options.threads),
        ]  # fmt: skip
        found = [one for one in map(measure, contenders) if one]
        written = {one.name: one.result.pop("sha256") for one in found}
        tokens = {one.name: one.result["tokens"] for one in found}
    truth = written["tokenizers"]
    equal = {name: shas == truth for name, shas in written.items() if "shuffling" not in name}
    lines = [
        f"{found[0].documents:,} documents, {tokens['tokenizers']:,} tokens. Equal to what `tokenizers` gives, to the "
        "last byte of the token tars: "
        + ", ".join(f"{name} {'yes' if same else 'NO'}" for name, same in equal.items()),
    ]
    if len(set(tokens.values())) > 1:
        lines.append(f"The numbers of tokens differ: {tokens}")
    return Outcome(found, "tokenizers", lines, {"equal": equal, "tokens": tokens, "threads": options.threads})


# --- the text and the tokenizer ------------------------------------------------------------------------------------


def _prepare(options: argparse.Namespace, folder: Path) -> None:
    """A finished text/ and tokenizer/, as the stages leave them."""
    from pipeline import stages
    from pipeline.corpus.document import Document
    from pipeline.corpus.text_tars import TextTarWriter
    from pipeline.manifest import Work
    from pipeline.tracking import Tracker

    sizes = {"train": 0, "validation": 0}
    paths: list[Path] = []
    for part, documents in _parts(options, folder):
        with TextTarWriter(folder / "text" / part, "text-00000", 64 << 20) as writer:
            for number, text in enumerate(documents):
                writer.add(f"text-00000-{number:07d}", Document(text, f"text/{number}", "text"))
        paths += writer.paths
        sizes[part] = writer.bytes
    counts = {"text": {part: {"bytes": size} for part, size in sizes.items()}}
    Work("shard", folder / "text", "key", {}, {}).finish(paths, {"sources": counts})
    given = {"path": str(options.tokenizer)} if options.tokenizer else {"vocab_size": options.vocabulary}
    recipe = _recipe(folder, tokenizer=given | {"sample_bytes": 50_000_000})
    (folder / "tokenizer").mkdir()
    stages.load_stage(stages.stages(recipe)["tokenizer"])(
        recipe, Work("tokenizer", folder / "tokenizer", "key", {}, {}), Tracker()
    )


def _parts(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Iterator[str]]]:
    if options.input:
        corpus = Corpus.gather(options, folder)
        texts = (document["text"] for document in read_jsonl(corpus.path))
    else:
        third = argparse.Namespace(**(vars(options) | {"megabytes": options.megabytes / 3}))
        corpus = Corpus.gather(third, folder, ("documentation", "prose"))
        english = (document["text"] for document in read_jsonl(corpus.path))
        random_ = random.Random(options.seed)
        size = options.megabytes / 3 * 1e6
        texts = _in_turn([english, _up_to(size, _python(random_)), _up_to(size, _chinese(random_))])
    yield "validation", itertools.islice(texts, 100)
    yield "train", texts


def _in_turn(sources: list[Iterator[str]]) -> Iterator[str]:
    while sources:
        for source in [*sources]:
            if (text := next(source, None)) is None:
                sources.remove(source)
            else:
                yield text


def _up_to(size: float, texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield text
        size -= len(text.encode())
        if size <= 0:
            return


def _python(random_: random.Random) -> Iterator[str]:
    """Python sources of the standard library and the installed packages; again, lines permuted, when all are used."""
    import site
    import sysconfig

    roots = [Path(sysconfig.get_path("stdlib")), *map(Path, site.getsitepackages())]
    files = sorted({file for root in roots for file in root.rglob("*.py")})
    random_.shuffle(files)
    for turn in itertools.count():
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if 200 <= len(text) <= 100_000:
                lines = text.splitlines(keepends=True)
                yield text if not turn else "".join(random_.sample(lines, len(lines)))


def _chinese(random_: random.Random) -> Iterator[str]:
    import jieba

    words, weights = [], []
    for line in Path(jieba.__file__).with_name("dict.txt").read_text(encoding="utf-8").splitlines():
        word, frequency, _ = line.split(" ")
        words.append(word)
        weights.append(int(frequency))
    totals = list(itertools.accumulate(weights))
    while True:
        drawn = random_.choices(words, cum_weights=totals, k=_DOCUMENT // 2)
        marks = random_.choices(["", "，", "。", "、", "！\n"], [20, 3, 2, 1, 0.3], k=len(drawn))
        yield "".join(itertools.chain.from_iterable(zip(drawn, marks, strict=True)))


def _recipe(folder: Path, **sections: Any) -> Any:
    from pipeline.recipe import Recipe

    return Recipe.model_validate({"workdir": folder, **sections})


# --- contenders ----------------------------------------------------------------------------------------------------


def ours(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The stage."""
    from pipeline import stages
    from pipeline.manifest import Work
    from pipeline.tokens.bpe_tables import read_tables
    from pipeline.tokens.compiled_bpe import CompiledBpe
    from pipeline.tokens.token_tars import read_index
    from pipeline.tracking import Tracker

    for library in ("awkward", "gigatoken", "tokenizers"):  # the stage imports them late, the others' before they begin
        importlib.import_module(library)
    folder, shuffle = Path(settings["folder"]), settings.get("shuffle", False)
    known = json.loads((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")) | {"added_tokens": []}
    if (tables := read_tables(known)) is not None:
        CompiledBpe(tables).encode([b"a"])  # compiled functions are loaded
    recipe = _recipe(folder, tokenize={"workers": settings["threads"], "shuffle": shuffle})
    stage = stages.load_stage(stages.stages(recipe)["tokenize"])
    out = folder / ("tokens-shuffled" if shuffle else "tokens-ours")
    out.mkdir()

    def work() -> dict[str, Any]:
        made = stage(recipe, Work("tokenize", out, "key", {}, {}), Tracker())
        counts, shards = made.counts["train"], list(read_index(out).parts["train"]["text"])
        return _result(counts["bytes"], counts["documents"], shards)

    return work


def reference(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """`tokenizers`, as fast as it goes."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(f"{settings['folder']}/tokenizer/tokenizer.json")
    tokenizer.encode_special_tokens = True

    def encode(texts: list[str]) -> list[list[int]]:
        return [one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return _others(settings, encode, "tokenizers")


def tiktoken(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """tiktoken with the vocabulary and the pattern of the same tokenizer."""
    import tiktoken as library
    from tokenizers.pre_tokenizers import ByteLevel

    from pipeline.tokens.bpe_tables import BYTE_OF

    value = json.loads(Path(settings["folder"], "tokenizer", "tokenizer.json").read_text(encoding="utf-8"))
    pattern = value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    special = {token["content"]: token["id"] for token in value["added_tokens"] if token["special"]}
    assert set(BYTE_OF) == set(ByteLevel.alphabet())
    first = min(number for word, number in value["model"]["vocab"].items() if word not in special)
    ranks = {
        bytes(BYTE_OF[letter] for letter in word): number - first
        for word, number in value["model"]["vocab"].items()
        if word not in special
    }
    encoding = library.Encoding("same", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(texts: list[str]) -> list[list[int]]:
        rows = encoding.encode_ordinary_batch(texts, num_threads=settings["threads"])
        return [[number + first for number in row] for row in rows]

    return _others(settings, encode, "tiktoken")


def _others(
    settings: dict[str, Any], encode: Callable[[list[str]], list[list[int]]], name: str
) -> Callable[[], dict[str, Any]]:
    """The same text tars read and the same token tars written, around another encoder."""
    import numpy as np

    from pipeline.corpus.document import utf8_bytes
    from pipeline.corpus.text_tars import read_text_tar, text_tars
    from pipeline.recipe import TokenizeSettings
    from pipeline.tokens.encode import Encoder
    from pipeline.tokens.token_tars import ShardWriter, token_dtype

    folder, sizes = Path(settings["folder"]), TokenizeSettings()
    known = Encoder.open(folder / "tokenizer", fast=False)
    tars = text_tars(folder / "text", "train")

    def work() -> dict[str, Any]:
        documents = (document.text for tar in tars for document in read_text_tar(tar))
        done = count = 0
        stem = "train/text-00000"
        dtype = token_dtype(known.vocab_size)
        with ShardWriter(folder / f"tokens-{name}", stem, dtype, sizes.shard_tokens, sizes.member_tokens) as writer:
            while texts := list(itertools.islice(documents, BATCH)):
                rows = encode(texts)
                for row in rows:
                    row.append(known.eos_id)
                ends = np.cumsum([len(row) for row in rows])
                ids = np.fromiter(itertools.chain.from_iterable(rows), np.uint32, int(ends[-1]))
                size = sum(map(utf8_bytes, texts))
                writer.add(ids, ends, size)
                done, count = done + size, count + len(texts)
        return _result(done, count, writer.shards)

    return work


def _result(size: int, documents: int, shards: list[Any]) -> dict[str, Any]:
    tokens = sum(shard.tokens for shard in shards)
    return {"bytes": size, "documents": documents, "tokens": tokens, "sha256": [shard.sha256 for shard in shards]}
