"""``model.slim``: any model file in fewer bytes, and the same file again, bit for bit.

The header names everything that a reader needs: magic and version, how the body is coded, the file's suffix, size and
sha256, the body's length, and a crc32 over all of it. The models adapt as they go, so no tables are written; the one that they
start from is part of the decoder (``prior``).
"""

from __future__ import annotations

import hashlib
import lzma
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from slimline.archive.coder import Decoder, Encoder
from slimline.archive.graph import Graphs
from slimline.archive.onnx_file import Graph
from slimline.archive.prior import prior
from slimline.archive.protobuf import NotAMessage, varint
from slimline.archive.tensors import Tensors
from slimline.errors import ArchiveError

MAGIC, VERSION = b"SLIM", 1
LIMIT = 1 << 29  # bytes of a file; unpacking takes up to 16 times as much memory (2-bit weights), of most files three times
Codec = Literal["stored", "zstd", "xz", "context mixing", "blocks"]
CODECS: tuple[Codec, ...] = ("stored", "zstd", "xz", "context mixing", "blocks")
CONTEXTUAL: tuple[Codec, ...] = ("context mixing", "blocks")
LARGE = 5_000_000  # bytes: above, only blocks are fast enough
LARGE_TRIAL = 10_000  # the same where speed matters more than the last percent
ZSTD_LEVEL = 19


@dataclass(frozen=True)
class Packed:
    """An archive and what is in it. ``sections``: ideal bytes under the archive's own model, by part."""

    data: bytes = field(repr=False)
    codec: Codec
    original_bytes: int
    header_bytes: int
    sections: Mapping[str, float]

    @property
    def above_entropy(self) -> float | None:
        """By what share the whole file is larger than the code length of its content under its own model; ``None`` for codecs that say none."""
        ideal = sum(self.sections.values())
        return len(self.data) / ideal - 1 if ideal else None


def pack(payload: bytes, suffix: str, *, fast: bool = False) -> Packed:
    """The smallest archive of a model file, or with ``fast`` a small one. ``suffix``: what its name ends with, ``.onnx``.

    Raises:
        ArchiveError: larger than an archive can hold.

    Example:
        >>> packed = pack(b"weights " * 100, ".bin")
        >>> unpack(packed.data) == (b"weights " * 100, ".bin")
        True
    """
    if len(payload) > LIMIT:
        raise ArchiveError(f"The file has {len(payload):,} bytes; an archive holds at most {LIMIT:,}.")
    bodies: dict[Codec, bytes] = {"stored": payload}
    coders: dict[Codec, Encoder] = {}
    try:
        graph = Graph.of(payload)
    except NotAMessage:
        import zstandard

        bodies["zstd"] = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=False, write_checksum=False).compress(payload)
        if not fast:
            bodies["xz"] = lzma.compress(payload, lzma.FORMAT_RAW, filters=_filters(len(payload)))
    else:
        coders = {name: _encode(graph, len(payload), blocks=name == "blocks") for name in CONTEXTUAL if name == "blocks" or not (fast or len(payload) > LARGE)}
        bodies |= {name: coder.finish() for name, coder in coders.items()}
    codec = min(bodies, key=lambda c: len(bodies[c]))
    header = _header(codec, suffix, payload, bodies[codec])
    sections = {part: bits / 8 for part, bits in coders[codec].ideal().items()} if codec in coders else {}
    return Packed(header + bodies[codec], codec, len(payload), len(header), sections)


@dataclass(frozen=True)
class Download:
    """What has to be downloaded of a model: ``bytes`` of its archive, made by ``codec``."""

    bytes: int
    codec: str
    above_entropy: float | None


def download(payload: bytes, *, exact: bool = True) -> Download:
    """The size of a file's archive.

    ``exact=False``: by the fastest codec that fits; that archive is a valid one too, and at most a few percent larger than the one that ``pack`` writes.

    Example:
        >>> download(bytes(5000)).codec
        'slim 1, zstd'
    """
    packed = pack(payload, ".onnx", fast=not exact and len(payload) > LARGE_TRIAL)
    return Download(len(packed.data), f"slim {VERSION}, {packed.codec}", packed.above_entropy)


