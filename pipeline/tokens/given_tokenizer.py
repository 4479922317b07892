"""A tokenizer that others made (GPT-2, Llama, Qwen, BERT, T5…), taken over as it is or with special tokens added."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import disk_errors, write_json, write_text
from pipeline.progress import log
from pipeline.recipe import TokenizerSettings
from pipeline.tokens.chat_template import CHAT_TEMPLATE, PAD, TURN_END, TURN_START
from pipeline.tokens.encode import Encoder, read_tokenizer_json
from pipeline.tokens.special_tokens import end_of_text, read_mapping, special_token

CONFIG, MAP, TEMPLATE = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
# Files of a Hugging Face tokenizer that are taken over; code (.py) never is.
TOKENIZER_FILES = (
    "tokenizer.json",
    CONFIG,
    MAP,
    "added_tokens.json",
    TEMPLATE,
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
# What adding tokens would make wrong: tokenizer.json alone holds them all.
_STALE = ("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt")


def take_over(settings: TokenizerSettings, folder: Path) -> list[Path]:
    """Copy a given tokenizer's files after a look at them; its end-of-text token is written where all look for it.

    Raises: DataError when tokenizer.json is missing or broken, or no token that ends a text is named.
    """
    assert settings.given is not None
    given = Path(settings.given)
    content = read_tokenizer_json(given)
    eos_token = settings.eos_token or end_of_text(given)
    if eos_token is None:
        raise DataError(
            f"{given}: names no eos_token, in none of its files; set tokenizer.eos_token to the token that ends a text"
            f"{_candidates(given)}"
        )
    Encoder(content, eos_token, str(given), fast=False)
    adds = settings.continue_from is not None
    made = []
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)  # of an attempt that was killed
        if (given / name).is_file() and not (adds and name in _STALE):
            with disk_errors(folder / name):
                shutil.copyfile(given / name, folder / name)
            made.append(folder / name)
    if special_token(given, "eos_token") != eos_token:
        made += _name_end_of_text(folder, eos_token)
    if adds:
        made += _add(content, settings.added_tokens, folder, str(given))
    if special_token(folder, "pad_token") is None:
        log.warning(f"{given}: names no pad_token; its eos_token will fill up batches")
    return sorted(set(made))


def _name_end_of_text(folder: Path, eos_token: str) -> list[Path]:
    config = read_mapping(folder / CONFIG) or {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / CONFIG, config | {"eos_token": eos_token})
    names = read_mapping(folder / MAP)
    if "eos_token" in names:  # else it would contradict
        write_json(folder / MAP, names | {"eos_token": eos_token})
    return [folder / CONFIG]


def _add(content: str, tokens: Sequence[str], folder: Path, where: str) -> list[Path]:
    """Write tokenizer.json with special tokens behind the others, and name them in the configuration."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(content)
    before = tokenizer.get_vocab(with_added_tokens=True)
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens])
    after = tokenizer.get_vocab(with_added_tokens=True)
    moved = next((token for token, number in before.items() if after.get(token) != number), None)
    new = [token for token in tokens if token not in before]
    if moved is not None or any(after[token] <= max(before.values()) for token in new):
        raise DataError(f"{where}: no token can be added behind its own, whose ids have gaps; use tokenizer.path")
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    config = read_mapping(folder / CONFIG) or {"tokenizer_class": "PreTrainedTokenizerFast"}
    named = [token["content"] if isinstance(token, dict) else token for token in config.get(_ADDITIONAL) or []]
    config[_ADDITIONAL] = list(dict.fromkeys([*named, *tokens]))
    if config.get("pad_token") is None and PAD in tokens:
        config["pad_token"] = PAD
    decoder = config.get("added_tokens_decoder")  # older configurations list all added tokens, and win
    if isinstance(decoder, dict):
        whole = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        config["added_tokens_decoder"] = decoder | {str(after[token]): {"content": token, **whole} for token in tokens}
    write_json(folder / CONFIG, config)
    made = [folder / "tokenizer.json", folder / CONFIG]
    if {TURN_START, TURN_END} <= set(tokens) and not (folder / TEMPLATE).is_file() and "chat_template" not in config:
        write_text(folder / TEMPLATE, CHAT_TEMPLATE)
        made.append(folder / TEMPLATE)
    log.info(f"tokenizer: {len(new)} special tokens added to {where}: {', '.join(new) or 'it has them all'}")
    return made


_ADDITIONAL = "additional_special_tokens"


def _candidates(given: Path) -> str:
    """Special tokens that may be meant, for the message."""
    added = read_mapping(given / "tokenizer.json").get("added_tokens") or []
    words = [token["content"] for token in added if token.get("special")]
    return f"; its special tokens are {', '.join(words[:10])}" if words else ""
