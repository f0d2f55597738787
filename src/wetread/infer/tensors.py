"""Messages of the Open Inference Protocol v2: JSON, with tensors inside it or as bytes behind it.

The binary tensor data extension puts a tensor's bytes (little-endian, row by row) behind the JSON, in the order of the
tensors, and says in a header how long the JSON is. Server (`web.inference`) and client (`infer.remote`) share this.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wetread.errors import WetreadError

HEADER = "Inference-Header-Content-Length"
BINARY = "binary_tensor_data"
"""Name of the extension, as a server's metadata lists it."""

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "FP32": np.dtype("<f4"),
}
_MOST_TENSORS = 16
_MOST_AXES = 8

Side = Literal["inputs", "outputs"]


class ProtocolError(WetreadError):
    """A message does not follow the protocol."""


def pack(
    message: Mapping[str, Any], side: Side, tensors: Mapping[str, NDArray[Any]], binary: Collection[str]
) -> tuple[bytes, int | None]:
    """Return a message's body, and the length of its JSON where bytes follow it.

    Parameters
    ----------
    message : mapping
        Everything but the tensors.
    side : {"inputs", "outputs"}
        Where the tensors go.
    tensors : mapping
        Name → bool, uint8 or float32 array.
    binary : collection of str
        The tensors that go as bytes.
    """
    entries, blobs = [], []
    for name, array in tensors.items():
        datatype = next(key for key, dtype in DATATYPES.items() if dtype == array.dtype)
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if name in binary:
            blobs.append(np.ascontiguousarray(array, DATATYPES[datatype]).tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    text = json.dumps({**message, side: entries}, allow_nan=False).encode()
    return b"".join([text, *blobs]), len(text) if blobs else None


def unpack(body: bytes, header: str | None, side: Side) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a message, trusting nothing in it.

    Parameters
    ----------
    body : bytes
    header : str or None
        Value of the header that says how long the JSON is; None: all of it.
    side : {"inputs", "outputs"}
        Where the tensors are.

    Returns
    -------
    message : dict
        The JSON object.
    tensors : dict
        Name → array of the stated shape.

    Raises
    ------
    ProtocolError
        Naming the field that is wrong.
    """
    length = len(body)
    if header is not None:
        if not header.isascii() or not header.isdecimal() or len(header) > 12 or int(header) > len(body):
            raise ProtocolError(f"{HEADER}: {header[:40]!r} is no length within the body of {len(body)} bytes")
        length = int(header)
    try:
        message = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"body: not JSON ({type(error).__name__})") from None
    entries = message.get(side) if isinstance(message, dict) else None
    if not isinstance(entries, list) or not entries or len(entries) > _MOST_TENSORS:
        raise ProtocolError(f"{side}: must be a list of 1 to {_MOST_TENSORS} tensors")
    rest, tensors = memoryview(body)[length:], {}
    for number, entry in enumerate(entries):
        name, array, used = _tensor(entry, f"{side}[{number}]", rest)
        if name in tensors:
            raise ProtocolError(f"{side}[{number}].name: {name!r} is there twice")
        tensors[name], rest = array, rest[used:]
    if len(rest):
        raise ProtocolError(f"body: {len(rest)} bytes more than its tensors have")
    return message, tensors


def _tensor(entry: Any, where: str, rest: memoryview) -> tuple[str, NDArray[Any], int]:
    """Return a tensor's name and values, and how many of the bytes behind the JSON it used."""
    if not isinstance(entry, dict) or not isinstance(name := entry.get("name"), str) or not 0 < len(name) <= 64:
        raise ProtocolError(f"{where}.name: must be a name of 1 to 64 characters")
    shape, datatype = entry.get("shape"), entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise ProtocolError(f"{where}.datatype: {str(datatype)[:40]!r} is not one of {', '.join(DATATYPES)}")
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_AXES
        or not all(type(n) is int and 0 <= n < 2**31 for n in shape)
    ):
        raise ProtocolError(f"{where}.shape: must be a list of at most {_MOST_AXES} whole numbers")
    dtype = DATATYPES[datatype]
    count = int(np.prod(shape, dtype=object)) if shape else 1
    parameters = entry.get("parameters", {})
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        if "data" in entry:
            raise ProtocolError(f"{where}: has both data and binary_data_size; send one of the two")
        if type(size) is not int or size != count * dtype.itemsize or size > len(rest):
            raise ProtocolError(
                f"{where}: binary_data_size {str(size)[:20]} is not the {count * dtype.itemsize} bytes of its shape, "
                f"or more than the {len(rest)} bytes there are"
            )
        raw = np.frombuffer(rest[:size], "u1" if datatype == "BOOL" else dtype)
        if datatype == "BOOL":
            raw = raw != 0
        return name, raw.reshape(shape), size
    return name, _listed(entry.get("data"), datatype, where, count).reshape(shape), 0


def _listed(data: Any, datatype: str, where: str, count: int) -> NDArray[Any]:
    """Return values given as a list, flat or nested, without rounding or wrapping any."""
    if not isinstance(data, list):
        raise ProtocolError(f"{where}.data: must be a list of {count} values")
    try:
        raw = np.asarray(data)
    except ValueError:
        raise ProtocolError(f"{where}.data: lists of different lengths") from None
    kinds = {"BOOL": "bui", "UINT8": "bui", "FP32": "uif"}[datatype]
    if raw.size != count or (count and raw.dtype.kind not in kinds):
        raise ProtocolError(f"{where}.data: must be {count} values of {datatype}, got {raw.size} of {raw.dtype}")
    if not count:
        return np.zeros(0, DATATYPES[datatype])
    if datatype != "FP32" and (raw.min() < 0 or raw.max() > (1 if datatype == "BOOL" else 255)):
        raise ProtocolError(f"{where}.data: values beyond {datatype}")
    with np.errstate(over="ignore"):  # what is no float32 becomes infinite, which the reader of the values refuses
        return raw.ravel().astype(DATATYPES[datatype])
