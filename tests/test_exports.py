"""What leaves for other programs: a merged model, a card, pairs for other trainers; whole, new, and nothing local."""

import ast
import errno
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tiny_models import CARD, FACTS, load, make_adapter, with_lora, write_adapter

from persona.compare import session
from persona.errors import AdapterError, InputError, PersonaError, ShareError
from persona.models import adapter as adapters
from persona.models import attach, generate, trained_tokens
from persona.models.base import Base, load_tokenizer
from persona.models.sampling import Sampling
from persona.share import secrets
from persona.share.exports import character_card, material, merged_model, new_output, trainer_configs
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at, list_examples, open_persona
from persona.template.chat_template import ChatTemplate, apply_template, read_template, shipped_templates
from persona.template.compatibility import SAMPLE_CHATS
from persona.template.render import Renderer
from persona.train import launcher
from persona.train.config import make_config
from persona.write.importers import ImportOptions
from persona.write.importers.character_card import survey
from persona.write.importers.registry import get_importer
from persona.write.importers.text_source import open_source

QUESTIONS = ("Who are you?", "tea?", "你是谁？")
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=12)
pytestmark = pytest.mark.slow  # models are merged, saved and opened again


def replies(model, renderer) -> list[str]:
    with torch.inference_mode():
        prompts = [renderer.render_prompt([], q).ids for q in QUESTIONS]
        *_, last = generate.generate_batch(model, renderer.tokenizer, prompts, GREEDY, renderer.stop_id)
    return [r.text for r in last]


