"""A GGUF file that is damaged or lies is refused in a sentence, before anything that it claims is believed."""

import random
import struct

import gguf
import numpy
import pytest

from persona.errors import BaseError
from persona.models import base
from persona.models.gguf_header import check_gguf_header


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", [f"token {n}" for n in range(50)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 50)
    writer.add_string("general.name", "名字")
    writer.add_bool("x.y", True)
    for n in range(5):
        writer.add_tensor(f"blk.{n}.weight", numpy.zeros((4, 32), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def put(tmp_path):
    def write(data: bytes):
        path = tmp_path / "x.gguf"
        path.write_bytes(data)
        return path

    return write


def is_refused(path) -> bool:
    """Whether the header is refused; any other error than a BaseError fails the test."""
    try:
        check_gguf_header(path)
    except BaseError as e:
        assert "Download it again" in str(e)
        return True
    return False


def test_a_whole_file_passes(put, whole):
    assert not is_refused(put(whole))


def test_a_file_cut_anywhere_in_its_header_is_refused(put, whole):
    header = whole.index(b"blk.4.weight")
    assert all(is_refused(put(whole[: header * n // 64])) for n in range(64))


def test_changed_bytes_pass_or_are_refused(put, whole):
    draw = random.Random(1)
    refused = 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data) // 2)] = draw.choice([0, 1, 9, 255, draw.randrange(256)])
        refused += is_refused(put(bytes(data)))
    assert 0 < refused < 500


HUGE = 2**40
LIES = {
    "tensors": (struct.pack("<IQQ", 3, HUGE, 0), "1,099,511,627,776 tensors, where 100,000 is the limit"),
    "values": (struct.pack("<IQQ", 3, 0, 2**64 - 1), "values, where 10,000 is the limit"),
    "key": (struct.pack("<IQQQ", 3, 0, 1, HUGE), "a name of 1,099,511,627,776 bytes, where 65,535 is the limit"),
    "text": (struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IQ", 8, HUGE), "only 0 are there"),
    "array": (struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, HUGE), "only 0 are there"),
    "texts": (struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, HUGE), "only 0 are there"),
    "nested": (struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1), "a value of type 9"),
    "type": (struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 200), "a value of type 200"),
    "dimensions": (struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<I", 2**31), "dimensions, where 4 is"),
    "dimension": (struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<IQ", 1, HUGE), "1,000,000,000 is the limit"),
    "version": (struct.pack("<IQQ", 99, 0, 0), "its version is 99"),
    "short": (b"", "only 0 are there"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_lying_header_is_refused_in_words(name, put, home):
    data, words = LIES[name]
    with pytest.raises(BaseError, match=words):
        base.resolve_base(str(put(b"GGUF" + data)))


def test_what_is_no_gguf_is_refused_in_words(put, home):
    for data in (b"", b"X", b"PK\3\4" + b"x" * 100):
        with pytest.raises(BaseError, match=r"x\.gguf: this GGUF cannot be opened: it (is empty|does not begin)"):
            base.resolve_base(str(put(data)))


@pytest.mark.slow
def test_what_the_header_does_not_show_is_a_sentence_too(put, home, whole):
    with pytest.raises(BaseError, match=r"x\.gguf: this GGUF cannot be opened"):
        base.resolve_base(str(put(whole)))
