"""The base of everything that reaches disk."""

from __future__ import annotations

import pydantic


class Data(pydantic.BaseModel):
    """Frozen, compared by value, and strict about keys that it does not know.

    Example:
        >>> class Point(Data):
        ...     x: int
        >>> Point(x=1) == Point.model_validate_json('{"x": 1}')
        True
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)
