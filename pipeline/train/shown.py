"""Examples as the model will see them, for people to look at before training: ids, pieces, and what is learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

CHARACTERS = 600  # of a text that are printed
PIECES = 24  # tokens that are printed; all are kept


@dataclass(frozen=True)
class Shown:
    """tokens: ids; pieces: what each is decoded to by itself (part of a character: �); learnt: whether its prediction
    counts in the loss; text: all of it, what is learnt between ⟦ and ⟧; more: label, or the target's tokens."""

    tokens: list[int]
    pieces: list[str]
    learnt: list[bool]
    text: str
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any, tokens: Sequence[int], learnt: Sequence[bool], **more: Any) -> Shown:
        """Of a row of tokens."""
        ids = [int(token) for token in tokens]
        mask = [bool(one) for one in learnt]
        text, start = "", 0
        for marked, group in groupby(mask):
            stop = start + len(list(group))
            words = tokenizer.decode(ids[start:stop])
            text += f"⟦{words}⟧" if marked else words
            start = stop
        return cls(ids, pieces_of(tokenizer, ids), mask, text, more)

    @classmethod
    def answered(cls, tokenizer: Any, tokens: Sequence[int], answer: str, **more: Any) -> Shown:
        """Of tokens that are only read; what is learnt stands beside them."""
        found = cls.of(tokenizer, tokens, [False] * len(tokens), **more)
        return cls(found.tokens, found.pieces, found.learnt, f"{found.text} ⟦{answer}⟧", found.more)

    def kept(self) -> dict[str, Any]:
        """As it stands in shown.json."""
        return {"text": self.text, "tokens": self.tokens, "pieces": self.pieces, "learnt": self.learnt, **self.more}

    def lines(self) -> Iterator[str]:
        """As it is printed, shortened: the text, then ids and pieces, what is learnt between ⟦ and ⟧."""
        text = self.text
        if len(text) > CHARACTERS:
            text = text[: CHARACTERS // 2] + " … " + text[-CHARACTERS // 3 :]
        yield f"as the model sees it: {text!r}"
        yield f"  {len(self.tokens):,} tokens: {_row(self.tokens, self.pieces, self.learnt)}"
        if "target_tokens" in self.more:
            target = self.more["target_tokens"]
            learnt = [True] * len(target)
            yield f"  {len(target):,} tokens to learn: {_row(target, self.more['target_pieces'], learnt)}"


def pieces_of(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Each token decoded by itself."""
    return [str(tokenizer.decode([token])) for token in tokens]


def _row(tokens: Sequence[int], pieces: Sequence[str], learnt: Sequence[bool]) -> str:
    words = [
        f"⟦{token} {piece!r}⟧" if marked else f"{token} {piece!r}"
        for token, piece, marked in zip(tokens, pieces, learnt, strict=True)
    ]
    if len(words) > PIECES:  # the end is where answers stand
        words = [*words[: PIECES // 2], "…", *words[-PIECES // 2 :]]
    return ", ".join(words)
