"""Where this process runs: on a Hugging Face Space, with ZeroGPU, as a server for several visitors.

Read from environment variables on every call. Not verified on a real Space.
"""

import os

from persona.errors import InputError

OAUTH_VARIABLES = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")


def is_hf_space() -> bool:
    """Whether this process runs on a Space."""
    return bool(os.environ.get("SPACE_ID"))


def has_zerogpu() -> bool:
    """Whether the Space has ZeroGPU: a GPU exists only inside functions decorated by models.zerogpu."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")  # as the spaces package reads it


def has_sign_in() -> bool:
    """Whether visitors can sign in: a Space whose README says hf_oauth gets these variables."""
    return is_hf_space() and all(os.environ.get(name) for name in OAUTH_VARIABLES)


def may_use_owner_login() -> bool:
    """Whether this machine's login may be used on the Hub: on a shared server it is the owner's, not the visitor's."""
    return not (is_hf_space() or is_shared_server())


def hub_endpoint() -> str:
    """The address of the Hub or its mirror. huggingface_hub reads the variable only once, when it is imported."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def space_url() -> str:
    """The address of the Space, "" outside a Space. SPACE_HOST may name several hosts; the first is its own."""
    host = os.environ.get("SPACE_HOST", "").split(",")[0].strip()
    return f"https://{host}" if host else ""


def proxy_hosts() -> tuple[str, ...]:
    """Names under which a proxy serves this server: those of PERSONA_HOSTS, and of a Space its own (SPACE_HOST).

    *.NAME stands for every name below NAME.
    """
    names = os.environ.get("PERSONA_HOSTS", "").split(",")
    names += os.environ.get("SPACE_HOST", "").split(",") if is_hf_space() else []
    return tuple(name.strip().lower() for name in names if name.strip())


def has_proxy() -> bool:
    """Whether a proxy is declared, whose X-Forwarded headers are believed: PERSONA_HOSTS, a Space, a public link."""
    return bool(proxy_hosts()) or is_hf_space() or has_public_link()


def is_proxy_host(name: str) -> bool:
    """Whether a proxy serves this server under this name."""
    name = name.lower()
    return any(
        name == known or (known.startswith("*.") and name.endswith(known[1:]) and len(name) >= len(known))
        for known in proxy_hosts()
    )


def has_public_link() -> bool:
    """Whether Gradio gives the page a public address (app.py --share); GRADIO_SHARE as Gradio reads it."""
    return os.environ.get("GRADIO_SHARE", "").lower() == "true"


def is_shared_server() -> bool:
    """Whether each visitor has a workspace: as PERSONA_SHARED says (1 or 0), else on a Space or with a public link.

    Raises InputError for another value of PERSONA_SHARED.
    """
    value = os.environ.get("PERSONA_SHARED", "").strip()
    if value not in ("", "0", "1"):
        raise InputError(
            "PERSONA_SHARED={value}: set it to 1 to keep visitors apart, else to 0.", value=f"{value!r:.40}"
        )
    return value == "1" or (not value and (is_hf_space() or has_public_link()))
