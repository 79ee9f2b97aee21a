"""The error tree: what can go wrong, and the exit code each kind ends with.

    SlimError                 1  (never raised itself)
    ├── UsageError            2  a bad option value, a regex that matches nothing
    │   └── MissingExtraError 2  a package of an extra is not installed (names the pip line)
    ├── InputError            3  an unreadable or invalid model, plan or calibration file
    ├── UnsupportedError      4  the model as a whole cannot be treated
    ├── TargetError           5  the target cannot be met
    ├── VerifyError           6  verification failed, or the runtime cannot load the model
    ├── OutputError           7  the output cannot be written
    └── InternalError         8  a broken promise of ours: please report it

Every message is one line: what, where, what to do.
"""

from __future__ import annotations


class SlimError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 1


class UsageError(SlimError, ValueError):
    """An option has a bad value, or names something that does not exist."""

    exit_code = 2


class MissingExtraError(UsageError):
    """A package that an optional extra installs is missing."""


class InputError(SlimError):
    """A model, plan or calibration file is unreadable or invalid."""

    exit_code = 3


class UnsupportedError(SlimError):
    """The model is valid, but cannot be treated as a whole."""

    exit_code = 4


class TargetError(SlimError):
    """The requested target cannot be met."""

    exit_code = 5


class VerifyError(SlimError):
    """Verification failed, or the runtime cannot load the model."""

    exit_code = 6


class OutputError(SlimError):
    """The output cannot be written."""

    exit_code = 7


class InternalError(SlimError):
    """A promise of this package is broken; the message says which."""

    exit_code = 8
