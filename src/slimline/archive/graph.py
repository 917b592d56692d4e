"""ONNX graphs: what an ONNX file holds but for its tensors' content.

Nodes are coded one after the other as a choice among the kinds of node seen so far (operation, attributes, numbers of inputs
and outputs), and their inputs by where they come from: the last node's output, a new constant. Names of values are left out where
they follow the rule of ``core.short_names``. ``prior`` starts the model with what it learns from a graph that ships with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from slimline.archive.coder import Coder
from slimline.archive.onnx_file import GRAPH, INPUT, MOST, NAME, NODE, OUTPUT, RAW, TENSOR, Graph, Slot
from slimline.archive.protobuf import BYTES, MESSAGES, VARINT, Message, parse, serialize
from slimline.archive.tokens import Tokens
from slimline.core.short_names import short_names
from slimline.errors import ArchiveError

WIDTHS = {
    1: 32,
    2: 8,
    3: 8,
    4: 16,
    5: 16,
    6: 32,
    7: 64,
    9: 8,
    10: 16,
    11: 64,
    12: 32,
    13: 64,
    16: 16,
    21: 4,
    22: 4,
    25: 2,
    26: 2,
}  # bits by TensorProto.DataType
NEW, MADE, LOOSE, WAITING, NONE = range(5)  # how a value is referred to

Relation = tuple[int, ...]


@dataclass
class _Values:
    """Names of values as numbers in order of first appearance, and where each is made."""

    ids: dict[bytes, int] = field(default_factory=dict)
    texts: list[bytes | None] = field(default_factory=list)
    made: dict[int, tuple[int, int]] = field(default_factory=dict)  # node, output
    outputs: list[list[int]] = field(default_factory=list)
    loose: list[int] = field(default_factory=list)  # made by no node so far, the last used first
    waiting: list[int] = field(default_factory=list)  # the same in order of first use, until a tensor or an input takes the name
    uses: dict[int, int] = field(default_factory=dict)
    roles: dict[int, tuple[bytes, int]] = field(default_factory=dict)


class Graphs:
    """The model. One object codes one graph; ``tokens`` may know others."""

    def __init__(self, tokens: Tokens, allowance: int) -> None:
        self.tokens = tokens
        self.left = 4 * allowance + 4096  # what is spelled within a message is counted at each level
        self.content = allowance
        self.values = _Values()
        self.given: list[int] = []  # values that are inputs or outputs, whose names the user knows
        self._label = b""

    def code(self, coder: Coder, graph: Graph | None) -> Graph:
        """The same graph; decoded ones have slots but no content yet.

        Raises:
            ArchiveError: the archive is damaged, or holds more than it declares.
        """
        model = None if graph is None else graph.message
        inner = None if model is None else model.values(*GRAPH)[0]
        assert inner is None or isinstance(inner, Message)
        found = Message("Graph")
        slots: list[Slot] = []
        for key in (NODE, TENSOR, INPUT, OUTPUT):
            given = None if inner is None else inner.values(*key)
            count = self.tokens.number(coder, ("count", key), None if given is None else len(given))
            if count > MOST:
                raise ArchiveError(f"The archive is damaged: its graph has {count:,} entries of a kind.")
            before: tuple[Hashable, ...] = ((), ())
            for index in range(count):
                item = None if given is None else given[index]
                assert item is None or isinstance(item, Message)
                if key == NODE:
                    message, before = self._node(coder, item, before, index)
                elif key == TENSOR:
                    message, before = self._tensor(coder, item, before, slots)
                else:
                    message = self._value(coder, item, key)
                found.fields.setdefault(key, []).append(message)
        rest = self._rest(coder, inner, "Graph", {NODE, TENSOR, INPUT, OUTPUT})
        found.fields |= rest.fields
        self._names(coder)
        self._fill(found)
        whole = self._rest(coder, model, "Model", {GRAPH})
        whole.fields[GRAPH] = [found]
        return Graph(whole, slots)

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ArchiveError("The archive is damaged: it holds more than it declares.")

    def _node(self, coder: Coder, node: Message | None, before: tuple[Hashable, ...], index: int) -> tuple[Message, tuple[Hashable, ...]]:
        kind: tuple[int, int, int, bytes] | None = None
        if node is not None:
            head = Message("Node", {k: v for k, v in node.fields.items() if k[0] > 3})
            kind = (len(node.values(1, BYTES)), len(node.values(2, BYTES)), len(node.values(3, BYTES)), serialize(head))
        kind = self.tokens.choice(coder, (("node", *before), ("node", before[-1]), ("node",)), kind, lambda v: self._kind(coder, v))
        self._spend(len(kind[3]) + 2)
        message = parse(kind[3], "Node")
        operation = message.values(4, BYTES)
        role = operation[0] if operation and isinstance(operation[0], bytes) else b""
        for number, count in ((1, kind[0]), (2, kind[1])):
            last: Relation = ()
            for place in range(count):
                text = None if node is None else node.values(number, BYTES)[place]
                assert text is None or isinstance(text, bytes)
                situation = (number, kind, place) if place < 8 else (number, kind)
                value, last = self._reference(coder, text, (("value", *situation, last), ("value", *situation)), index)
                if value >= 0:
                    self.values.uses[value] = self.values.uses.get(value, 0) + 1
                    if number == 1:
                        self.values.roles.setdefault(value, (role, place))
                    else:
                        self._make(value, index, place)
                message.fields.setdefault((number, BYTES), []).append(value)
        for _ in range(kind[2]):
            given = None if node is None else node.values(3, BYTES)[0]
            assert given is None or isinstance(given, bytes)
            self._label = self.tokens.text(coder, "label", given, like=self._label)
            self._spend(len(self._label))
            message.fields.setdefault((3, BYTES), []).append(self._label)
        return message, (before[-1], kind)

    def _kind(self, coder: Coder, kind: tuple[int, int, int, bytes] | None) -> tuple[int, int, int, bytes]:
        given = None if kind is None else kind[:3]
        counts = [self.tokens.whole(coder, (("arity", i),), None if given is None else given[i]) for i in range(3)]
        if max(counts) > MOST or counts[2] > 1:
            raise ArchiveError("The archive is damaged: a node of its graph has too many inputs, outputs or names.")
        head = self._message(coder, "Node", (), None if kind is None else parse(kind[3], "Node"))
        return counts[0], counts[1], counts[2], serialize(head)

    def _make(self, value: int, index: int, place: int) -> None:
        v = self.values
        v.made[value] = (index, place)
        while len(v.outputs) <= index:
            v.outputs.append([])
        v.outputs[index].append(value)
        if value in v.loose:
            v.loose.remove(value)
        if value in v.waiting:
            v.waiting.remove(value)

    def _reference(self, coder: Coder, text: bytes | None, situations: tuple[Hashable, ...], index: int) -> tuple[int, Relation]:
        """A value's number (-1: no name), and how it was referred to from node ``index``."""
        v = self.values
        relation: Relation | None = None
        if text is not None:
            known = v.ids.get(text) if text else None
            if not text:
                relation = (NONE,)
            elif known is None:
                relation = (NEW,)
            elif known in v.made:
                relation = (MADE, index - v.made[known][0], v.outputs[v.made[known][0]].index(known))
            elif situations[0] in (("take", TENSOR), ("take", INPUT)) and known in v.waiting:
                relation = (WAITING, v.waiting.index(known))
            else:
                relation = (LOOSE, v.loose.index(known))
        relation = self.tokens.choice(coder, situations, relation, lambda r: self._relation(coder, r))
        self._spend(1)
        value = self._resolve(relation, index)
        if relation[0] == NEW:
            v.texts.append(text)
            if text is not None:
                v.ids[text] = value
            v.loose.insert(0, value)
            v.waiting.append(value)
        elif relation[0] == LOOSE:
            v.loose.insert(0, v.loose.pop(relation[1]))
        return value, relation

    def _relation(self, coder: Coder, relation: Relation | None) -> Relation:
        kind = self.tokens.number(coder, "relation", None if relation is None else relation[0])
        length = {MADE: 2, LOOSE: 1, WAITING: 1}.get(kind, 0)
        return (kind, *(self.tokens.number(coder, ("relation", kind, i), None if relation is None else relation[1 + i]) for i in range(length)))

    def _resolve(self, relation: Relation, index: int) -> int:
        v = self.values
        try:
            if relation[0] == NEW:
                return len(v.texts)
            if relation[0] == NONE:
                return -1
            if relation[0] == MADE and index - relation[1] >= 0:
                return v.outputs[index - relation[1]][relation[2]]
            if relation[0] in (LOOSE, WAITING):
                return (v.loose if relation[0] == LOOSE else v.waiting)[relation[1]]
        except IndexError:
            pass
        raise ArchiveError("The archive is damaged: its graph refers to a value that it does not have.")

    def _taken(self, coder: Coder, text: bytes | None, key: tuple[int, int]) -> int:
        """The value whose name a tensor, input or output bears."""
        value, _ = self._reference(coder, text, (("take", key),), len(self.values.outputs))
        if value in self.values.waiting:
            self.values.waiting.remove(value)
        return value

    def _tensor(self, coder: Coder, tensor: Message | None, before: tuple[Hashable, ...], slots: list[Slot]) -> tuple[Message, tuple[Hashable, ...]]:
        names = None if tensor is None else tensor.values(*NAME)
        named = self.tokens.whole(coder, ("named",), None if names is None else len(names))
        if named > 1:
            raise ArchiveError("The archive is damaged: a tensor has several names.")
        text = names[0] if names else None
        assert text is None or isinstance(text, bytes)
        value = self._taken(coder, text, TENSOR) if named else -1
        role = self.values.roles.get(value, (b"", 0))
        given = None if tensor is None else serialize(Message("Tensor", {k: v for k, v in tensor.fields.items() if k not in (NAME, RAW)}))
        situations = (("tensor", role, before[-1]), ("tensor", role))
        head = self.tokens.choice(coder, situations, given, self._spelling(coder, "Tensor", (role,)))
        self._spend(len(head) + 2)
        message = parse(head, "Tensor")
        dims = tuple(d for d in message.values(1, VARINT) if isinstance(d, int))
        kinds = message.values(2, VARINT)
        kind = kinds[0] if kinds and isinstance(kinds[0], int) else 0
        elements = 1
        for d in dims:
            elements = elements * d if d < 1 << 40 and elements < 1 << 40 else 1 << 40
        usual = (elements * WIDTHS.get(kind, 8) + 7) // 8
        raw = None if tensor is None else tensor.values(*RAW)
        state = self.tokens.whole(
            coder, ("raw",), None if raw is None else 0 if not raw else 1 if len(raw) == 1 and isinstance(raw[0], bytes) and len(raw[0]) == usual else 2
        )
        if state:
            length = usual if state == 1 else self.tokens.number(coder, "length", None if not raw or not isinstance(raw[0], bytes) else len(raw[0]))
            self.content -= length
            self._spend(0 if self.content >= 0 else self.left + 1)
            message.fields[RAW] = [b""]
            slots.append(Slot(kind, dims, length, role))
        if named:
            message.fields[NAME] = [value]
        return message, (before[-1], (kind, dims))

    def _value(self, coder: Coder, item: Message | None, key: tuple[int, int]) -> Message:
        """A graph's input or output."""
        names = None if item is None else item.values(1, BYTES)
        named = self.tokens.whole(coder, ("named",), None if names is None else len(names))
        if named > 1:
            raise ArchiveError("The archive is damaged: an input has several names.")
        text = names[0] if names else None
        assert text is None or isinstance(text, bytes)
        value = self._taken(coder, text, key) if named else -1
        message = self._message(coder, "Value", (key,), None if item is None else Message("Value", {k: v for k, v in item.fields.items() if k != (1, BYTES)}))
        if named:
            message.fields[1, BYTES] = [value]
            self.values.uses.pop(value, None)
            if value >= 0 and value not in self.given:
                self.given.append(value)
        return message

    def _rest(self, coder: Coder, message: Message | None, kind: str, without: set[tuple[int, int]]) -> Message:
        return self._message(coder, kind, (), None if message is None else Message(kind, {k: v for k, v in message.fields.items() if k not in without}))

    def _message(self, coder: Coder, kind: str, path: tuple[Hashable, ...], message: Message | None) -> Message:
        """Any message, spelled field by field."""
        tokens = self.tokens
        here = (kind, *path)
        shape = None if message is None else tuple((*k, len(v)) for k, v in sorted(message.fields.items()))
        shape = tokens.choice(coder, (("shape", here), ("shape", kind)), shape, lambda s: self._shape(coder, kind, s))
        found = Message(kind)
        first: Hashable = None
        for number, wire, count in shape:
            self._spend(2 * count)
            values: list[int | bytes | Message] = []
            for place in range(count):
                value = None if message is None else message.fields[number, wire][place]
                where = (kind, number, min(place, 4))
                near = ("near", *path, *where, first, values[-1] if values and not isinstance(values[-1], Message) else None)
                if wire != BYTES:
                    assert value is None or isinstance(value, int)
                    values.append(tokens.whole(coder, (near, where), value))
                elif inner := MESSAGES[kind].get(number):
                    assert value is None or isinstance(value, Message)
                    data = None if value is None else serialize(value)
                    spell = self._spelling(coder, inner, (near,))
                    data = tokens.choice(coder, (near, where), data, spell)
                    values.append(parse(data, inner))
                    self._spend(len(data))
                else:
                    assert value is None or isinstance(value, bytes)
                    text = tokens.string(coder, (near, where), value)
                    values.append(text)
                    self._spend(len(text))
                if first is None and not isinstance(values[-1], Message):
                    first = values[-1]
            found.fields[number, wire] = values
        return found

    def _spelling(self, coder: Coder, kind: str, path: tuple[Hashable, ...]) -> Callable[[bytes | None], bytes]:
        """How a message of a kind is spelled, as bytes."""
        return lambda data: serialize(self._message(coder, kind, path, None if data is None else parse(data, kind)))

    def _shape(self, coder: Coder, kind: str, shape: tuple[tuple[int, int, int], ...] | None) -> tuple[tuple[int, int, int], ...]:
        found: list[tuple[int, int, int]] = []
        count = self.tokens.number(coder, ("fields", kind), None if shape is None else len(shape))
        for i in range(min(count, 1000)):
            a, b, c = (self.tokens.number(coder, ("field", kind, j), None if shape is None else shape[i][j]) for j in range(3))
            if b not in (0, 1, 2, 5) or not 0 < a < 1 << 29 or c > MOST or (found and (a, b) <= found[-1][:2]):
                raise ArchiveError("The archive is damaged: a message of its graph has an impossible field.")
            found.append((a, b, c))
        return tuple(found)

    def _names(self, coder: Coder) -> None:
        """The texts of all values: by the rule, or spelled."""
        v = self.values
        texts = list(v.texts)
        last = b""
        for place, value in enumerate(self.given):
            texts[value] = self.tokens.string(coder, (("given", place), ("given",)), texts[value])
            self._spend(len(texts[value] or b""))
        given = set(self.given)
        ruled = short_names({i: v.uses[i] for i in sorted(v.uses) if i not in given}, {(texts[i] or b"").decode("utf-8", "replace") for i in given})
        for value, text in enumerate(texts):
            if value in given:
                continue
            rule = ruled.get(value, "").encode()
            if not self.tokens.bit(coder, ("by rule",), None if text is None else int(text == rule)):
                last = self.tokens.text(coder, "name", text, like=last)
                texts[value] = last
            else:
                texts[value] = rule
            self._spend(len(texts[value] or b""))
        v.texts = texts

    def _fill(self, graph: Message) -> None:
        """Numbers of values become their names."""

        def text(value: int | bytes | Message) -> bytes:
            assert isinstance(value, int)
            return (self.values.texts[value] or b"") if value >= 0 else b""

        for key, fields in ((NODE, ((1, BYTES), (2, BYTES))), (TENSOR, (NAME,)), (INPUT, ((1, BYTES),)), (OUTPUT, ((1, BYTES),))):
            for item in graph.values(*key):
                assert isinstance(item, Message)
                for name in fields:
                    if name in item.fields:
                        item.fields[name] = [text(x) for x in item.fields[name]]
