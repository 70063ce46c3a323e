"""Step 5, Share: a zip, the Hub, a link that opens the comparison."""

from html import escape

import gradio as gr

from persona import adapter, hub, modelcard, share, space
from persona.files import slug as slugify
from persona.ui import exporting
from persona.ui.common import QUIET, Page, shown, to_save
from persona.ui.voices import card_of, find
from persona.ui.words import t

HOME_LINK = (
    "**By a link**\n\nThrough your account on the Hugging Face Hub; log in once with `hf auth login`, or set "
    "`HF_TOKEN`. Private unless you say so."
)
SPACE_LINK = (
    "**By a link**\n\nThrough your account on the Hugging Face Hub; sign in below; the app may then make repositories "
    "of your own, and reach no others. Private unless you say so."
)


def current(chosen: str) -> adapter.Adapter:
    """The chosen adapter; of a run's, the card is first brought up to what is known of it now."""
    found = find(chosen)
    if chosen.startswith("run/"):
        modelcard.restate(found.path, card_of(chosen))
    return find(chosen)


def zipped(chosen: str) -> str:
    """The adapter as a zip with a sensible name, in a temporary folder that the page may serve from."""
    a = current(chosen)
    return str(share.pack(a.path, to_save(f"{slugify(a.card.name)}-adapter.zip")))


def contents(chosen: str) -> str:
    """What would leave this machine: the files of the allow-list and whose text it is."""
    if not chosen:
        return f'<div class="hint">{t("There is no adapter to share yet. Train one in step 3.")}</div>'
    a = current(chosen)
    present = share.present(a.path)
    size = sum(file.stat().st_size for file in present)
    rights = t("Rights: not stated: fill them in under step 1, Who it is, before you publish it")
    if a.card.rights:
        rights = t("Rights: {rights}", rights=escape(a.card.rights))
    head = t("<b>{name}</b>, {size} MB. These files and no others leave this machine:", name=escape(a.card.name),
             size=f"{size / 1e6:.1f}")  # fmt: skip
    return (
        f"<div class='card'>{head}<br><code>{'</code> <code>'.join(f.name for f in present)}</code>"
        f"<div class='quiet'>{rights}</div></div>"
    )


def push(
    chosen: str, repo: str, public: bool, app_url: str, visitor: gr.OAuthToken | None,
    progress: gr.Progress = gr.Progress(),
) -> tuple[str, str]:  # fmt: skip
    """Upload; returns a notice and the share link. On a Space it is the visitor's own token, kept in their session."""
    progress(None, desc=t("Uploading to the Hub …"))
    # off a Space, Gradio's sign-in is a mock whose token is none
    token = visitor.token if visitor and space.signs_in() else None
    done = hub.push(current(chosen).path, repo.strip(), public=public, app_url=app_url, token=token)
    url = escape(done["url"])
    link = f'<a href="{url}">{url}</a>'
    words = t("It is on the Hub, private: {link}", link=link)
    if not done["private"]:
        words = t("It is on the Hub, public: {link}", link=link)
    return f'<div class="good">{words}</div>', done["link"]


def here(request: gr.Request) -> str:
    """The address that links open: the Space's own, else the one that this page was opened at."""
    opened = request.headers.get("origin") or f"http://{request.headers.get('host', '127.0.0.1:7860')}"
    return space.address() or str(opened)


def build(page: Page, step: gr.Step) -> None:
    gr.Markdown(
        t("### Give it away\nThe adapter is small: it carries the voice, the template and the name of its base.")
    )
    about = gr.HTML(elem_id="share-about")
    with gr.Row():
        with gr.Column(elem_classes="card", min_width=280):
            gr.Markdown(
                t("**As a file**\n\nA zip that opens in anyone's Persona: step Compare, *Open an adapter zip*.")
            )
            make = gr.Button(t("Make the zip"), variant="primary", elem_id="make-zip")
            file = gr.File(label=t("The zip"), interactive=False, visible=False, elem_id="zip-file")
        with gr.Column(elem_classes="card", min_width=280):
            gr.Markdown(t(SPACE_LINK if space.signs_in() else HOME_LINK))
            if space.signs_in():
                gr.LoginButton(elem_id="sign-in")
            repo = gr.Textbox(label=t("Name on the Hub"), placeholder=t("you/zhen-huan"), elem_id="repo")
            public = gr.Checkbox(label=t("Public: everyone may open it"))
            upload = gr.Button(t("Put it on the Hub"), elem_id="push")
            done = gr.HTML(elem_id="push-status")
            link = gr.Textbox(label=t("Link"), interactive=False, buttons=["copy"], elem_id="share-link")
    with gr.Column(elem_classes="card"):
        exporting.build(page)
    if space.here():
        gr.Markdown(t("What you make on this Space lies on its disk, which others use too. For work of your own:"))
        gr.DuplicateButton(t("Duplicate this Space"), elem_id="duplicate")
    address = gr.State("")

    gr.on([step.select, page.adapter.change], shown(contents), page.adapter, about, **QUIET)
    make.click(shown(zipped), page.adapter, file, api_visibility="private", show_progress_on=about).success(
        lambda: gr.File(visible=True), None, file, **QUIET
    )
    upload.click(here, None, address, **QUIET).then(
        shown(push), [page.adapter, repo, public, address], [done, link], api_visibility="private"
    )
