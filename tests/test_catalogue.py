"""The catalogue's facts, and every architecture in it from mask to merge, as tiny random models."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from cases import check_each
from pydantic import ValidationError

from persona.errors import BaseError
from persona.models import base, bundled, catalogue, download
from persona.models.catalogue import KnownModel, find_known_model
from persona.template.chat_template import shipped_templates

BASES = catalogue.load_catalogue()


# ---- the file


def test_every_base_is_there_once():
    ids = [e.id.lower() for e in BASES]
    assert len(ids) == len(set(ids)) > 25


def test_an_entry_is_whole():
    def check(entry):
        assert entry.template in shipped_templates()
        assert re.search("[\u4e00-\u9fff]", entry.zh) and entry.en.isascii()
        assert (entry.kind == "pretrained") == (entry.template in catalogue.PRETRAINED_TEMPLATES)
        assert find_known_model(entry.id.upper()) is entry

    check_each(BASES, check)


def test_a_wrong_entry_is_refused():
    cases = [{"stars": 5}, {"kind": "chat"}, {"zh": ""}, {"parameters": 0}, {"id": "gemma"},
        {"gated": "yes, please"}, {"context": -1}]  # fmt: skip

    def check(change):
        with pytest.raises(ValidationError):
            KnownModel.model_validate({**BASES[0].model_dump(), **change})

    check_each(cases, check)


def test_unknown_is_not_no():
    assert find_known_model("mistralai/Mistral-7B-Instruct-v0.3").about.endswith("may ask for consent on its page")
    assert find_known_model("google/gemma-3-4b-it").about == "8.6 GB, Gemma Terms of Use, asks for consent on its page"
    assert find_known_model("Qwen/Qwen3-8B").about == "16.4 GB, Apache-2.0"
    assert find_known_model("someone/else") is None
    assert find_known_model("meta-llama/Llama-2-7b-hf").about.endswith(
        "Community License, asks for consent on its page"
    )
    in_float32 = find_known_model("openai-community/gpt2-xl")
    assert in_float32.about == "6.4 GB, MIT" and in_float32.weights_gb == in_float32.download_gb / 2
    unconfirmed = [e for e in BASES if e.family in ("Gemma 4", "Qwen3.5")]
    assert unconfirmed and all(e.gated is None for e in unconfirmed)


def test_no_base_needs_code_from_its_repository():
    """transformers itself has a class for each model_type, so nothing has to be run from a repository."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for entry in BASES:
        assert entry.architecture in CONFIG_MAPPING_NAMES and entry.architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert "remote_code" not in catalogue.CATALOGUE_FILE.read_text()


# ---- where it is used


def test_the_choices_begin_with_the_embedded_and_grow(monkeypatch):
    names, titles, abouts = zip(*base.list_base_choices(), strict=True)
    count = len(bundled.BUNDLED_MODELS)
    assert list(names[:count]) == list(bundled.BUNDLED_MODELS)
    sizes = [find_known_model(name).parameters for name in names[count:]]
    assert sizes == sorted(sizes) and len(names) == len(set(names))
    assert not {e.hub_id for e in bundled.BUNDLED_MODELS.values()} & set(names)
    at = names.index("google/gemma-3-4b-it")
    assert titles[at] == names[at] and abouts[at] == "8.6 GB, Gemma Terms of Use, asks for consent on its page"


def test_a_name_without_its_owner_is_answered_with_the_id():
    for name, known in (("gpt2-xl", "openai-community/gpt2-xl"), ("qwen3-0.6b", "Qwen/Qwen3-0.6B")):
        with pytest.raises(BaseError, match=f"'{name}': its id on the Hub has an owner: {known}."):
            base.resolve_base(name)


def test_a_download_says_first_what_it_is(monkeypatch):
    import huggingface_hub

    said, when = [], []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: when.append(len(said)) or fail())

    def fail():
        raise OSError("offline")

    with pytest.raises(BaseError, match="Hub cannot be reached"):
        base.resolve_base("qwen/qwen3-0.6b", said.append)
    assert said == ["Downloading qwen/qwen3-0.6b from the Hub (1.5 GB, Apache-2.0) …"] and when == [1]


def test_a_downloaded_base_has_the_licence_of_the_catalogue(monkeypatch, tiny_llama):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tiny_llama))
    found = base.resolve_base("meta-llama/llama-3.2-1b-instruct")
    assert (found.id, found.licence) == ("meta-llama/Llama-3.2-1B-Instruct", "Llama 3.2 Community License")
    assert found.licence_url == "https://www.llama.com/llama3_2/license/"


def test_what_a_base_needs_is_asked_for_before_it_is_downloaded(monkeypatch):
    import huggingface_hub

    def never(*_, **__):
        raise AssertionError("downloaded")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BaseError, match="needs a package that is not installed: pip install timm"):
        base.resolve_base("google/gemma-3n-E2B-it")


