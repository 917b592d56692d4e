"""YAML that remembers its lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from slimline.errors import UsageError

DEEPEST, MOST = 30, 100_000  # far beyond any project file
Where = tuple[str | int, ...]
Lines = Mapping[Where, int]


def read_yaml(path: Path, hint: str) -> tuple[Any, Lines]:
    """The content, and the line (from 1) of every key and item by its path. ``hint``: what to do where there is no such file.

    Raises:
        UsageError: it cannot be read, it is not YAML, or a key is there twice; the message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.yaml")
        ...     _ = file.write_text("models:\\n  net:\\n    task: task.py\\n")
        ...     value, lines = read_yaml(file, "")
        >>> value["models"]["net"]["task"], lines["models", "net", "task"]
        ('task.py', 3)
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"There is no {path}.", hint=hint) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint="It must be a text file in UTF-8.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} cannot be read: {error}.", hint="It must be a text file in UTF-8.") from error
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines: dict[Where, int] = {(): 1}
        if node is None:
            return None, lines
        _walk(node, (), lines, path)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        if isinstance(error, yaml.reader.ReaderError):
            number = text.count("\n", 0, error.position) + 1
            raise UsageError(f"{path}, line {number} holds a character that YAML does not allow: {text[error.position]!r}.", hint="Take it out.") from error
        begun = "simple key" in (getattr(error, "context", None) or "")  # a colon is missing: the line before is meant
        mark = getattr(error, "context_mark" if begun else "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise UsageError(
            f"{path}{line} is not YAML: {getattr(error, 'problem', None) or error}.", hint="Check the indentation and the quotes there."
        ) from error
    finally:
        if loader is not None:
            loader.dispose()


def _walk(node: yaml.Node, where: Where, lines: dict[Where, int], path: Path) -> None:
    if len(where) > DEEPEST or len(lines) > MOST:  # an alias within itself, or aliases of aliases
        raise UsageError(
            f"{path}, line {node.start_mark.line + 1}: more than {DEEPEST} levels, or {MOST:,} keys and items, aliases counted.",
            hint="Write it without aliases.",
        )
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            lines.setdefault((*where, place), item.start_mark.line + 1)
            _walk(item, (*where, place), lines, path)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        merged = []
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                merged.append(value)
                continue
            if key.value in seen:
                raise UsageError(f"{path}, line {line}: {key.value!r} is there already, on line {seen[key.value]}.", hint="Keep one of them.")
            seen[key.value] = line
            lines.setdefault((*where, key.value), line)
            _walk(value, (*where, key.value), lines, path)
        for value in merged:
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                _walk(source, where, lines, path)
