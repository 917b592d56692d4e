"""Protocol buffers as trees, without their schema compiled: enough to write the same bytes again.

References:
    Protocol Buffers, "Encoding" (wire format); ``onnx.proto`` for which fields of ONNX hold messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "Opset"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Value", 12: "Value"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor"},
    "Value": {2: "Type"},
    "Type": {1: "TensorType"},
    "TensorType": {2: "Shape"},
    "Shape": {1: "Dimension"},
    "Tensor": {},
    "Opset": {},
    "Dimension": {},
}


class NotAMessage(Exception):
    """These bytes are no message of this kind, or not written as one usually is."""


@dataclass
class Message:
    """Fields by ascending number, each with its wire type and values in order."""

    kind: str
    fields: dict[tuple[int, int], list[int | bytes | Message]] = field(default_factory=dict)

    def values(self, number: int, wire: int) -> list[int | bytes | Message]:
        return self.fields.get((number, wire), [])


def parse(data: bytes, kind: str) -> Message:
    """The message, whose fields must come in ascending order as every serializer writes them.

    Raises:
        NotAMessage: they do not, or this is something else.
    """
    found, at, last = Message(kind), 0, 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number < last or number == 0:
            raise NotAMessage
        last = number
        value: int | bytes | Message
        if wire == VARINT:
            value, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            width = 4 if wire == FIXED32 else 8
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        elif wire == BYTES:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
            inner = MESSAGES[kind].get(number)
            value = parse(value, inner) if inner is not None else value
        else:
            raise NotAMessage
        if at > len(data):
            raise NotAMessage
        found.fields.setdefault((number, wire), []).append(value)
    return found


def serialize(message: Message) -> bytes:
    """Its bytes. ``parse`` of them gives the message again; the other way round is for the caller to check."""
    parts = []
    for (number, wire), values in sorted(message.fields.items()):
        for value in values:
            parts.append(varint(number << 3 | wire))
            if isinstance(value, int):
                parts.append(varint(value) if wire == VARINT else value.to_bytes(4 if wire == FIXED32 else 8, "little"))
            else:
                inner = serialize(value) if isinstance(value, Message) else value
                parts += (varint(len(inner)), inner)
    return b"".join(parts)


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first.

    Example:
        >>> varint(300).hex()
        'ac02'
    """
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise NotAMessage
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
