"""Bases that cannot be had: each reason its own sentence, with the way out. Against a Hub on this machine."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cases import check_each
from local_hub import ANN, OLD, Hub

from persona.errors import BaseError
from persona.models import base

PROJECT = Path(__file__).resolve().parent.parent
ASK = """
import json, os, sys
from persona.models import base
said = {}
for case, (name, token) in json.loads(sys.argv[1]).items():
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        said["checked: " + case] = str(base.check_base(name))
    except base.BaseError as e:
        said["checked: " + case] = f"BaseError: {e}"
    try:
        told = []
        found = base.resolve_base(name, told.append)
        said[case] = " | ".join([found.id, found.licence_url, *map(str, told)])
    except base.BaseError as e:
        said[case] = f"BaseError: {e}"
print(json.dumps(said))
"""
CASES = {
    "gated, not logged in": ("ben/gated", "", r"ben/gated is gated: accept its licence on https://huggingface\.co/ben/gated, then log in"),
    "gated, not let in": ("ben/gated", ANN, r"ben/gated is gated, and your account has no access yet\. Ask for it on"),
    "not there, not logged in": ("ben/nothing", "", r"ben/nothing: not on the Hub, or private: not seen without logging in \(hf auth login\)\. Check the name"),
    "another name": ("google/gemma-3n-4b-it", ANN, r"google/gemma-3n-4b-it: not on .*\. Did you mean google/gemma-3n-E4B-it\? Without"),
    "not there": ("ben/nothing", ANN, r"ben/nothing: not on the Hub, or private: not seen with your account\. Check"),
    "private": ("ben/private", ANN, r"ben/private: not on the Hub, or private"),
    "a token that has expired": ("ben/open", OLD, r"ben/open: the Hub refuses your token\. Log in again: hf auth login"),
    "pickles": ("ben/pickles", "", r"ben/pickles: has no safetensors weights; pickled ones are not opened"),
    "open": ("ben/open", "", r"^ben/open \| https://huggingface.co/ben/open \| Downloading ben/open from the Hub \(0 MB\) …$"),
    "renamed": ("ben/old", "", r"^ben/old \| https://huggingface.co/ben/open .*\| ben/old has been renamed on the Hub: it is ben/open now\.$"),
    "renamed and gated": ("ben/old-gated", "", r"ben/old-gated is gated: accept its licence on https://huggingface\.co/ben/old-gated"),
    "the Hub is not well": ("ben/broken", "", r"ben/broken: the Hub answers with an error \(500\)\. Try again later"),
    "forbidden": ("ben/forbidden", ANN, r"ben/forbidden: not on the Hub, or private: not seen with your account"),
}  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """What resolve_base says of each, in a process that may ask this Hub: offline is decided at import."""
    model = {"config.json": b"{}", "model.safetensors": b"x"}
    with Hub() as hub:
        hub.add("ben/open", model)
        hub.add("ben/gated", model)
        hub.add("ben/private", model, private=True)
        hub.add("ben/pickles", {"config.json": b"{}", "pytorch_model.bin": b"x"})
        hub.gated.add("ben/gated")
        hub.fail("ben/forbidden", 99, 403)
        hub.fail("ben/broken", 99, 500)
        hub.renamed = {"ben/old-gated": "ben/gated", "ben/old": "ben/open"}
        folder = tmp_path_factory.mktemp("hub")
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder),
               "HF_HUB_CACHE": str(folder / "hub"), "PERSONA_HOME": str(folder), "PYTHONPATH": str(PROJECT)}  # fmt: skip
        asked = json.dumps({case: what[:2] for case, what in CASES.items()})
        done = subprocess.run([sys.executable, "-c", ASK, asked], env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    assert ANN not in done.stdout + done.stderr and OLD not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_each_reason_has_a_sentence(said):
    def check(case):
        assert re.search(CASES[case][2], said[case]), said[case]
        assert case in ("open", "renamed") or "embedded base" in said[case] or case == "pickles"

    check_each(list(CASES), check)


@pytest.mark.slow
def test_a_check_refuses_the_same_before_anything_is_downloaded(said):
    """But for what only the files show, and a Hub that is not well, which may be well when the run starts."""
    passed = {
        "open": "", "renamed": "", "pickles": "",
        "the Hub is not well": "ben/broken: not on this machine, and the Hub cannot be asked now",
    }  # fmt: skip

    def check(case):
        checked = said["checked: " + case]
        assert checked == said[case] if case not in passed else checked.startswith(passed[case]), checked
        assert checked.startswith("BaseError") == (case not in passed)

    check_each(list(CASES), check)


@pytest.mark.parametrize(
    "code, why", [(errno.EACCES, "no permission to write here"), (errno.ENOSPC, "the disk is full")]
)
def test_a_cache_that_cannot_be_written_is_not_a_lost_connection(monkeypatch, code, why):
    def full(*_, **__):
        raise OSError(code, os.strerror(code), "/somewhere/hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(BaseError, match=f"^/somewhere/hub: {why}"):
        base.resolve_base("ben/open")


def test_a_home_that_cannot_be_written(home, monkeypatch, tmp_path):
    """Tests may run as root, to whom nothing is forbidden: a file stands where the folder should be."""
    (home / "bases").unlink()
    (home / "bases").write_text("")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(BaseError, match=r"home/bases: could not be written \(File exists\)"):
        base.resolve_base(str(tmp_path / "x.gguf"))
