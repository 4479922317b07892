"""What each character is, as bits, for all of Unicode at once: one table that the compiled functions look into."""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import numpy.typing as npt

SPACE = 1  # str.isspace
LETTER = 2  # str.isalpha
ALPHANUMERIC = 4  # str.isalnum
UPPER = 8
LOWER = 16
SYMBOL = 32  # punctuation and symbols (general categories P and S): a word of these alone is no word
SENTENCE_END = 64  # Unicode's property Sentence_Terminal
DIGIT = 128  # 0 to 9
EDGE = 256  # split off from a word's beginning or end, wherever it stands
QUOTE = 512
HYPHEN = 1024
ICON = 2048  # other symbols (category So): split off anywhere
CURRENCY = 4096
UNSPACED = 8192  # of a script written without spaces

_ENTRIES = 0x110000
_NAMED = 0x33480  # no letter, digit, space or symbol lies above it
_SENTENCE_END = (  # Sentence_Terminal in PropList.txt of Unicode 16, as code points and inclusive ranges
    "21,2e,3f,589,61d-61f,6d4,700-702,7f9,837,839,83d-83e,964-965,104a-104b,1362,1367-1368,166e,1735-1736,17d4-17d6,"
    "17d9-17da,1803,1809,1944-1945,1aa8-1aab,1b5a-1b5b,1b5e-1b5f,1b7d-1b7e,1c3b-1c3c,1c7e-1c7f,203c-203d,2047-2049,"
    "2e2e,2e3c,2e53-2e54,3002,a4ff,a60e-a60f,a6f3,a6f7,a876-a877,a8ce-a8cf,a92f,a9c8-a9c9,aa5d-aa5f,aaf0-aaf1,abeb,"
    "fe52,fe56-fe57,ff01,ff0e,ff1f,ff61,10a56-10a57,10f55-10f59,10f86-10f89,11047-11048,110be-110c1,11141-11143,"
    "111c5-111c6,111cd,111de-111df,11238-11239,1123b-1123c,112a9,1144b-1144c,115c2-115c3,115c9-115d7,11641-11642,"
    "1173c-1173e,11944,11946,11a42-11a43,11a9b-11a9c,11c41-11c42,11ef7-11ef8,11f43-11f44,16a6e-16a6f,16af5,"
    "16b37-16b38,16b44,16e98,1bc9f,1da88"
)
_UNSPACED = (  # half-open
    (0x0E00, 0x0F00),  # Thai, Lao
    (0x1000, 0x10A0),  # Burmese
    (0x1780, 0x1800),  # Khmer
    (0x3040, 0x3100),  # hiragana, katakana
    (0x3400, 0x4DC0),  # Han, extension A
    (0x4E00, 0xA000),  # Han
    (0xF900, 0xFB00),  # Han, compatibility
    (0x20000, 0x323B0),  # Han, extensions B to H
)
_QUOTES = "'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉"
_EDGES = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪—–" + _QUOTES
_HYPHENS = "-–—~"


@functools.cache
def character_table() -> npt.NDArray[np.uint16]:
    """Bits of each code point, (0x110000,)."""
    table = np.zeros(_ENTRIES, np.uint16)
    for code in range(_NAMED):
        character = chr(code)
        category = unicodedata.category(character)
        bits = 0
        if category[0] == "L" or category[0] == "N":
            bits |= LETTER * character.isalpha() | ALPHANUMERIC * character.isalnum()
            bits |= UPPER * character.isupper() | LOWER * character.islower()
        elif category[0] in "PS":
            bits |= SYMBOL | ICON * (category == "So") | CURRENCY * (category == "Sc")
        if character.isspace():
            bits |= SPACE
        table[code] = bits
    for low, high in _UNSPACED:
        table[low:high] |= UNSPACED
    for part in _SENTENCE_END.split(","):
        first, _, last = part.partition("-")
        table[int(first, 16) : int(last or first, 16) + 1] |= SENTENCE_END
    for characters, bit in ((_EDGES, EDGE), (_QUOTES, QUOTE), (_HYPHENS, HYPHEN), ("0123456789", DIGIT)):
        table[[ord(character) for character in characters]] |= bit
    return table


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The text's code points; it has no lone surrogates (normalize.py saw to that)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
