"""ONNX files taken apart: a graph, and the tensors' content beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from slimline.archive.protobuf import BYTES, Message, NotAMessage, parse, serialize

NODE, TENSOR, INPUT, OUTPUT = (1, BYTES), (5, BYTES), (11, BYTES), (12, BYTES)  # fields of a graph
GRAPH, RAW, NAME = (7, BYTES), (9, BYTES), (8, BYTES)  # of a model, of a tensor
MOST = 200_000  # nodes, tensors, inputs or outputs; larger graphs are not coded as such


@dataclass(frozen=True)
class Slot:
    """A tensor whose content is coded apart. ``role``: the operation and input that first reads it."""

    type: int
    dims: tuple[int, ...]
    length: int
    role: tuple[bytes, int]


@dataclass
class Graph:
    """A model without its tensors' content, and the slots that the content goes into, in the file's order."""

    message: Message
    slots: list[Slot] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, data: bytes) -> Graph:
        """Take an ONNX file apart.

        Raises:
            NotAMessage: it is none, or not written as serializers do.
        """
        message = parse(data, "Model")
        graphs = message.values(*GRAPH)
        if len(graphs) != 1 or not isinstance(graphs[0], Message) or serialize(message) != data:
            raise NotAMessage
        found = cls(message)
        if any(len(v) > MOST for v in graphs[0].fields.values()):
            raise NotAMessage
        for tensor in graphs[0].values(*TENSOR):
            assert isinstance(tensor, Message)
            if len(raw := tensor.values(*RAW)) == 1:
                assert isinstance(raw[0], bytes)
                found.contents.append(raw[0])
        return found

    def bytes(self) -> bytes:
        """The file, with ``contents`` in the slots."""
        (graph,) = self.message.values(*GRAPH)
        assert isinstance(graph, Message)
        contents = iter(self.contents)
        for tensor in graph.values(*TENSOR):
            assert isinstance(tensor, Message)
            if RAW in tensor.fields:
                tensor.fields[RAW] = [next(contents)]
        return serialize(self.message)
