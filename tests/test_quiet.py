"""What opening a model changes in other libraries, and gives back; what importing Persona does not change."""

import subprocess
import sys

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from tiny_models import load
from transformers.utils import logging as transformers_logging

from persona.errors import BaseError
from persona.models import gguf_import
from persona.models.quiet import quiet_transformers
from persona.store.workspace import PROJECT_DIR


def state() -> tuple[object, ...]:
    return (
        transformers_logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
        transformers_logging.get_verbosity(),
    )


@pytest.fixture(params=[True, False], ids=["bars", "no bars"])
def before(request):
    """Progress bars as the process that opens a model has them, and its log level."""
    enabled, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    switch = {True: transformers_logging.enable_progress_bar, False: transformers_logging.disable_progress_bar}
    switch[request.param]()
    transformers_logging.set_verbosity_info()
    yield state()
    switch[enabled]()
    transformers_logging.set_verbosity(level)


def test_transformers_is_as_loud_as_before_after_the_end_and_after_an_error(before):
    with pytest.raises(ZeroDivisionError), quiet_transformers(warnings=False):
        assert state() == (False, True, transformers_logging.ERROR)
        raise ZeroDivisionError
    assert state() == before
    with quiet_transformers():
        assert state() == (False, True, transformers_logging.INFO)
    assert state() == before


def test_opening_a_model_leaves_the_settings_of_transformers(before, tiny_llama, tmp_path):
    load(tiny_llama)
    assert state() == before
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(BaseError, match="cannot be opened"):
        gguf_import._dequantize(tmp_path / "bad.gguf", tmp_path / "out", "bad", lambda _: None)
    assert state() == before


@pytest.mark.slow
def test_importing_the_models_changes_no_logger():
    code = (
        "import logging, pkgutil, importlib, persona.models\n"
        "for m in pkgutil.iter_modules(persona.models.__path__): importlib.import_module(f'persona.models.{m.name}')\n"
        "print(logging.getLogger('bitsandbytes').level)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_DIR)
    assert done.stdout == "0\n"
