"""The stream is Tink's, to the bit: Tink reads what is written here, and what Tink wrote is read here."""

from __future__ import annotations

import io
from typing import Any

import pytest
from fedlora.files.streaming_aead import (
    HEADER_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES,
    StreamError,
    StreamWriter,
    plain_bytes,
    read_stream,
)

KEY, ASSOCIATED = bytes(range(32)), b"what it is bound to"
FIRST, NEXT = SEGMENT_BYTES - HEADER_BYTES - TAG_BYTES, SEGMENT_BYTES - TAG_BYTES  # bytes of content in a segment
SIZES = (0, 1, 1000, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT, FIRST + NEXT + 1, FIRST + 2 * NEXT)
# tink 1.16.1, AesGcmHkdfStreamingKey of KEY, segments of 1 MiB, associated data ASSOCIATED: the seven bytes "adapter".
BY_TINK = (
    "28c7635afe5c3e205c2aa6db4d72d1db4a5e93e7c458dcb32b592ca7de2b51f3"
    "f8c7244d62ab6ade3bc26af030e0e72b96ba009fa16e906ad5fbbbec137118"
)


def content_of(size: int) -> bytes:
    return bytes(i * 31 % 251 for i in range(min(size, 5000))) + b"x" * max(0, size - 5000)


def written(content: bytes, parts: int = 1, associated: bytes = ASSOCIATED) -> bytes:
    file = io.BytesIO()
    stream = StreamWriter(file, KEY, associated)
    step = -(-len(content) // parts) or 1
    for begin in range(0, len(content), step):
        stream.write(content[begin : begin + step])
    assert stream.tell() == len(content)
    stream.finish()
    return file.getvalue()


def read(stream: bytes, key: bytes = KEY, associated: bytes = ASSOCIATED) -> bytes:
    return b"".join(bytes(part) for part in read_stream(io.BytesIO(stream), len(stream), key, associated))


@pytest.fixture(scope="module")
def tink() -> Any:
    """Tink's own primitive over the same key."""
    pytest.importorskip("tink", reason="not installed: pip install fedlora[dev]")
    from tink import proto_keyset_format, secret_key_access, streaming_aead
    from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

    streaming_aead.register()
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(
        version=0,
        key_value=KEY,
        params=aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
            ciphertext_segment_size=1 << 20, derived_key_size=32, hkdf_hash_type=common_pb2.SHA256
        ),
    )
    data = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
        value=key.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    of_key = tink_pb2.Keyset.Key(key_data=data, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW)
    keyset = tink_pb2.Keyset(primary_key_id=1, key=[of_key])
    handle = proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


class KeptOpen(io.BytesIO):
    """Tink closes what it writes to."""

    def close(self) -> None:
        pass


@pytest.mark.parametrize("size", SIZES)
def test_tink_reads_what_is_written_here(tink: Any, size: int) -> None:
    stream = written(content_of(size))
    with tink.new_decrypting_stream(io.BytesIO(stream), ASSOCIATED) as plain:
        assert plain.read() == content_of(size)


@pytest.mark.parametrize("size", SIZES)
def test_what_tink_writes_is_read_here(tink: Any, size: int) -> None:
    file = KeptOpen()
    with tink.new_encrypting_stream(file, ASSOCIATED) as stream:
        stream.write(content_of(size))
    assert plain_bytes(len(file.getvalue())) == size
    assert read(file.getvalue()) == content_of(size)


def test_what_tink_once_wrote_is_read_here() -> None:
    assert read(bytes.fromhex(BY_TINK)) == b"adapter"


@pytest.mark.parametrize("size", SIZES)
def test_its_size_tells_that_of_the_content(size: int) -> None:
    stream = written(content_of(size), parts=7)
    assert plain_bytes(len(stream)) == size
    assert read(stream) == content_of(size)


@pytest.mark.parametrize("size", [0, 55, SEGMENT_BYTES + 1, SEGMENT_BYTES + TAG_BYTES])
def test_no_stream_has_such_a_size(size: int) -> None:
    with pytest.raises(StreamError):
        plain_bytes(size)


def test_one_content_is_never_encrypted_twice_to_the_same() -> None:
    first, second = written(b"adapter"), written(b"adapter")
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:] and first[:HEADER_BYTES] != second[:HEADER_BYTES]


def test_another_key_and_other_associated_data_open_nothing() -> None:
    stream = written(b"adapter")
    for key, associated in ((bytes(32), ASSOCIATED), (KEY, ASSOCIATED + b"!"), (KEY, b"")):
        with pytest.raises(StreamError):
            read(stream, key, associated)


def test_no_segment_is_moved_left_out_or_repeated() -> None:
    stream = written(content_of(FIRST + 2 * NEXT))
    first, second, third = (stream[n * SEGMENT_BYTES : (n + 1) * SEGMENT_BYTES] for n in range(3))
    for wrong in (
        first + third + second,
        first + third,
        first + second,
        first,
        first + second + second,
        second + third,
    ):
        with pytest.raises(StreamError):
            read(wrong)