def plain_replies(folder: Path) -> list[str]:
    """What transformers alone makes of an exported folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = []
    for question in QUESTIONS:
        turns = [{"role": "system", "content": CARD.system}, {"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**inputs, do_sample=False, temperature=None, top_p=None, max_new_tokens=12)
        said.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return said


# ---- merged


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_merged_says_what_base_and_adapter_say(tiny_llama, tmp_path, settings):
    adapter, base = make_adapter(tiny_llama, tmp_path / "a", **settings)
    made = merged_model.export_merged_model(adapter, base, tmp_path / "out")
    renderer = session.renderer_of(adapter, load_tokenizer(base))
    alone = replies(load(tiny_llama), renderer)
    together = replies(attach.attach_adapter(load(tiny_llama), adapter, "x"), renderer)
    assert plain_replies(tmp_path / "out") == together != alone
    assert made["difference"]["largest"] < 1e-4 and made["difference"]["same"] == 1


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_strength_of_the_merged_model(tiny_llama, tmp_path, strength):
    adapter, base = make_adapter(tiny_llama, tmp_path / "a")
    merged_model.export_merged_model(adapter, base, tmp_path / "out", strength)
    renderer = session.renderer_of(adapter, load_tokenizer(base))
    model = attach.attach_adapter(load(tiny_llama), adapter, "x")
    full = replies(model, renderer)
    attach.set_adapter_strength(model, "x", strength)
    assert plain_replies(tmp_path / "out") == replies(model, renderer) != full


def test_strength_is_refused_where_there_is_none(tiny_llama, tmp_path):
    adapter, base = make_adapter(tiny_llama, tmp_path / "a", use_dora=True)
    for strength, why in ((3, "from 0"), (0.5, "use_dora=True, which is all or nothing")):
        with pytest.raises(InputError, match=why):
            merged_model.export_merged_model(adapter, base, tmp_path / "out", strength)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_trained_rows_of_tokens_are_merged(tiny_gemma, tiny_llama, tmp_path, tied):
    """The row of the stop token at both ends where they share it, else at the one that was trained."""
    folder, template = (tiny_gemma, "gemma-base") if tied else (tiny_llama, "chatml")
    model = load(folder)
    assert model.config.tie_word_embeddings == tied
    model = with_lora(model, trainable_token_indices=trained_tokens.select_trainable_tokens(model, 7))
    for name, weight in model.named_parameters():
        if "trainable_tokens_delta" in name:
            torch.nn.init.normal_(weight, std=0.5)
            trained = weight.detach().clone()
    base = Base("someone/tiny", folder)
    adapters.save_adapter(model, tmp_path / "a", base=base, template=read_template(template), card=CARD, facts=FACTS)
    made = merged_model.export_merged_model(adapters.read_adapter(tmp_path / "a"), base, tmp_path / "out")
    assert made["difference"]["largest"] < 1e-4
    before, after = load(folder), load(tmp_path / "out")
    torch.testing.assert_close(after.get_output_embeddings().weight[7], trained[0])
    ends = after.get_input_embeddings().weight, before.get_input_embeddings().weight
    torch.testing.assert_close(ends[0][7], trained[0] if tied else ends[1][7])
    assert torch.equal(ends[0][:7], ends[1][:7]) and after.config.tie_word_embeddings == tied


def test_a_lora_on_the_output_layer_leaves_the_embedding_as_it_was(tiny_gemma, tmp_path):
    adapter, base = make_adapter(tiny_gemma, tmp_path / "a", "gemma-base", target_modules=["lm_head", "q_proj"])
    made = merged_model.export_merged_model(adapter, base, tmp_path / "out")
    before, after = load(tiny_gemma), load(tmp_path / "out")
    assert made["difference"]["largest"] < 1e-4 and not after.config.tie_word_embeddings
    assert torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    assert not torch.equal(before.get_output_embeddings().weight, after.get_output_embeddings().weight)


def test_merged_keeps_the_number_format_of_the_base_and_measures_what_it_costs(tiny_llama, tmp_path):
    half = tmp_path / "half"
    load(tiny_llama, "bfloat16").save_pretrained(half)
    load_tokenizer(Base("tiny", tiny_llama)).save_pretrained(half)
    adapter, _ = make_adapter(tiny_llama, tmp_path / "a")
    made = merged_model.export_merged_model(adapter, Base("someone/tiny", half), tmp_path / "out")
    assert load(tmp_path / "out", "auto" if False else "bfloat16").dtype == torch.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    got = made["difference"]
    assert 1e-4 < got["largest"] < 1 and 0 < got["kl"] < 0.01 and got["tokens"] > 0
    assert f"{got['largest']:.3g}" in (tmp_path / "out" / "README.md").read_text()


def test_merged_folder_describes_itself(tiny_llama, tmp_path):
    adapter, base = make_adapter(tiny_llama, tmp_path / "a")
    adapter.facts["config"]["quantization"] = "nf4"
    merged_model.export_merged_model(adapter, base, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("someone/tiny (revision r1)", "MIT, https://example.org/mit", "Trained on the base in nf4", "Mags"):
        assert said in card
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    renderer = session.renderer_of(adapter, load_tokenizer(base))
    assert renderer.stop_id in settings["eos_token_id"] and settings["do_sample"]


def test_the_template_goes_out_without_what_others_do_not_know(byte_tokenizer):
    for name, template in shipped_templates().items():
        if name.startswith("mistral"):  # alternate turns only
            continue
        plain = merged_model.strip_generation_tags(template)
        assert "generation" not in plain.text.replace("add_generation_prompt", "").partition("-#}")[2], name
        for sample in SAMPLE_CHATS:
            whole = [*sample, {"role": "assistant", "content": " a \n"}]
            options = {"tokenize": False, "add_generation_prompt": False}
            ours = apply_template(byte_tokenizer, template, whole, **options)
            assert byte_tokenizer.apply_chat_template(whole, chat_template=plain.text, **options) == ours, name


# ---- whole, new, nothing local


def test_what_is_there_stays(tmp_path):
    (tmp_path / "out").write_text("mine")
    with (
        pytest.raises(InputError, match="out: is there already. Name a new file or folder"),
        new_output.create_output(tmp_path / "out"),
    ):
        raise AssertionError
    assert (tmp_path / "out").read_text() == "mine"


def test_a_full_disk_leaves_nothing(tmp_path):
    with (
        pytest.raises(InputError, match="the disk is full"),
        new_output.create_output(tmp_path / "deep" / "out") as path,
    ):
        path.mkdir()
        (path / "half").write_text("a")
        raise OSError(errno.ENOSPC, "no space")
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("text", ["{home}/x", "in {persona_home}.", "hf_" + "a" * 30])
def test_local_paths_and_tokens_do_not_leave(tmp_path, home, text):
    text = text.format(home=Path.home(), persona_home=home)
    with pytest.raises(ShareError, match="big.bin: (names (your home folder|the folder of PERSONA_HOME)|holds what looks like)"), \
            new_output.create_output(tmp_path / "out") as path:  # fmt: skip
        path.mkdir()
        (path / "big.bin").write_bytes(b"\xff" * (secrets._CHUNK - 5) + text.encode())  # across two reads
    assert not (tmp_path / "out").exists()


def test_nothing_local_is_in_any_export(tiny_llama, tmp_path, persona_run):
    adapter, base = make_adapter(tiny_llama, tmp_path / "a")
    merged_model.export_merged_model(adapter, base, tmp_path / "out" / "merged")
    made = material.load_material(persona_run)
    trainer_configs.export_dataset(made, tmp_path / "out" / "data")
    character_card.export_card(made.card, made.pairs, tmp_path / "out" / "card.png")
    files = [f for f in (tmp_path / "out").rglob("*") if f.is_file()]
    assert len(files) > 12
    for file in files:
        for local in (str(tmp_path), str(tiny_llama), str(Path.cwd()), "/tmp/"):
            assert local.encode() not in file.read_bytes(), f"{file.name}: {local}"


# ---- character cards


@pytest.mark.parametrize("name", ["2.json", "3.json", "3.png"])
@pytest.mark.parametrize("example", list_examples(), ids=lambda e: e.slug)
def test_a_card_comes_back_the_same(tmp_path, example, name):
    card, pairs, file = example.card(), example.pairs(), tmp_path / name
    made = character_card.export_card(card, pairs, file, version=int(name[0]))
    back = survey(open_source(file)).card
    assert (back.name, back.system, back.greeting, back.author) == (card.name, card.system, card.greeting, card.author)
    found = [p for p in get_importer("character").read(open_source(file), ImportOptions()) if isinstance(p, Pair)]
    told = [p for p in pairs if not p.history][: made["examples"]]
    assert made["examples"] == 20 and [(p.instruction, p.output) for p in found] == [
        (p.instruction, p.output) for p in told
    ]


def test_a_picture_holds_both_versions(tmp_path):
    character_card.export_card(CARD, [], tmp_path / "a.png", link="https://huggingface.co/u/mags")
    with Image.open(tmp_path / "a.png") as image:
        found = {k: json.loads(__import__("base64").b64decode(v)) for k, v in image.info.items()}
    assert {k: v["spec"] for k, v in found.items()} == {"chara": "chara_card_v2", "ccv3": "chara_card_v3"}
    assert found["ccv3"]["data"]["extensions"]["persona"]["adapter"] == "https://huggingface.co/u/mags"


def test_pairs_that_would_be_read_as_other_turns_are_left_out(tmp_path):
    good = Pair("a", "b")
    bad = [Pair("a", "I said\nMags: no"), Pair("user: x", "y"), Pair("{{char}}", "y"), Pair("a", "<START>")]
    assert character_card.export_card(CARD, [*bad, good], tmp_path / "a.json")["examples"] == 1
    found = list(get_importer("character").read(open_source(tmp_path / "a.json"), ImportOptions()))
    assert [(p.instruction, p.output) for p in found if isinstance(p, Pair)] == [("a", "b")]


def test_the_users_picture_goes_without_its_exif(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", (40, 60), "red").save(tmp_path / "me.jpg", exif=exif)
    assert b"taken at home" in (tmp_path / "me.jpg").read_bytes()
    character_card.export_card(CARD, [], tmp_path / "a.png", picture=tmp_path / "me.jpg")
    assert b"taken at home" not in (tmp_path / "a.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (40, 60) and not image.getexif() and image.convert("RGB").getpixel((5, 5))[0] > 200


def test_a_monogram_is_letters_where_the_font_has_them():
    one, two, moon = (character_card.draw_monogram(n) for n in ("Ann Lee", "Ann Low", "甄嬛"))
    background = moon.getpixel((0, 0))
    assert (
        moon.size == character_card.PICTURE_SIZE
        and moon.getcolors(1 << 20)
        and len({one.tobytes(), two.tobytes(), moon.tobytes()}) == 3
    )
    x, y = character_card.PICTURE_SIZE[0] // 2 - 100, round(character_card.PICTURE_SIZE[1] * 0.44)
    assert moon.getpixel((x, y)) != background  # the moon, not the box of a missing character


@pytest.mark.parametrize(
    "name, options, why",
    [
        ("a.txt", {}, "is a .json, a .png or a .charx file"),
        ("a.json", {"version": 1}, "of version 2 or 3"),
        ("a.json", {"picture": Path("x.png")}, "holds no picture"),
        ("a.png", {"picture": Path("nowhere.png")}, "cannot be opened as a picture"),
    ],
)
def test_cards_that_cannot_be(tmp_path, name, options, why):
    with pytest.raises(InputError, match=why):
        character_card.export_card(CARD, [], tmp_path / name, **options)
    assert list(tmp_path.glob("a.*")) == []


# ---- for other trainers

PAIRS = [Pair(f"question {n}", f"answer {n}") for n in range(9)] + [Pair("c", "d", (("a", "b"),), "a source")]


@pytest.fixture
def persona_run(tmp_path, tiny_llama) -> Path:
    """A persona folder with a run that has an adapter and two pairs held out."""
    from persona.store.persona_folder import create_persona_at

    card = PersonaCard(**CARD.model_dump() | {"rights": "CC0", "source": "written here", "author": "Ann"})
    persona = create_persona_at(tmp_path / "mags", card, PAIRS)
    config = make_config(eval_fraction=0.2, learning_rate=7e-4, lora_r=8, max_steps=30, warmup=5, quantization="none")
    run = launcher.create_run(persona, config)
    write_adapter(tiny_llama, run.adapter, card=card)
    facts = json.loads((run.adapter / "run.json").read_text())
    (run.adapter / "run.json").write_text(json.dumps(facts | {"config": config.model_dump()}))
    return persona.path


def test_pairs_for_other_trainers(persona_run, tmp_path, byte_tokenizer):
    out = tmp_path / "mags-data"
    made = trainer_configs.export_dataset(material.load_material(persona_run), out)
    assert (made["pairs"], made["held_out"]) == (10, 2) and set(made["files"]) == {f.name for f in out.iterdir()}
    info = json.loads((out / "dataset_info.json").read_text())
    sets = {key: json.loads((out / value["file_name"]).read_text()) for key, value in info.items()}
    assert {k: len(v) for k, v in sets.items()} == {"mags-data": 8, "mags-data-held-out": 2}
    held = {r.pair.instruction for r in material.load_material(persona_run).rows if r.held_out}
    assert {r["instruction"] for r in sets["mags-data-held-out"]} == held
    rows = [row for rows in sets.values() for row in rows]
    pair = next(r for r in rows if r["history"])
    columns = info["mags-data"]["columns"]
    assert [pair[columns[c]] for c in ("prompt", "response", "system", "history")] == [
        "c",
        "d",
        CARD.system,
        [["a", "b"]],
    ]
    assert pair["source"] == "a source" and "CC0" in (out / "README.md").read_text()
    renderer = Renderer(byte_tokenizer, ChatTemplate("own", (out / "chat_template.jinja").read_text()), CARD.system)
    lines = [json.loads(x) for n in sets for x in (out / f"{n}.messages.jsonl").read_text().splitlines()]
    given = [Pair(r["instruction"], r["output"], tuple(map(tuple, r["history"]))) for r in rows]
    for line, p in zip(lines, given, strict=True):
        assert (
            apply_template(byte_tokenizer, renderer.template, line["messages"], tokenize=False)
            == renderer.render_example(p).text
        )


def test_configurations_hold_the_settings_of_the_run(persona_run, tmp_path):
    out = tmp_path / "d"
    trainer_configs.export_dataset(material.load_material(persona_run), out)
    for name in ("llama-factory.yaml", "axolotl.yaml", "unsloth_train.py"):
        assert (out / name).read_text().startswith("# Not verified")
    factory, axolotl = (yaml.safe_load((out / f"{n}.yaml").read_text()) for n in ("llama-factory", "axolotl"))
    assert factory["model_name_or_path"] == axolotl["base_model"] == "someone/tiny"
    assert factory["learning_rate"] == axolotl["learning_rate"] == 7e-4 and factory["warmup_steps"] == 5
    assert (factory["lora_rank"], axolotl["lora_r"], factory["max_steps"]) == (8, 8, 30)
    assert factory["template"] == "chatml" and factory["eval_dataset"] == "d-held-out"
    assert axolotl["chat_template_jinja"] == (out / "chat_template.jinja").read_text()
    for named in [*axolotl["datasets"], *axolotl["test_datasets"]]:
        assert (out / named["path"]).is_file()
    tree = ast.parse((out / "unsloth_train.py").read_text())
    values = {k.arg: k.value for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords}
    assert ast.literal_eval(values["r"]) == 8 and ast.literal_eval(values["learning_rate"]) == 7e-4
    assert ast.literal_eval(values["data_files"]) == "prompt-completion/train.jsonl"


def test_pairs_go_out_before_there_is_a_run(tmp_path):
    shipped = list_examples()[0]
    # a copy: someone may have trained the shipped one
    example = create_persona_at(tmp_path / "copy", shipped.card(), shipped.pairs())
    made = trainer_configs.export_dataset(material.load_material(example.path), tmp_path / "d")
    assert made["pairs"] == len(example.pairs()) and made["held_out"] == 0
    assert "There is no run yet" in (tmp_path / "d" / "README.md").read_text()


def test_an_adapter_alone_has_no_pairs(tiny_llama, tmp_path):
    make_adapter(tiny_llama, tmp_path / "a")
    made = material.load_material(tmp_path / "a")
    with pytest.raises(InputError, match="the pairs are not here, only the adapter"):
        trainer_configs.export_dataset(made, tmp_path / "d")
    assert character_card.export_card(made.card, made.pairs, tmp_path / "c.json")["examples"] == 0
    with pytest.raises(PersonaError, match="not a persona folder"):
        material.load_material(tmp_path / "nowhere")


def test_a_broken_adapter_says_so(persona_run):
    (adapters.locate_adapter(persona_run) / "chat_template.jinja").unlink()
    with pytest.raises(AdapterError, match=r"no chat_template.jinja"):
        material.load_material(persona_run)
    assert open_persona(persona_run).pairs() == PAIRS
