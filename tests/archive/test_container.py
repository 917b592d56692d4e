from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pytest
import zstandard
from onnx import TensorProto, helper, numpy_helper

from slimline.archive.container import CODECS, MAGIC, VERSION, download, pack, unpack
from slimline.archive.protobuf import varint
from slimline.errors import ArchiveError


def forged(codec: int, size: int, body: bytes, digest: bytes = bytes(32), suffix: bytes = b".onnx") -> bytes:
    """An archive whose checksum is right, whatever else it says."""
    fields = bytes([VERSION, codec]) + varint(len(suffix)) + suffix + varint(size) + varint(len(body)) + digest
    return MAGIC + fields + zlib.crc32(fields + body).to_bytes(4, "little") + body


def body_of(archive: bytes, header: int) -> bytes:
    return archive[header:]


def test_an_onnx_file_comes_back_bit_for_bit_and_smaller_than_zstd(network: bytes) -> None:
    packed = pack(network, ".onnx")
    assert packed.codec == "context mixing"
    assert unpack(packed.data) == (network, ".onnx")
    assert len(packed.data) < 0.9 * len(zstandard.ZstdCompressor(level=19).compress(network))


def test_the_archive_is_near_the_entropy_of_its_own_model(network: bytes) -> None:
    packed = pack(network, ".onnx")
    ideal = sum(packed.sections.values())
    assert 0 < len(packed.data) - packed.header_bytes - ideal < 8  # a range coder ends within two words
    assert packed.above_entropy == pytest.approx(len(packed.data) / ideal - 1)


@pytest.mark.parametrize("payload", [b"", b"x", b"not a model " * 400, bytes(range(256)) * 3, b"\x08\x0a" * 5, np.random.default_rng(0).bytes(5000)])
def test_any_other_file_comes_back_too(payload: bytes) -> None:
    packed = pack(payload, ".tflite")
    assert unpack(packed.data) == (payload, ".tflite")
    assert len(packed.data) <= len(payload) + packed.header_bytes


def odd_tensors() -> dict[str, np.ndarray]:
    import ml_dtypes

    rng = np.random.default_rng(1)
    return {
        "int4 odd count": rng.integers(-8, 8, (3, 7)).astype(ml_dtypes.int4),
        "uint4": rng.integers(0, 16, (5, 8)).astype(ml_dtypes.uint4),
        "int2": rng.integers(-2, 2, (9, 5)).astype(ml_dtypes.int2),
        "uint8 image": rng.integers(0, 256, (4, 4, 5)).astype(np.uint8),
        "uint8 nibbles": (rng.integers(6, 9, (8, 2, 16)) * 17).astype(np.uint8),
        "int64 large": rng.integers(-(2**62), 2**62, 9),
        "int64": np.arange(40),
        "int32 extreme": np.array([-(2**31), 2**31 - 1] * 4, np.int32),
        "int16": rng.integers(-(2**15), 2**15, 33).astype(np.int16),
        "uint16": rng.integers(0, 2**16, 33).astype(np.uint16),
        "float16": rng.normal(size=(3, 50)).astype(np.float16),
        "double": rng.normal(size=70),
        "float special": np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45] * 3, np.float32),
        "float constant": np.full(500, 0.1, np.float32),
        "bfloat16": rng.normal(size=40).astype(ml_dtypes.bfloat16),
        "bool": rng.random(50) > 0.5,
        "empty": np.zeros((0, 4), np.float32),
        "kernel": rng.integers(-20, 20, (6, 4, 3, 3)).astype(np.int8),
        "conv3d": rng.integers(-2, 2, (3, 2, 2, 3, 3)).astype(np.int8),
        "zeros": np.zeros((20, 20), np.int8),
        "lowest": np.full((4, 10), -128, np.int8),
    }


@pytest.mark.parametrize("name", odd_tensors())
def test_every_type_of_tensor_comes_back(name: str) -> None:
    tensor = numpy_helper.from_array(odd_tensors()[name], "w")
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [helper.make_tensor_value_info("y", tensor.data_type, None)], [tensor])
    payload = helper.make_model(graph).SerializeToString(deterministic=True)
    packed = pack(payload, ".onnx")
    assert unpack(packed.data)[0] == payload


def test_odd_graphs_come_back() -> None:
    inner = helper.make_graph([helper.make_node("Neg", ["a"], ["b"])], "then", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])])
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner, name="branch"),
        helper.make_node("Clip", ["y", "", "m"], ["z"], domain="strange"),
        helper.make_node("Loop", [], ["z2", "", "z3"]),
        helper.make_node("Add", ["z", "never made"], ["z"], alpha=1.5, words=["a", "b"], numbers=[-1, 2**62], text="x"),
    ]
    tensor = helper.make_tensor("m", TensorProto.FLOAT, [2], [1.0, 2.0])  # float_data, not raw
    graph = helper.make_graph(
        nodes, "", [helper.make_tensor_value_info("c", TensorProto.BOOL, [])], [], [tensor, helper.make_tensor("", 1, [], [0.5])], doc_string="ü" * 300
    )
    model = helper.make_model(graph)
    model.metadata_props.add(key="k", value="v")
    payload = model.SerializeToString(deterministic=True)
    packed = pack(payload, ".onnx")
    assert packed.codec == "context mixing"
    assert unpack(packed.data)[0] == payload


