"""Every exception that Slimline raises on purpose, drawn as a tree.

    SlimlineError
     ├── UsageError            an option or argument that cannot be meant            exit 2
     │    ├── ModelError       the model, or the file that makes it                  exit 2
     │    ├── DataError        the user's data, metric or loss                       exit 2
     │    └── OutputError      the output folder: occupied, full, not writable       exit 2
     ├── UnsupportedSite       an edit that is not legal there (recorded, not fatal)
     ├── UnsupportedFormat     a pair of formats, or a format and a target, that do not go together
     ├── LoweringError         the model could not be lowered to the target          exit 2
     ├── BudgetNotMet          no plan meets the budget; holds the closest           exit 3
     ├── TargetNotInstalled    the runtime is missing; holds the command             exit 5
     ├── ArchiveError          an archive that is damaged, hostile or of another version  exit 2
     ├── SignatureMismatch     files that are not as they were signed                exit 3
     └── JournalError          the journal of an earlier run cannot be continued     exit 2

Callers meet ``SlimlineError`` and nothing foreign. The message is one paragraph
that names the thing, the value and the limit; ``hint`` says what to type next.
"""

from __future__ import annotations

from typing import ClassVar


class SlimlineError(Exception):
    """Base of all errors raised on purpose. ``exit_code`` is the process status that it leads to."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(SlimlineError):
    """An option or argument that cannot be meant."""


class ModelError(UsageError):
    """The model, or the file that makes it, cannot be used as it is."""


class DataError(UsageError):
    """The user's data, metric or loss does not fit the model or the contract."""


class OutputError(UsageError):
    """The output folder is occupied, full or not writable."""


class UnsupportedSite(SlimlineError):
    """An edit that is not legal at this site; the site is listed with the reason and the rest goes on."""


class UnsupportedFormat(SlimlineError):
    """A format that cannot be composed, encoded or executed as asked."""


class LoweringError(SlimlineError):
    """The model could not be lowered to the target; the message names what stops it."""


class BudgetNotMet(SlimlineError):
    """No plan meets the budget. ``closest`` says what came nearest."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "", closest: object = None) -> None:
        super().__init__(message, hint=hint)
        self.closest = closest


class TargetNotInstalled(SlimlineError):
    """The target's runtime is not installed; ``hint`` holds the command that installs it."""

    exit_code = 5


class ArchiveError(SlimlineError):
    """An archive that cannot be unpacked: damaged, made to do harm, or of another version."""


class SignatureMismatch(SlimlineError):
    """Files that are not as they were signed, or that another key signed."""

    exit_code = 3


class JournalError(SlimlineError):
    """A journal that cannot be read or belongs to another job."""
