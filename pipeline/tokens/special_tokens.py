"""A tokenizer directory's special tokens, from whichever of its files names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import DataError


def special_token(folder: Path, name: str) -> str | None:
    """A special token's text (name: `eos_token`, `pad_token`…) from tokenizer_config.json or special_tokens_map.json.

    Raises: DataError when one of these files is not JSON.
    """
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        value = read_mapping(folder / file).get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            return value
    return None


def end_of_text(folder: Path) -> str | None:
    """The token that ends a text: `eos_token`, else the first `eos_token_id` of generation_config.json or config.json.

    Raises: DataError when one of the files is not JSON, or the id is not in the vocabulary.
    """
    named = special_token(folder, "eos_token")
    if named is not None:
        return named
    for file in ("generation_config.json", "config.json"):
        value = read_mapping(folder / file).get("eos_token_id")
        number = value[0] if isinstance(value, list) and value else value
        if isinstance(number, int) and not isinstance(number, bool):
            return _token(folder, number, file)
    return None


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty where there is no such file. Raises: DataError when it is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON mapping ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON mapping ({type(value).__name__})")
    return value


def _token(folder: Path, number: int, file: str) -> str:
    value = read_mapping(folder / "tokenizer.json")
    words = value.get("model", {}).get("vocab", {})
    known = {number: word for number, (word, _) in enumerate(words)} if isinstance(words, list) else {}
    known |= {place: word for word, place in words.items()} if isinstance(words, dict) else {}
    known |= {token["id"]: token["content"] for token in value.get("added_tokens") or []}
    if number not in known:
        raise DataError(f"{folder / file}: its eos_token_id is {number}, which tokenizer.json does not have")
    return str(known[number])
