"""Step 5, Share: the adapter as a zip, on the Hub, or as a link that opens the comparison."""

from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.models.adapter import Adapter
from persona.share import archive, hub, refresh_card
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.store import deployment
from persona.store.files import slugify
from persona.ui.i18n import localized, t
from persona.ui.page import QUIET, Page, download_path, on_latest, show_errors
from persona.ui.steps.share import export_tab
from persona.ui.voice_picker import find_adapter, find_card, format_run_time, voice_label

HOME_LINK = (
    "**As a link**\n\nUses your account on the Hugging Face Hub: log in once with `hf auth login`, "
    "or set `HF_TOKEN`. Private unless you make it public."
)
SPACE_LINK = (
    "**As a link**\n\nUses your account on the Hugging Face Hub: sign in below. The app can then "
    "create repositories in your account, and cannot access others. Private unless you make it "
    "public."
)


def open_chosen_adapter(adapter_id: str) -> Adapter:
    """The chosen adapter. If a run trained it, its model card is first brought up to date with the persona's card."""
    if AdapterRef.parse_id(adapter_id).kind is RefKind.RUN:
        refresh_card.refresh_model_card(find_adapter(adapter_id).path, find_card(adapter_id))
    return find_adapter(adapter_id)


class Offer(NamedTuple):
    """What the step offers: the components, or the values for them. They change together: a button makes what it says.

    offered: the id of the adapter whose name the buttons show.
    """

    offered: Any
    about: Any
    make: Any
    push: Any
    repo: Any
    export: Any
    made: Any  # of another adapter, so they go: a zip, an export and its notes, what was pushed and its link
    exported: Any
    export_notes: Any
    pushed: Any
    link: Any


def offer_adapter(adapter_id: str | None, offered: str) -> Offer:
    """Name the chosen adapter wherever something of it can leave this machine. offered: the one named so far."""
    adapter_id = adapter_id or ""
    made: list[Any] = [gr.skip()] * 5
    if adapter_id != offered:
        made = [gr.File(None, visible=False), gr.File(None, visible=False), "", "", ""]
    if not adapter_id:
        labels = (t("Make the zip"), t("Push to the Hub"), t("Make the export"))
        buttons = [gr.Button(label, interactive=False) for label in labels]
        repo = gr.Textbox(placeholder=t("you/name"))
        return Offer("", contents_html(""), buttons[0], buttons[1], repo, buttons[2], *made)
    name = adapter_title(adapter_id)
    return Offer(
        adapter_id,
        contents_html(adapter_id),
        gr.Button(t("Make the zip of {name}", name=name), interactive=True),
        gr.Button(t("Push {name} to the Hub", name=name), interactive=True),
        gr.Textbox(placeholder=t("you/{name}", name=_hub_name(adapter_id))),
        gr.Button(t("Export {name}", name=name), interactive=True),
        *made,
    )


def _hub_name(adapter_id: str) -> str:
    """A name for the repository: the persona's, or its folder's where the Hub would not take that."""
    names = slugify(find_adapter(adapter_id).card.name), AdapterRef.parse_id(adapter_id).name
    return next((name for name in names if name.isascii()), "persona")


def adapter_title(adapter_id: str) -> str:
    """Whose adapter it is, and which one: "Otto, run of 26 Nov 12:40"."""
    ref = AdapterRef.parse_id(adapter_id)
    if ref.kind is not RefKind.RUN:
        return localized(voice_label(adapter_id, adapter_id))
    return t("{name}, run of {when}", name=find_card(adapter_id).name, when=localized(format_run_time(ref.run)))


def make_zip(adapter_id: str) -> str:
    """The adapter as a zip named after the persona. Returns its path."""
    adapter = open_chosen_adapter(adapter_id)
    return str(archive.pack_adapter(adapter.path, download_path(f"{slugify(adapter.card.name)}-adapter.zip")))


def contents_html(adapter_id: str) -> str:
    """What would leave this machine: the adapter's files, and whose text it was trained on."""
    if not adapter_id:
        return f'<div class="hint">{t("There is no adapter to share yet. Train one in step 3.")}</div>'
    adapter = open_chosen_adapter(adapter_id)
    files = archive.list_adapter_files(adapter.path)
    size = sum(file.stat().st_size for file in files)
    rights = t("Rights: not stated. Fill them in in step 1, tab Who it is, before you publish")
    if adapter.card.rights:
        rights = t("Rights: {rights}", rights=escape(adapter.card.rights))
    head = t(
        "<b>{name}</b>, {size} MB. The zip and the Hub get these files and no others:",
        name=escape(adapter.card.name),
        size=f"{size / 1e6:.1f}",
    )
    return (
        f"<div class='card'>{head}<br><code>{'</code> <code>'.join(f.name for f in files)}</code>"
        f"<div class='quiet'>{rights}</div></div>"
    )


