"""What is different on a Hugging Face Space: its address, a GPU lent by the minute (ZeroGPU), and whose token is whose.

page.py imports this file before anything that may import torch, because `spaces` has to come first on ZeroGPU. Anywhere
else nothing is imported, and `gpu` leaves a function as it is. Not verified: no Space could be reached from here.
"""

import os

from persona.errors import InputError

OAUTH_VARIABLES = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")


def is_hf_space() -> bool:
    """Whether this process runs on a Space."""
    return bool(os.environ.get("SPACE_ID"))


def has_zerogpu() -> bool:
    """Whether the Space has ZeroGPU: a GPU is there only inside functions marked with `gpu`."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")  # as the spaces package reads it


def has_sign_in() -> bool:
    """Whether visitors can sign in: a Space whose README says hf_oauth gets these variables."""
    return is_hf_space() and all(os.environ.get(name) for name in OAUTH_VARIABLES)


def space_url() -> str:
    """Where the Space itself is served, "" off a Space. SPACE_HOST may name several hosts, the first is its own."""
    host = os.environ.get("SPACE_HOST", "").split(",")[0].strip()
    return f"https://{host}" if host else ""


def has_public_link() -> bool:
    """Whether Gradio is to give the page a public address (app.py --share), as Gradio reads its own variable."""
    return os.environ.get("GRADIO_SHARE", "").lower() == "true"


def is_shared_server() -> bool:
    """Whether strangers use this server, each with a workspace: as PERSONA_SHARED says (1 or 0), else on a Space and
    with a public link."""
    said = os.environ.get("PERSONA_SHARED", "").strip()
    if said not in ("", "0", "1"):
        raise InputError("PERSONA_SHARED={said}: set it to 1 to keep visitors apart, else to 0.", said=f"{said!r:.40}")
    return said == "1" or (not said and (is_hf_space() or has_public_link()))
