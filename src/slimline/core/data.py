"""The base of everything that reaches disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pydantic

from slimline.errors import UsageError

SHOWN = 60  # characters of a value in a message


class Data(pydantic.BaseModel):
    """Frozen, compared by value, and strict about keys that it does not know.

    Example:
        >>> class Point(Data):
        ...     x: int
        >>> Point(x=1) == Point.model_validate_json('{"x": 1}')
        True
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)


@contextlib.contextmanager
def checked(what: str, hint: str) -> Iterator[None]:
    """What pydantic refuses in the body is the user's to mend. ``what`` begins the message, the first mistake ends it.

    Raises:
        UsageError: with the first mistake, its place, and the value there.

    Example:
        >>> with checked("This is no point", "Write it like x = 1."):
        ...     pydantic.create_model("Point", x=int)(x="one")
        Traceback (most recent call last):
        slimline.errors.UsageError: This is no point: Input should be a valid integer, unable to parse string as an integer at x (given: 'one'). Write it like x = 1.
    """
    try:
        yield
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its start"
        given = f" (given: {first['input']!r})" if isinstance(first["input"], str | int | float) and len(repr(first["input"])) <= SHOWN else ""
        raise UsageError(f"{what}: {first['msg'].rstrip('.')} at {where}{given}.", hint=hint) from error