def test_a_truncated_archive_is_refused_at_every_length(network: bytes) -> None:
    archive = pack(network, ".onnx").data
    for length in range(len(archive)):
        with pytest.raises(ArchiveError):
            unpack(archive[:length])


def test_a_flipped_bit_is_found_wherever_it_is(network: bytes) -> None:
    archive = pack(network, ".onnx").data
    for place in range(len(archive)):
        damaged = bytearray(archive)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ArchiveError):
            unpack(bytes(damaged))


def test_damage_behind_a_right_checksum_is_an_archive_error_too(network: bytes) -> None:
    packed = pack(network, ".onnx")
    body, digest = body_of(packed.data, packed.header_bytes), hashlib.sha256(network).digest()
    assert unpack(forged(3, len(network), body, digest))[0] == network
    for place in range(0, len(body), max(1, len(body) // 16)):
        damaged = bytearray(body)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ArchiveError):
            unpack(forged(3, len(network), bytes(damaged), digest))


@pytest.mark.parametrize("seed", range(40))
def test_noise_behind_a_right_checksum_is_an_archive_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    with pytest.raises(ArchiveError):
        unpack(forged(seed % 4, 5000, rng.bytes(int(rng.integers(0, 200)))))


@pytest.mark.parametrize("codec", range(len(CODECS)))
def test_an_absurd_declared_size_is_refused_before_anything_is_allocated(codec: int) -> None:
    with pytest.raises(ArchiveError, match="declares a file of"):
        unpack(forged(codec, 1 << 60, b"abc"))
    with pytest.raises(ArchiveError, match="at most 100"):
        unpack(forged(codec, 101, b"abc"), limit=100)


def test_an_archive_that_holds_more_than_it_declares_is_refused(network: bytes) -> None:
    packed = pack(network, ".onnx")
    body = body_of(packed.data, packed.header_bytes)
    with pytest.raises(ArchiveError, match="more than it declares"):
        unpack(forged(3, 500, body))
    bomb = zstandard.ZstdCompressor().compress(bytes(10_000_000))
    with pytest.raises(ArchiveError):
        unpack(forged(1, 500, bomb))


def test_another_version_is_named() -> None:
    with pytest.raises(ArchiveError, match="version 9"):
        unpack(MAGIC + bytes([9]) + bytes(60))


def test_a_file_that_is_no_archive_is_named(network: bytes) -> None:
    with pytest.raises(ArchiveError, match="does not begin with SLIM"):
        unpack(network)


def test_the_same_file_gives_the_same_archive(network: bytes) -> None:
    assert pack(network, ".onnx").data == pack(network, ".onnx").data


def test_the_download_is_the_archives_size_and_the_fast_one_is_a_valid_archive_too(network: bytes) -> None:
    exact = download(network)
    assert exact.bytes == len(pack(network, ".onnx").data)
    assert exact.codec == f"slim {VERSION}, context mixing"
    fast = pack(network, ".onnx", fast=True)
    assert fast.codec == "blocks"
    assert unpack(fast.data) == (network, ".onnx")


def test_the_graphs_that_ship_with_the_package_teach_what_graphs_look_like(network: bytes) -> None:
    from slimline.archive.coder import Encoder
    from slimline.archive.graph import Graphs
    from slimline.archive.onnx_file import Graph
    from slimline.archive.prior import prior
    from slimline.archive.tokens import Tokens

    def cost(tokens: Tokens) -> int:
        coder = Encoder()
        Graphs(tokens, len(network)).code(coder, Graph.of(network))
        return len(coder.finish())

    assert cost(prior()) == cost(prior())  # each is a copy: what one learns the next does not know
    assert cost(prior()) < 0.7 * cost(Tokens())


@pytest.mark.parametrize(("bits", "shape"), [(1, (40, 30)), (3, (6, 5, 3, 3)), (1, (7,)), (5, (9, 11))])
def test_codes_in_planes_of_bits_come_back_and_are_coded_as_what_they_are(bits: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    codes = np.where(rng.random(shape) < 0.9, 1, rng.integers(0, 1 << bits, shape)).astype(np.uint8)
    codes[: len(codes) // 2] = 0  # half of the rows hold nothing
    planes = np.stack([np.packbits(codes.ravel() >> b & 1, bitorder="little") for b in range(bits)])[..., None]
    constants = [
        numpy_helper.from_array(planes, "a"),
        numpy_helper.from_array((1 << np.arange(bits, dtype=np.int32)).reshape(bits, 1, 1), "b"),
        numpy_helper.from_array(np.array(shape, np.int64), "c"),
    ]
    nodes = [helper.make_node("Bits", ["a", "b", "c"], ["y"], domain="slimline")]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", TensorProto.INT32, None)], constants)
    payload = helper.make_model(graph).SerializeToString(deterministic=True)
    packed = pack(payload, ".onnx")
    assert unpack(packed.data)[0] == payload
    if codes.size > 1000:
        assert packed.sections["integers"] < 120  # the ones alone take 21 bytes; coded as bytes they take 200