def test_the_page_says_what_a_known_base_is_good_at_and_needs(tiny_llama, monkeypatch):
    from persona.ui.steps import template
    from persona.ui.steps.template import facts

    shown = facts.base_html(base.Base("Qwen/Qwen3-8B", tiny_llama, licence="Apache-2.0"))
    known = find_known_model("Qwen/Qwen3-8B")
    assert known.en in shown and known.zh not in shown and "17 GB to chat, 24 GB to train" in shown
    monkeypatch.setattr(facts, "language", lambda: "zh")
    assert known.zh in facts.known_model_html(known) and known.en not in facts.known_model_html(known)
    assert "to train" not in facts.base_html(base.Base("someone/else", tiny_llama))
    listed = template.make_template_settings()[0]
    assert [value for _, value in listed.choices] == [name for name, _, _ in base.list_base_choices()]
    assert listed.allow_custom_value


def test_the_list_of_bases_speaks_both_languages(monkeypatch):
    from persona.ui import i18n
    from persona.ui.steps import template

    monkeypatch.setattr(bundled, "is_installed", lambda e: e.name == bundled.DEFAULT_BASE)
    for language, want in {
        "en": ["Gemma 3 270M, pretrained (4-bit GGUF)", "SmolLM2 135M Instruct, English (4-bit GGUF) (not installed)",
               "Qwen/Qwen3-8B (16.4 GB, Apache-2.0)"],
        "zh": ["Gemma 3 270M，预训练（4 位 GGUF）", "SmolLM2 135M Instruct，英文（4 位 GGUF）（未安装）",
               "Qwen/Qwen3-8B（16.4 GB、Apache-2.0）"],
    }.items():  # fmt: skip
        monkeypatch.setattr(i18n, "language", lambda language=language: language)
        labels = {name: label for label, name in template.base_dropdown_choices()}
        assert [labels[name] for name in (*bundled.BUNDLED_MODELS, "Qwen/Qwen3-8B")] == want


# ---- ModelScope


def test_modelscope_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(BaseError, match="need its package: pip install modelscope"):
        base.resolve_base("modelscope:Qwen/Qwen3-0.6B")


def test_modelscope_through_its_package(monkeypatch, tiny_llama):
    """To the edge: the package's own function is a stand-in."""
    asked = []

    def snapshot_download(*given, **options):
        asked.append((given, options))
        return str(tiny_llama)

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=snapshot_download))
    found = base.resolve_base("modelscope:Qwen/Qwen3-0.6B")
    assert asked == [(("Qwen/Qwen3-0.6B", None), {"allow_patterns": list(download.DOWNLOAD_PATTERNS)})]
    assert (found.id, found.path, found.licence) == ("modelscope:Qwen/Qwen3-0.6B", tiny_llama, "Apache-2.0")
    assert not any(p.endswith((".bin", ".py")) for p in asked[0][1]["allow_patterns"])
    exact = base.resolve_base("modelscope:Qwen/Qwen3-0.6B@v1.0")
    assert asked[1][0] == ("Qwen/Qwen3-0.6B", "v1.0")
    assert (exact.id, exact.revision, exact.licence) == ("modelscope:Qwen/Qwen3-0.6B@v1.0", "v1.0", "Apache-2.0")
    assert base.is_portable_base_name(exact.id) and not base.is_portable_base_name("modelscope:a/b@../x")
    cached = base.find_local_base("modelscope:Qwen/Qwen3-0.6B@v1.0")
    assert asked[2] == (("Qwen/Qwen3-0.6B", "v1.0"), {"local_files_only": True})
    assert cached is not None and (cached.id, cached.path) == (exact.id, tiny_llama)


def test_modelscope_refuses(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=fail))
    with pytest.raises(BaseError, match="not a model of ModelScope. It is modelscope:ORG/NAME"):
        base.resolve_base("modelscope:../etc")
    with pytest.raises(BaseError, match="not a model of ModelScope"):
        base.resolve_base("modelscope:Qwen/Qwen3-0.6B@../../etc")
    assert base.find_local_base("modelscope:Qwen/Qwen3-0.6B") is None
    with pytest.raises(BaseError, match=r"ConnectionError: no route"):
        base.resolve_base("modelscope:Qwen/Qwen3-0.6B")
    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=lambda *_, **__: str(tmp_path)))
    with pytest.raises(BaseError, match="no safetensors"):
        base.resolve_base("modelscope:Qwen/Qwen3-0.6B")


def test_the_file_is_written_one_base_a_line():
    lines = catalogue.CATALOGUE_FILE.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line.rstrip(","))["id"] for line in lines[1:-1]] == [e.id for e in BASES]
