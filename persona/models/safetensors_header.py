"""The header of a safetensors file, checked before its tensors are looped over or made.

8 bytes: length of the header, little-endian; the header, JSON: {name: {"dtype", "shape", "data_offsets"}, …}; tensors
"""

import json
import struct
from pathlib import Path
from typing import Any

from persona.errors import AdapterError

MAX_HEADER_BYTES = 20_000_000  # a LoRA with MAX_TENSORS has 15 million
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8  # of a LoRA tensor: two, of a convolution four; torch takes d² steps for d of them


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with every value of a key that stands there twice."""


def check_safetensors_header(file: Path) -> None:
    """Raises AdapterError for more tensors, dimensions or bytes of header than an adapter has.

    What is damaged in other ways is left to the safetensors library.
    """
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > file.stat().st_size:
            return
        if length > MAX_HEADER_BYTES:
            raise AdapterError(
                "{file}: a header of {size:,.0f} MB, where {limit:,.0f} MB is the limit. This is no LoRA adapter.",
                file=file.name,
                size=length / 1e6,
                limit=MAX_HEADER_BYTES / 1e6,
            )
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_Pairs)
        except (ValueError, RecursionError):
            return
    if not isinstance(header, _Pairs):
        return
    if len(header) > MAX_TENSORS:
        raise AdapterError(
            "{file}: {count:,} tensors, where {limit:,} is the limit. This is no LoRA adapter.",
            file=file.name,
            count=len(header),
            limit=MAX_TENSORS,
        )
    for key, tensor in header:
        facts = tensor if isinstance(tensor, _Pairs) else ()
        for shape in (value for name, value in facts if name == "shape" and isinstance(value, list)):
            if len(shape) <= MAX_DIMENSIONS:
                continue
            raise AdapterError(
                "{file}: {key} has {count:,} dimensions, where {limit} is the limit. This is no LoRA adapter.",
                file=file.name,
                key=f"{key:.80}",
                count=len(shape),
                limit=MAX_DIMENSIONS,
            )
