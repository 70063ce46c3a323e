"""Refuses to let home folders and access tokens of this machine leave it in a file.

Nothing here writes them into an adapter or export, yet people edit files and paste into prompts and pairs.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from persona.errors import Message, ShareError
from persona.store.workspace import data_root

_TOKEN = rb"hf_[A-Za-z0-9]{20,}"
_CHUNK = 1 << 24  # bytes searched at once
_OVERLAP = 512  # bytes searched again with the next chunk: longer than a token or a usual path


def refuse_secrets(files: Mapping[Path, str], remedy: Message, token: str = "") -> None:
    """Raises ShareError where a file names the home folder or the folder of PERSONA_HOME, or holds an access token.

    files: path → what the error calls it. remedy: what to do, a sentence. token: one in use, of any form.
    """
    folders = {Path.home(): Message("your home folder"), data_root(): Message("the folder of PERSONA_HOME")}
    spellings = {spelling: path for path in folders if path != path.parent for spelling in _spell(path)}
    tokens = [_TOKEN, *([re.escape(token.encode())] if token else [])]
    token_pattern = re.compile(b"|".join(tokens))
    path_pattern = re.compile(b"|".join(re.escape(s) + rb"(?![\w-])" for s in sorted(spellings, key=len, reverse=True)))
    for file, name in files.items():
        for chunk in _read_chunks(file):
            if spellings and (found := path_pattern.search(chunk)):
                path = spellings[found[0]]
                raise ShareError(
                    "{file}: names {what}, {path}, which should not be shared. {remedy}",
                    file=name,
                    what=folders[path],
                    path=path,
                    remedy=remedy,
                )
            if token_pattern.search(chunk):
                raise ShareError(
                    "{file}: holds what looks like an access token. {remedy} Revoke the token at "
                    "https://huggingface.co/settings/tokens if anyone else has seen this file.",
                    file=name,
                    remedy=remedy,
                )


def _spell(path: Path) -> set[bytes]:
    return {text.encode() for text in (str(path), path.as_posix(), json.dumps(str(path))[1:-1])}


def _read_chunks(file: Path) -> Iterator[bytes]:
    tail = b""
    with file.open("rb") as stream:
        while part := stream.read(_CHUNK):
            chunk = tail + part
            yield chunk
            tail = chunk[-_OVERLAP:]
