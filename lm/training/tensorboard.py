"""TensorBoard event files without TensorFlow: TFRecord framing around hand-encoded `Event` protobufs.

Field numbers are those of TensorFlow's event.proto, summary.proto and tensor.proto.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

DT_FLOAT, DT_STRING = 1, 7
SESSION_START = 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf wire types


def _crc_table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli's polynomial, bits reversed
        return value

    return tuple(entry(byte) for byte in range(256))


CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Compute the CRC-32C (Castagnoli; RFC 3720, appendix B.4)."""
    # In Python: a few hundred bytes a log line, and no package has to be installed for it.
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """Frame data as one TFRecord: length, masked crc of the length, data, masked crc of the data."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    # TFRecord masks its crcs, so that the crc of data that holds crcs stays meaningful.
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # protobuf writes a negative int64 as its two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, wire: int, payload: bytes) -> bytes:
    size = _varint(len(payload)) if wire == BYTES else b""
    return _varint(number << 3 | wire) + size + payload


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # beyond float32: infinity, as a cast returns
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def scalar_value(tag: str, value: float) -> bytes:
    """Encode one `Summary.Value` with a float32."""
    return _field(1, BYTES, tag.encode()) + _field(2, FIXED32, _float32(value))


def text_value(tag: str, text: str) -> bytes:
    """Encode one `Summary.Value` with a string tensor of shape (1,), marked for TensorBoard's text page."""
    shape = _field(2, BYTES, _field(1, VARINT, _varint(1)))
    tensor = _field(1, VARINT, _varint(DT_STRING)) + _field(2, BYTES, shape)
    tensor += _field(8, BYTES, text.encode(errors="replace"))
    metadata = _field(1, BYTES, _field(1, BYTES, b"text"))
    return _field(1, BYTES, tag.encode()) + _field(8, BYTES, tensor) + _field(9, BYTES, metadata)


def hparams_value(values: Mapping[str, str | float], group: str) -> bytes:
    """Encode one `Summary.Value` with the hyperparameters of a run, for TensorBoard's HParams page; `group`: its trial.

    Field numbers are those of plugin_data.proto of the hparams plugin and of protobuf's struct.proto.
    """

    def entry(name: str, value: str | float) -> bytes:
        held = _field(3, BYTES, value.encode()) if isinstance(value, str) else _field(2, FIXED64, struct.pack("<d", value))
        return _field(1, BYTES, _field(1, BYTES, name.encode()) + _field(2, BYTES, held))

    session = b"".join(entry(*pair) for pair in values.items()) + _field(4, BYTES, group.encode())
    plugin = _field(1, BYTES, b"hparams") + _field(2, BYTES, _field(3, BYTES, session))
    # A tensor must be there, though its value is not read: a float of shape (1,).
    shape = _field(2, BYTES, _field(1, VARINT, _varint(1)))
    tensor = _field(1, VARINT, _varint(DT_FLOAT)) + _field(2, BYTES, shape) + _field(5, FIXED32, _float32(0.0))
    return (
        _field(1, BYTES, b"_hparams_/session_start_info")
        + _field(8, BYTES, tensor)
        + _field(9, BYTES, _field(1, BYTES, plugin))
    )


def event(wall_time: float, step: int, payload: bytes) -> bytes:
    """Encode one `Event`; `payload` is its encoded file_version, summary or session_log field."""
    return _field(1, FIXED64, struct.pack("<d", wall_time)) + _field(2, VARINT, _varint(step)) + payload


class EventFile:
    """A new event file in `folder`, unbuffered: a crash leaves whole records."""

    def __init__(self, folder: Path, start: int = 0):
        """Open the file with a session start, by which TensorBoard hides steps after `start` of earlier files."""
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names; microseconds keep quick restarts in order.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.file = (folder / name).open("ab", buffering=0)
        # Readers take the first record for the version of the format.
        self._add(0, _field(3, BYTES, b"brain.Event:2"))
        self._add(start + 1, _field(7, BYTES, _field(1, VARINT, _varint(SESSION_START))))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add scalars of one step."""
        summary = b"".join(_field(1, BYTES, scalar_value(tag, value)) for tag, value in values.items())
        self._add(step, _field(5, BYTES, summary))

    def text(self, step: int, name: str, text: str) -> None:
        """Add a text, indented: TensorBoard's markdown shows a code block verbatim."""
        block = "\n".join("    " + line for line in text.splitlines())
        self._add(step, _field(5, BYTES, _field(1, BYTES, text_value(name, block))))

    def hparams(self, values: Mapping[str, str | float], group: str) -> None:
        """Add the hyperparameters of a run of a study."""
        self._add(0, _field(5, BYTES, _field(1, BYTES, hparams_value(values, group))))

    def _add(self, step: int, payload: bytes) -> None:
        self.file.write(record(event(time.time(), step, payload)))

    def close(self) -> None:
        """Close the file."""
        self.file.close()