def unpack(archive: bytes, limit: int = LIMIT) -> tuple[bytes, str]:
    """The file and its suffix. ``limit``: of bytes that it may have.

    Raises:
        ArchiveError: no archive, another version, damaged, or declaring more than ``limit``.
    """
    codec, suffix, size, digest, body = _read_header(archive)
    limit = min(limit, LARGE) if codec == "context mixing" else limit
    if size > limit:
        raise ArchiveError(f"The archive declares a file of {size:,} bytes; at most {limit:,} are allowed.")
    try:
        payload = _decode(codec, body, size)
    except ArchiveError:
        raise
    except (ValueError, IndexError, OverflowError, NotAMessage, lzma.LZMAError) as error:
        raise ArchiveError("The archive is damaged: its body cannot be decoded.") from error
    if len(payload) != size or hashlib.sha256(payload).digest() != digest:
        raise ArchiveError("The archive is damaged: what it holds does not have the digest that it declares.", hint="Download it again.")
    return payload, suffix


def _filters(size: int) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": max(4096, min(size, 1 << 26))}]


def _header(codec: Codec, suffix: str, payload: bytes, body: bytes) -> bytes:
    name = suffix.encode()
    fields = bytes([VERSION, CODECS.index(codec)]) + varint(len(name)) + name + varint(len(payload)) + varint(len(body)) + hashlib.sha256(payload).digest()
    return MAGIC + fields + zlib.crc32(fields + body).to_bytes(4, "little")


def _read_header(archive: bytes) -> tuple[Codec, str, int, bytes, bytes]:
    """Codec, suffix, size of the file, its digest, and the body."""
    from slimline.archive.protobuf import _varint

    if archive[:4] != MAGIC:
        raise ArchiveError("This is no archive of Slimline's: it does not begin with SLIM.", hint="Give a file that `slimline pack` wrote.")
    if len(archive) > 4 and archive[4] != VERSION:
        raise ArchiveError(f"The archive is of version {archive[4]}; this Slimline reads version {VERSION}.", hint="Unpack it with the version that wrote it.")
    try:
        codec = CODECS[archive[5]]
        length, at = _varint(archive, 6)
        suffix, at = archive[at : at + length].decode("ascii"), at + length
        size, at = _varint(archive, at)
        declared, at = _varint(archive, at)
        digest, crc, body = archive[at : at + 32], archive[at + 32 : at + 36], archive[at + 36 :]
    except (IndexError, NotAMessage, UnicodeDecodeError) as error:
        raise ArchiveError("The archive is damaged: its header is cut off or senseless.", hint="Download it again.") from error
    if len(body) != declared or zlib.crc32(archive[4 : at + 32] + body).to_bytes(4, "little") != crc:
        raise ArchiveError("The archive is damaged: its length or checksum is not the one that it declares.", hint="Download it again.")
    return codec, suffix, size, digest, body


def _encode(graph: Graph, size: int, *, blocks: bool) -> Encoder:
    tokens = prior()
    coder = Encoder()
    with coder.section("graph"):
        coded = Graphs(tokens, size).code(coder, graph)
    Tensors(tokens, blocks=blocks).code(coder, coded.slots, graph.contents)
    return coder


def _decode(codec: Codec, body: bytes, size: int) -> bytes:
    if codec == "stored":
        return body
    if codec == "zstd":
        import zstandard

        try:
            with zstandard.ZstdDecompressor().stream_reader(body) as reader:
                return bytes(reader.read(size + 1))
        except zstandard.ZstdError as error:
            raise ArchiveError("The archive is damaged: its body is no zstd stream.") from error
    if codec == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(size)).decompress(body, size + 1)
    tokens = prior()
    coder = Decoder(body)
    graph = Graphs(tokens, size).code(coder, None)
    graph.contents = Tensors(tokens, blocks=codec == "blocks").code(coder, graph.slots, None)
    return graph.bytes()
