"""Write, tab Who it is: the persona's picture, which goes out with its character card."""

import base64
import io
from pathlib import Path

import gradio as gr

from persona.share.exports.character_card import open_picture
from persona.store import quotas
from persona.store.files import open_atomic
from persona.store.kept_card import PICTURE, find_picture
from persona.ui.i18n import t
from persona.ui.page import QUIET, Page, open_current_persona, show_errors

MAX_SIDE = 1_024  # pixels that are kept
SHOWN_SIDE = 160  # pixels


def save_picture(slug: str, file: str | None) -> str:
    """Keep the uploaded picture, without metadata of the camera. Returns its HTML. Raises InputError."""
    persona = open_current_persona(slug)
    if file:
        quotas.require_disk_quota()
        picture = open_picture(Path(file))
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        with open_atomic(persona.path / PICTURE) as out:
            picture.save(out, "PNG")
    return picture_html(slug)


def remove_picture(slug: str) -> str:
    """Forget the picture; that of the PNG which the persona was made of is shown again, if there is one."""
    (open_current_persona(slug).path / PICTURE).unlink(missing_ok=True)
    return picture_html(slug)


def picture_html(slug: str) -> str:
    """The picture, small; it is sent with the page, so that no file of a persona has an address."""
    file = find_picture(open_current_persona(slug).path) if slug else None
    if not file:
        return ""
    picture = open_picture(file).convert("RGB")
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    small = io.BytesIO()
    picture.save(small, "JPEG", quality=85)
    data = base64.b64encode(small.getvalue()).decode()
    return f'<img alt="{t("Picture")}" src="data:image/jpeg;base64,{data}">'


def build_picture(page: Page) -> gr.HTML:
    shown = gr.HTML(elem_id="card-picture")
    with gr.Row(elem_classes="slim"):
        upload = gr.UploadButton(t("Choose a picture"), file_types=["image"], size="sm", scale=0, min_width=160,
                                 elem_id="choose-picture")  # fmt: skip
        remove = gr.Button(t("Remove the picture"), size="sm", scale=0, min_width=160)
    upload.upload(show_errors(save_picture), [page.slug, upload], shown, **QUIET)
    remove.click(show_errors(remove_picture), page.slug, shown, **QUIET)
    return shown
