"""Bits per byte of general compressors on a text: the yardsticks beside which a language model's are shown.

All read the documents' UTF-8 bytes one after another, in the order in which the model reads them and with nothing
between them: a separator would cost the compressors bits that nobody counts for them. Text is streamed, so memory does
not grow with it (xz -9 keeps a window of 64 MiB and takes about 680 MiB for it).
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

GZIP_HEADER = 16 + zlib.MAX_WBITS  # zlib's own way to ask for the gzip format


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def compressor_bits_per_byte(texts: Iterable[str]) -> dict[str, float]:
    """Bits per byte of `gzip -9`, `xz -9` and an adaptive order-0 model of bytes.

    Args: texts, documents in order.
    Returns: name → bits per byte of text; headers and check sums of the formats are counted.
    Raises: ValueError when there is no text.
    """
    compressors: dict[str, _Compressor] = {
        "gzip -9": zlib.compressobj(9, zlib.DEFLATED, GZIP_HEADER),
        "xz -9": lzma.LZMACompressor(lzma.FORMAT_XZ, preset=9),
    }
    sizes = dict.fromkeys(compressors, 0)
    counts: Counter[int] = Counter()
    for text in texts:
        data = text.encode()
        counts.update(data)
        for name, compressor in compressors.items():
            sizes[name] += len(compressor.compress(data))
    total = counts.total()
    if not total:
        raise ValueError("no text to compress")
    for name, compressor in compressors.items():
        sizes[name] += len(compressor.flush())
    return {name: 8 * size / total for name, size in sizes.items()} | {"order-0 bytes": order_0_bits(counts) / total}


def order_0_bits(counts: Counter[int]) -> float:
    """Code length of a text, in bits, under a model that learns the frequency of each byte value as it reads.

    The model predicts byte b after n bytes by (n_b + 1/2) / (n + 128), the estimator of Krichevsky and Trofimov (1981)
    over 256 symbols. It needs no table beside the text, so the figure is one that a real coder reaches. The product of
    the predictions depends on the final counts n_b alone: Γ(128)/Γ(n+128) · Π Γ(n_b+1/2)/Γ(1/2).
    """
    n = sum(counts.values())
    nats = math.lgamma(n + 128) - math.lgamma(128)
    nats -= sum(math.lgamma(count + 0.5) - math.lgamma(0.5) for count in counts.values())
    return nats / math.log(2)
