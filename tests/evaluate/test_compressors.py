"""Bits per byte of compressors: against the programs' own formats, and by hand."""

from __future__ import annotations

import gzip
import lzma
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.compressors import compressor_bits_per_byte, order_0_bits

TEXTS = ["a first document\n" * 40, "", "第二篇，用中文寫成。" * 30, "third: " + "xyz" * 100]


def test_sizes_are_those_of_gzip_and_xz_on_the_joined_text() -> None:
    data = "".join(TEXTS).encode()
    found = compressor_bits_per_byte(TEXTS)
    assert found["gzip -9"] == 8 * len(gzip.compress(data, 9, mtime=0)) / len(data)
    assert found["xz -9"] == 8 * len(lzma.compress(data, preset=9)) / len(data)
    assert list(found) == ["gzip -9", "xz -9", "order-0 bytes"]


def test_order_0_of_two_bytes_by_hand() -> None:
    # 'a' first: (0 + 1/2) / 128 = 2^-8. Then 'b': (1/2) / 129, or a second 'a': (3/2) / 129.
    assert order_0_bits(Counter(b"ab")) == pytest.approx(8 + math.log2(258))
    assert order_0_bits(Counter(b"aa")) == pytest.approx(8 + math.log2(86))


@given(st.binary(min_size=1, max_size=60))
def test_order_0_is_the_sum_over_the_bytes_as_they_are_read(data: bytes) -> None:
    bits, seen = 0.0, Counter[int]()
    for n, byte in enumerate(data):
        bits -= math.log2((seen[byte] + 0.5) / (n + 128))
        seen[byte] += 1
    assert order_0_bits(Counter(data)) == pytest.approx(bits)


def test_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no text"):
        compressor_bits_per_byte(["", ""])
