"""The exports for other trainers hold the rows of the training, so that these learn the tokens of the label mask."""

import ast
import json
import sys
from dataclasses import replace

import pytest
import yaml
from tiny_models import CARD

from persona.models.base import Base, load_tokenizer
from persona.share.exports import trainer_configs, trainer_settings
from persona.share.exports.material import ExportMaterial
from persona.store.pairs import Pair
from persona.template.chat_template import read_template
from persona.template.render import IGNORE_INDEX, Renderer
from persona.train.config import make_config
from persona.train.run_folder import RunRow

ROWS = [RunRow(Pair(f"question {n}", f"answer {n}", (("a", "b"),) * (n % 2)), held_out=n > 6) for n in range(9)]
MATERIAL = ExportMaterial(CARD, ROWS, make_config(), "someone/tiny", read_template("chatml"))


@pytest.fixture(autouse=True)
def tokenizer(tiny_llama, monkeypatch):
    """The base's, which is on this disk."""
    monkeypatch.setattr(trainer_configs, "find_local_base", lambda name: Base(name, tiny_llama))
    return load_tokenizer(Base("tiny", tiny_llama))


def read_config(folder):
    return yaml.safe_load((folder / "llama-factory.yaml").read_text("utf-8"))


def test_each_text_has_the_ids_and_labels_of_its_row(tmp_path, tokenizer):
    made = trainer_configs.export_dataset(MATERIAL, tmp_path / "d")
    config = read_config(tmp_path / "d")
    assert (config["template"], config["dataset"]) == ("empty", "d-rendered")
    assert config["eval_dataset"] == "d-held-out-rendered" and "d-held-out.rendered.json" in made["files"]
    index = json.loads((tmp_path / "d/dataset_info.json").read_text("utf-8"))["d-rendered"]
    rows = json.loads((tmp_path / "d" / index["file_name"]).read_text("utf-8"))
    renderer = Renderer(tokenizer, MATERIAL.template, CARD.system)
    for row, kept in zip(rows, [row for row in ROWS if not row.held_out], strict=True):
        texts = [row[index["columns"][name]] for name in ("prompt", "response")]
        prompt, reply = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        example = renderer.render_example(kept.pair)
        count = len(prompt + reply)
        assert prompt + reply == example.input_ids[:count]
        assert [IGNORE_INDEX] * len(prompt) + reply == example.labels[:count]
        assert set(example.labels[count:]) <= {IGNORE_INDEX}, "no more is learned"
    assert "Tried with LLaMA-Factory" in (tmp_path / "d/README.md").read_text("utf-8")


def test_earlier_replies_are_learned_by_its_own_format(tmp_path):
    learned = replace(MATERIAL, config=make_config(learn_history=True))
    trainer_configs.export_dataset(learned, tmp_path / "known")
    config = read_config(tmp_path / "known")
    assert (config["template"], config["dataset"], config["mask_history"]) == ("chatml", "known", False)
    assert (tmp_path / "known/llama-factory.yaml").read_text("utf-8").startswith("# Not verified")
    assert trainer_settings.list_lost_settings("LLaMA-Factory", learned.config) == []
    own = replace(learned, template=replace(MATERIAL.template, name="own"))
    trainer_configs.export_dataset(own, tmp_path / "own")
    assert read_config(tmp_path / "own")["template"] == "empty"
    assert trainer_settings.list_lost_settings("LLaMA-Factory", own.config, True) == ["learn_history=True"]


def test_keys_that_it_refuses_are_not_written(tmp_path):
    trainer_configs.export_dataset(replace(MATERIAL, config=make_config(group_by_length=True)), tmp_path / "d")
    config = read_config(tmp_path / "d")
    assert "group_by_length" not in config and config["train_sampling_strategy"] == "group_by_length"


@pytest.mark.slow
@pytest.mark.parametrize("learn_history", [False, True])
def test_trl_s_command_line_learns_the_tokens_of_the_mask(tmp_path, tokenizer, tiny_llama, monkeypatch, learn_history):
    import trl
    from trl.scripts import sft

    made = replace(MATERIAL, base_id=str(tiny_llama), config=make_config(learn_history=learn_history, max_length=64))
    trainer_configs.export_dataset(made, tmp_path / "d")
    monkeypatch.chdir(tmp_path / "d")
    seen = []
    monkeypatch.setattr(trl.SFTTrainer, "train", lambda self, **_: seen.append(self) or sys.exit())
    with pytest.raises(SystemExit):
        sft.main(*sft.make_parser().parse_args_and_config(["--config", "trl.yaml", "--use_cpu", "true"]))
    (trainer,) = seen
    renderer = Renderer(tokenizer, MATERIAL.template, CARD.system, learn_history=learn_history)
    for data, held_out in ((trainer.train_dataset, False), (trainer.eval_dataset, True)):
        rows = [trainer.data_collator([row]) for row in data]
        pairs = [row.pair for row in ROWS if row.held_out is held_out]
        for row, pair in zip(rows, pairs, strict=True):
            example = renderer.render_example(pair)
            assert row["input_ids"][0].tolist() == example.input_ids
            assert row["labels"][0].tolist() == example.labels
    assert trainer.args.learning_rate == made.config.learning_rate and trainer.args.warmup_steps == made.config.warmup
    assert trainer.model.peft_config["default"].r == made.config.lora_r


def test_ms_swift_gets_the_rendered_rows_and_a_template_that_adds_nothing(tmp_path):
    made = trainer_configs.export_dataset(MATERIAL, tmp_path / "d")
    config = yaml.safe_load((tmp_path / "d/ms-swift.yaml").read_text("utf-8"))
    assert config["dataset"] == ["d.rendered.json"] and config["val_dataset"] == ["d-held-out.rendered.json"]
    (plugin,) = config["external_plugins"]
    (call,) = (
        n for n in ast.walk(ast.parse((tmp_path / "d" / plugin).read_text("utf-8"))) if is_call(n, "TemplateMeta")
    )
    assert ast.literal_eval(call.args[0]) == config["template"]
    given = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    assert given == {"prefix": [], "prompt": ["{{QUERY}}"], "chat_sep": None, "suffix": []}
    own = replace(MATERIAL, config=make_config(learn_history=True))
    without = trainer_configs.export_dataset(own, tmp_path / "e")
    assert plugin in made["files"] and not {plugin, "ms-swift.yaml"} & set(without["files"])


def is_call(node, name):
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == name
