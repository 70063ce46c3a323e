"""Step 4, before an answer: load or download the base model, and show the progress."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from html import escape

from persona.compare import session
from persona.errors import PersonaError
from persona.models import base as bases
from persona.models import bundled
from persona.store.deployment import has_zerogpu
from persona.ui import voice_picker
from persona.ui.background import start_in_thread
from persona.ui.i18n import localized, t
from persona.ui.widgets import problems_html


def describe_opening(adapter_id: str | None, quantization: str = "auto") -> str:
    """HTML that says how the base of an adapter is opened, and what memory it needs; "" where that is not known yet."""
    if not adapter_id or voice_picker.is_remote(adapter_id):
        return ""
    main = voice_picker.find_adapter(adapter_id)
    base = bases.find_local_base(main.base_id, main.base_revision) if main.base_id else None
    return _describe_plan(base, quantization, main.quantization) if base else ""


def _describe_plan(base: bases.Base, quantization: str, trained: str) -> str:
    try:
        plan = session.plan_opening(base, quantization, trained)
    except PersonaError as e:
        return problems_html([e.message])
    kind = "quiet" if plan.fits else "hint"
    return f"<div class='{kind}'>{escape(localized(plan.describe()))}</div>"


def open_ahead(adapter_id: str) -> Future[None] | None:
    """Begin to open the base of an adapter, so that the first question need not wait for all of it.

    Not one that would have to be downloaded, or for which another model would have to go, or a GPU that is lent by the
    question: None then. What goes wrong is said to the first question.
    """
    main = voice_picker.find_adapter(adapter_id)
    is_here = bundled.find_bundled(main.base_id) or bases.find_local_base(main.base_id, main.base_revision)
    if not is_here or session.is_any_open() or has_zerogpu():
        return None

    def open_base(_: Callable[[str], None]) -> None:
        with contextlib.suppress(PersonaError):
            base = session.base_of(main)
            if not session.is_any_open():
                session.open_model(base, trained=main.quantization)

    return start_in_thread(open_base)[1]


def report_loading(adapter_id: str, quantization: str = "auto") -> Iterator[str]:
    """HTML to show until the model answers. The adapter's base is on this machine afterwards.

    Raises BaseError when the base cannot be downloaded.
    """
    if voice_picker.is_remote(adapter_id):
        yield t("Asking the other server …")
        return
    main = voice_picker.find_adapter(adapter_id)
    if (local := bases.find_local_base(main.base_id, main.base_revision)) is not None:
        if session.is_open(local, quantization, main.quantization):
            yield t("Writing …")
            return
        loading = t("Loading the model: a few seconds, for the first question only …")
        yield loading + _describe_plan(local, quantization, main.quantization)
        return
    yield t("Preparing the base model, once: about a minute if it is installed, longer if it has to be downloaded …")

    def download_base(report: Callable[[str], None]) -> bases.Base:
        return session.base_of(main, progress=report)

    messages, downloaded = start_in_thread(download_base)
    for text in messages:
        yield escape(localized(text))
    downloaded.result()
