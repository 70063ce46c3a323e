"""Step 4, before the first word: what is waited for, and how far it is."""

import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from html import escape
from queue import SimpleQueue

from persona.compare import session
from persona.models import base as bases
from persona.models.adapter import Adapter
from persona.ui import voice_picker
from persona.ui.i18n import localized, t


def report_loading(chosen: str) -> Iterator[str]:
    """HTML, to be shown until the model of `chosen` answers. Its base is on this machine afterwards.

    Raises BaseError when the base cannot be had.
    """
    if voice_picker.is_remote(chosen):
        yield t("Asking the other server …")
        return
    main = voice_picker.find_adapter(chosen)
    if bases.find_local_base(main.base_id, main.base_revision) is not None:
        yield t("Loading the model: a few seconds, for the first question only …")
        return
    yield t("Preparing the base model, once: about a minute if it is installed, longer if it has to be downloaded …")
    for text in _report_download(main):
        yield escape(localized(text))


def _report_download(main: Adapter) -> Iterator[str]:
    """What the base's fetching tells, as it tells it: a handler can only show what it yields."""
    told: SimpleQueue[str | None] = SimpleQueue()
    work: Future[bases.Base] = Future()
    visitor = contextvars.copy_context()

    def fetch() -> None:
        try:
            work.set_result(visitor.run(session.base_of, main, progress=told.put))
        except BaseException as e:
            work.set_exception(e)
        told.put(None)

    threading.Thread(target=fetch, daemon=True).start()
    yield from iter(told.get, None)
    work.result()
