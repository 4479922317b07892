"""The exceptions that a person may meet, and the exit status of each.

PipelineError             1   a fault: something that should not happen did; the traceback is shown
└── UserError             2   bad input: one clear line that names the thing and what to do, no traceback
    ├── RecipeError           a key, value or combination in a recipe
    ├── DataError             a source, document, tar, label or model directory that cannot be used
    └── EnvironmentFault      the machine: no disk, no Python package, a contradictory launcher
        ├── Fenced            another command has taken the run over
        └── Unfit         4   nodes that preflight calls bad

Stopped                  75  (EX_TEMPFAIL) ended early on purpose; the same command continues
"""

from __future__ import annotations

from pipeline.printable import one_line


class PipelineError(Exception):
    """Root of the tree; raised itself only for faults."""

    status = 1


class UserError(PipelineError):
    """Bad input. The message is one line: what is wrong, where, and what to do.

    It may quote names from corpora that nobody vouches for; what a terminal could act on is shown as an escape.
    """

    status = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


class RecipeError(UserError):
    """A recipe that cannot be run: the message names the file, line, key and value."""


class DataError(UserError):
    """Data that cannot be used: the message names the file and the place in it."""


class EnvironmentFault(UserError):
    """The machine or the launcher is not fit: the message says what was found."""


class Fenced(EnvironmentFault):
    """Another command has taken over what this one works on: it ends, and writes nothing more there."""


class Unfit(EnvironmentFault):
    """A node, or the network between nodes, is bad: the same command may do well on others."""

    status = 4


class Stopped(BaseException):
    """Stopped early, in order; the same command continues from where it is.

    A signal's handler raises it, at any place: as KeyboardInterrupt it is no Exception, lest what is interrupted there
    (a library, a reader of files, logging itself) take it for a fault of its own and go on.
    """

    status = 75
