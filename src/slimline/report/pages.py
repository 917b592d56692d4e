"""Markup, style and script of ``page/``: what every page of ours is made from. What goes in is escaped, and no script runs but the pages' own."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

import jinja2
from markupsafe import Markup


def framed(name: str, **given: object) -> str:
    """A page of ``page/`` inside the frame that the pages beside a report share.

    Example:
        >>> "nothing here" in framed("message.html.j2", title="Gone", text="There is nothing here.")
        True
    """
    script, digest = script_and_digest()
    return template(name).render(script=script, script_digest=digest, style=Markup(file("page.css")) + Markup(file("runs.css")), **given)


@functools.cache
def template(name: str) -> jinja2.Template:
    """A page of ``page/``; everything that goes into it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(file), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["glued"] = glued
    return environment.get_template(name)


def glued(text: str) -> str:
    """Without a break between a number and its unit.

    Example:
        >>> glued("13 % of 11.5 KB").count("\u00a0")
        2
    """
    return re.sub(r"(?<=\d) (?=(?:%|[mµ]?s|[KMGT]?B|points?)(?!\w))", "\u00a0", text)


@functools.cache
def script_and_digest() -> tuple[Markup, str]:
    """The pages' script, and its sha256 as a content policy takes it."""
    script = Markup(file("page.js"))
    return script, base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@functools.cache
def file(name: str) -> str:
    return (resources.files("slimline.report") / "page" / name).read_text(encoding="utf-8")
