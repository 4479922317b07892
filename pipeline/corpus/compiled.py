"""The only door to numba: a function over numpy arrays, compiled on its first call and kept on disk after that.

The signals of a document are counts over its characters and words; in Python they cost a hundred times more than
reading the text. A compiled function is kept beside its module, or in the user's cache folder where that cannot be
written; where neither can be, each process compiles again, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

from pipeline.progress import log

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function, compiled by numba; arithmetic on uint64 wraps around, indices are not checked."""
    try:
        made: Function = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:  # "cannot cache function: no locator available"
        log.warning(f"{function.__name__}: compiled again in each process; set NUMBA_CACHE_DIR to a folder ({error})")
        made = numba.njit(nogil=True)(function)
    return made
