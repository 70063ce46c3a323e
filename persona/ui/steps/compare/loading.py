"""Step 4, before an answer: load or download the base model, and show the progress."""

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


def report_loading(adapter_id: str) -> Iterator[str]:
    """HTML to show until the model answers. The adapter's base is on this machine afterwards.

    Raises BaseError when the base cannot be downloaded.
    """
    if voice_picker.is_remote(adapter_id):
        yield t("Asking the other server …")
        return
    main = voice_picker.find_adapter(adapter_id)
    if bases.find_local_base(main.base_id, main.base_revision) is not None:
        yield t("Loading the model: a few seconds, for the first question only …")
        return
    yield t("Preparing the base model, once: about a minute if it is installed, longer if it has to be downloaded …")
    for text in _report_download(main):
        yield escape(localized(text))


def _report_download(main: Adapter) -> Iterator[str]:
    """The progress messages of the base's download, from a thread: a handler can only show what it yields."""
    messages: SimpleQueue[str | None] = SimpleQueue()
    download: Future[bases.Base] = Future()
    context = contextvars.copy_context()  # whose request this is

    def run() -> None:
        try:
            download.set_result(context.run(session.base_of, main, progress=messages.put))
        except BaseException as e:
            download.set_exception(e)
        messages.put(None)

    threading.Thread(target=run, daemon=True).start()
    yield from iter(messages.get, None)
    download.result()
