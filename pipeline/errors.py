"""The exceptions that a person may meet, and the exit status of each.

PipelineError             1   a fault: something that should not happen did; the traceback is shown
├── UserError             2   bad input: one clear line that names the thing and what to do, no traceback
│   ├── RecipeError           a key, value or combination in a recipe
│   ├── DataError             a source, document, tar, label or model directory that cannot be used
│   └── EnvironmentFault      the machine: no disk, no Python package, a contradictory launcher
└── Stopped               75  (EX_TEMPFAIL) ended early on purpose; the same command continues
"""

from __future__ import annotations


class PipelineError(Exception):
    """Root of the tree; raised itself only for faults."""

    status = 1


class UserError(PipelineError):
    """Bad input. The message is one line: what is wrong, where, and what to do."""

    status = 2


class RecipeError(UserError):
    """A recipe that cannot be run: the message names the file, line, key and value."""


class DataError(UserError):
    """Data that cannot be used: the message names the file and the place in it."""


class EnvironmentFault(UserError):
    """The machine or the launcher is not fit: the message says what was found."""


class Stopped(PipelineError):
    """Stopped early, in order; the same command continues from where it is."""

    status = 75
