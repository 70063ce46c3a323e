"""The Hub's Xet storage in a folder, by hf_xet's own local client, for the Hub of tests/local_hub.py.

huggingface_hub sends weights through hf_xet wherever that is installed, and hf_xet asks the Hub for the storage's address:
local:// and a folder is one that it knows. As on the real Hub, chunks are stored once, and a shard says which Xet hash
belongs to which sha256.
"""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import hf_xet

_HEADER, _ENTRY = 48, 48  # bytes, in a shard: xet_core_structures/src/metadata_shard of xet-core
_VERIFIED, _WITH_SHA256 = 1 << 31, 1 << 30


class XetStorage:
    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"local://{folder}"
        self._session = hf_xet.XetSession()

    def connection(self) -> dict[str, str | int]:
        """What the Hub answers to a client that asks for a token."""
        return {"casUrl": self.url, "accessToken": "xet-token", "exp": int(time.time()) + 3600}

    def find(self, sha256: str) -> str:
        """The Xet hash of a file that has arrived. Raises KeyError."""
        return dict(self._files())[sha256]

    def read(self, sha256: str, size: int) -> bytes:
        target = self.folder / "read"
        with self._session.new_file_download_group(**self._signed_in()) as group:
            group.start_download_file(hf_xet.XetFileInfo(self.find(sha256), size), str(target))
        return target.read_bytes()

    def _signed_in(self) -> dict[str, str | int]:
        found = self.connection()
        return {"endpoint": self.url, "token": found["accessToken"], "token_expiry_unix_secs": found["exp"]}

    def _files(self) -> Iterator[tuple[str, str]]:
        """(sha256, Xet hash) of each file that a shard describes."""
        for shard in self.folder.rglob("shards/*.mdb"):
            data, at = shard.read_bytes(), _HEADER
            while (hashed := data[at : at + 32]) != b"\xff" * 32:
                flags, chunks = struct.unpack_from("<II", data, at + 32)
                at += _ENTRY * (1 + chunks * (2 if flags & _VERIFIED else 1))
                if flags & _WITH_SHA256:
                    yield _hex(data[at : at + 32]), _hex(hashed)
                    at += _ENTRY


def _hex(hashed: bytes) -> str:
    """As hf_xet writes a hash: four numbers of 64 bits, each stored with its lowest byte first."""
    return "".join(f"{part:016x}" for part in struct.unpack("<4Q", hashed))
