"""Adapters of other programs' scripts: a PEFT folder without a chat template; and several on one base in memory."""

import json
from pathlib import Path

import pytest
from tiny_models import load, with_lora, write_adapter

from persona.compare import session
from persona.errors import AdapterError
from persona.share import archive
from persona.share.adapter_ref import AdapterRef
from persona.share.open_adapter import open_adapter, opened_dir, read_supplement
from persona.ui.chosen import Chosen
from persona.ui.steps import compare

pytest_plugins = "tests.cli_fixtures"
SHORT = ["--max-new-tokens", "8", "--temperature", "0"]


@pytest.fixture
def peft_folder(tiny_llama, tmp_path) -> Path:
    """What model.save_pretrained() writes, and nothing else."""
    model = with_lora(load(tiny_llama))
    model.peft_config["default"].base_model_name_or_path = "/autodl-tmp/somewhere/tiny"
    model.save_pretrained(tmp_path / "my-lora")
    return tmp_path / "my-lora"


def test_the_template_is_asked_for_and_kept_in_a_copy(home, peft_folder, tiny_llama, value, refused):
    words = ["chat", peft_folder, "--prompt", "hi", "--base", tiny_llama, *SHORT]
    asked = refused(*words)
    assert "no chat_template.jinja" in asked and "--template NAME" in asked and "alpaca-zh" in asked
    (turn,) = value(*words, "--template", "alpaca-zh")["turns"]
    assert turn["rendered"].endswith("### 指令:\nhi\n\n### 回答:\n") and turn["base"] != turn["adapter"]
    assert not (peft_folder / "chat_template.jinja").exists(), "the folder itself stays as it is"
    (copy,) = opened_dir().iterdir()
    assert open_adapter(AdapterRef.parse(copy)).template.name == "alpaca-zh"
    assert value("chat", copy, *words[2:])["turns"] == [turn]
    value(*words, "--template", "alpaca-zh")
    assert len(list(opened_dir().iterdir())) == 1, "opened again it is the same copy"


def test_from_python(home, peft_folder, tiny_llama, value):
    import persona

    options = {"template": "alpaca-zh", "temperature": 0, "max_new_tokens": 8}
    (turn,) = persona.chat(peft_folder, ["hi"], str(tiny_llama), **options)
    words = ["chat", peft_folder, "--prompt", "hi", "--base", tiny_llama, "--template", "alpaca-zh", *SHORT]
    (same,) = value(*words)["turns"]
    assert turn == {k: same[k] for k in ("prompt", "base", "adapter")}
    (other,) = persona.chat(peft_folder, ["hi"], str(tiny_llama), system="Be loud.", **options)
    assert other["adapter"] == value(*words, "--system", "Be loud.")["turns"][0]["adapter"] != turn["adapter"]


def test_a_template_of_the_tokenizer_is_overruled(home, peft_folder, tiny_llama, value):
    """Trainer saves the tokenizer's template beside the adapter, whatever form the rows had."""
    (peft_folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    (turn,) = value("chat", peft_folder, "--prompt", "hi", "--base", tiny_llama, "--template", "alpaca-en", *SHORT)[
        "turns"
    ]
    assert turn["rendered"].endswith("### Instruction:\nhi\n\n### Response:\n")


@pytest.mark.slow
def test_it_is_exported_and_measured_with_the_template(home, peft_folder, tiny_llama, value, tmp_path):
    made = value("export", peft_folder, tmp_path / "lora.zip", "--template", "alpaca-zh")
    assert Path(made["file"]).is_file()
    unpacked = archive.unpack_adapter(tmp_path / "lora.zip", tmp_path / "in")
    assert open_adapter(AdapterRef.parse(unpacked)).template.name == "alpaca-zh"
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"instruction": f"q{n}", "output": "a"}) + "\n" for n in range(3))
    )
    report = value(
        "eval", peft_folder, "--data", tmp_path / "rows.jsonl", "--base", tiny_llama, "--template", "alpaca-zh"
    )
    assert report["verdict"]


def test_the_page_asks_for_template_and_base(home, peft_folder):
    with pytest.raises(AdapterError, match="Chat template below the button"):
        compare.open_link(str(peft_folder), Chosen())
    view = compare.open_link(str(peft_folder), Chosen(), "alpaca-zh", "someone/tiny")
    opened = open_adapter(AdapterRef.parse_id(view.adapter))
    assert (opened.template.name, opened.base_id) == ("alpaca-zh", "someone/tiny")
    assert view.adapter in [value for _, value in view.adapter_list.choices]


def test_a_zip_without_a_template_takes_one(home, peft_folder, tmp_path):
    import shutil

    packed = shutil.make_archive(str(tmp_path / "lora"), "zip", peft_folder)
    with pytest.raises(AdapterError, match="no chat_template.jinja"):
        compare.open_zip(packed, Chosen())
    view = compare.open_zip(packed, Chosen(), "chatml", "someone/tiny")
    assert open_adapter(AdapterRef.parse_id(view.adapter)).template.name == "chatml"


def test_several_adapters_share_one_base_without_reloading(home, tiny_gemma, tmp_path, value, monkeypatch):
    opened, real = [], session.LoadedModel
    monkeypatch.setattr(session, "_open", {})
    monkeypatch.setattr(session, "_planned", {})
    monkeypatch.setattr(session, "LoadedModel", lambda *args: opened.append(args) or real(*args))
    for seed, name in enumerate(("a", "b", "c"), 1):
        write_adapter(tiny_gemma, tmp_path / name, seed=seed, template="gemma-base")
    words = ["--prompt", "hi", "--base", tiny_gemma, *SHORT]
    (turn,) = value("chat", tmp_path / "a", "--with", tmp_path / "b", "--with", tmp_path / "c", *words)["turns"]
    assert len({column["text"] for column in turn["columns"]}) == 4
    for name, column in zip("abc", turn["columns"][1:], strict=True):
        (alone,) = value("chat", tmp_path / name, *words)["turns"]
        assert alone["adapter"] == column["text"]
    assert len(opened) == 1, "the base is opened once; adapters are attached to it and switched for each row"


def test_a_supplement_is_read_by_name():
    assert read_supplement() == archive.NO_SUPPLEMENT
    assert read_supplement("chatml").template.name == "chatml"