def push_to_hub(
    adapter_id: str, repo: str, public: bool, app_url: str, visitor: gr.OAuthToken | None
) -> tuple[str, str]:
    """Upload the adapter. Returns a notice and the share link. visitor: who is signed in on a Space."""
    # outside a Space, Gradio's sign-in is a mock, and its token is not a token of the Hub
    token = visitor.token if visitor and deployment.has_sign_in() else None
    path = open_chosen_adapter(adapter_id).path
    pushed = hub.push_adapter(path, repo.strip(), public=public, app_url=app_url, token=token)
    url = escape(pushed["url"])
    link = f'<a href="{url}">{url}</a>'
    text = t("On the Hub, private: {link}", link=link)
    if not pushed["private"]:
        text = t("On the Hub, public: {link}", link=link)
    return f'<div class="good">{text}</div>', pushed["link"]


def begin_push(request: gr.Request) -> tuple[str, str, str]:
    """The address that links open, what is shown meanwhile, and no link: that of the push before would be read as new.

    The address is the Space's own, else the one that this page was opened at.
    """
    origin = request.headers.get("origin") or f"http://{request.headers.get('host', '127.0.0.1:7860')}"
    return deployment.space_url() or str(origin), f'<div class="quiet">{t("Uploading to the Hub …")}</div>', ""


def build(page: Page) -> None:
    gr.Markdown(
        t(
            "### Share the adapter\nIt is small: it holds the LoRA weights, the chat template, the persona's card and "
            "the name of its base model."
        )
    )
    about, offered = gr.HTML(elem_id="share-about"), gr.State("")
    with gr.Row():
        with gr.Column(elem_classes="card", min_width=280):
            make, file = _build_zip(offered, about)
        with gr.Column(elem_classes="card", min_width=280):
            push, repo, pushed, link = _build_hub(offered)
    with gr.Column(elem_classes="card"):
        export, exported, notes = export_tab.build(offered)
    offer = Offer(offered, about, make, push, repo, export, file, exported, notes, pushed, link)
    on_latest([page.shown_step.change, page.adapter.change], show_errors(offer_adapter), [page.adapter, offered], offer,
              **QUIET)  # fmt: skip
    if deployment.is_hf_space():
        gr.Markdown(t("What you make on this Space is stored on its disk, which others use too. For your own work:"))
        gr.DuplicateButton(t("Duplicate this Space"), elem_id="duplicate")


def _build_zip(offered: gr.State, about: gr.HTML) -> tuple[gr.Button, gr.File]:
    gr.Markdown(t("**As a file**\n\nA zip that opens in anyone's Persona: step Compare, *Open an adapter zip*."))
    make = gr.Button(t("Make the zip"), variant="primary", interactive=False, elem_id="make-zip")
    file = gr.File(label=t("The zip"), interactive=False, visible=False, elem_id="zip-file")
    make.click(show_errors(make_zip), offered, file, api_visibility="private", show_progress_on=about).success(
        lambda: gr.File(visible=True), None, file, **QUIET
    )
    return make, file


def _build_hub(offered: gr.State) -> tuple[gr.Button, gr.Textbox, gr.HTML, gr.Textbox]:
    gr.Markdown(t(SPACE_LINK if deployment.has_sign_in() else HOME_LINK))
    if deployment.has_sign_in():
        gr.LoginButton(elem_id="sign-in")
    repo = gr.Textbox(label=t("Name on the Hub"), placeholder=t("you/name"), elem_id="repo")
    public = gr.Checkbox(label=t("Public: anyone can open it"))
    push = gr.Button(t("Push to the Hub"), interactive=False, elem_id="push")
    status = gr.HTML(elem_id="push-status")
    link = gr.Textbox(label=t("Link"), interactive=False, buttons=["copy"], elem_id="share-link")
    address = gr.State("")  # of this page
    begun = push.click(begin_push, None, [address, status, link], **QUIET)
    pushed = begun.then(show_errors(push_to_hub), [offered, repo, public, address], [status, link], **QUIET)
    pushed.failure(lambda: "", None, status, **QUIET)
    return push, repo, status, link
