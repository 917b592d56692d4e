"""What the graph model knows before it sees a file: graphs of the kinds that Slimline writes, which ship with the package.

``graphs.bin`` is those graphs, without names of weights or any content, coded by the model itself starting from nothing; reading it is what teaches the model.
It is part of the decoder, like its code: a change of it is a new version of the archive. ``benchmarks/archive_prior.py`` makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from slimline.archive.coder import Decoder, Encoder
from slimline.archive.graph import Graphs
from slimline.archive.onnx_file import Graph
from slimline.archive.tokens import Tokens

FILE = "graphs.bin"
TRUST = 8  # observations that what was learnt from them counts as, at most
ALLOWANCE = 1 << 20


def prior() -> Tokens:
    """A model of its own that has read the graphs."""
    return _read().copy()


@cache
def _read() -> Tokens:
    tokens = Tokens()
    coder = Decoder(files("slimline.archive").joinpath(FILE).read_bytes())
    for _ in range(tokens.number(coder, "graphs", None)):
        Graphs(tokens, ALLOWANCE).code(coder, None)
    return tokens.trusted(TRUST)


def written(graphs: Iterable[Graph]) -> bytes:
    """The content of ``graphs.bin`` that teaches these graphs."""
    tokens, coder, given = Tokens(), Encoder(), list(graphs)
    tokens.number(coder, "graphs", len(given))
    for graph in given:
        Graphs(tokens, ALLOWANCE).code(coder, graph)
    return coder.finish()
