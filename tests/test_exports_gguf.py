"""GGUF files, proven in llama.cpp itself, and the Modelfile beside them."""

import json
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from cases import check_each
from conftest import family_tokenizer
from tiny_models import CARD, FACTS, load, make_adapter, with_lora

from persona.compare import session
from persona.errors import AdapterError, BaseError, InputError, TemplateError
from persona.models import adapter as adapters
from persona.models import attach, trained_tokens
from persona.models.base import Base, load_base_model, load_tokenizer
from persona.models.loss import nll_sum
from persona.models.sampling import Sampling
from persona.share.exports import gguf_files, gguf_folder, merged_model, modelfile
from persona.store.persona_folder import list_examples
from persona.template.chat_template import ChatTemplate, build_messages, read_template, shipped_templates
from persona.template.compatibility import SAMPLE_CHATS
from persona.template.render import Renderer
from persona.train.collator import Collator
from persona.train.config import make_config
from persona.train.lora_config import make_lora_config

# ---- the adapter's file


def updates(file: Path) -> dict[str, np.ndarray]:
    """What llama.cpp adds to each tensor: B·A·alpha/rank."""
    reader = gguf.GGUFReader(file)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    found = {t.name: t.data for t in reader.tensors}
    names = {n.rpartition(".lora_")[0] for n in found}
    return {n: found[f"{n}.lora_b"] @ found[f"{n}.lora_a"] * alpha / len(found[f"{n}.lora_a"]) for n in names}


def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row i of each head's first half beside row i of its second, as llama.cpp's rotation wants it."""
    half = len(rows) // heads // 2
    order = [h * 2 * half + i + part * half for h in range(heads) for i in range(half) for part in (0, 1)]
    return rows[order]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "down_proj": 7}, "alpha_pattern": {"q_proj": 3}},
    ],
    ids=["lora", "rslora", "patterns"],
)
def test_an_adapters_file_holds_its_updates(tiny_llama, tmp_path, settings):
    adapter, base = make_adapter(tiny_llama, tmp_path / "a", **settings)
    gguf_files.write_adapter_gguf(adapter, base, tmp_path / "a.gguf")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    kinds = [fields[k].contents() for k in ("general.architecture", "general.type", "adapter.type")]
    assert kinds == ["llama", "adapter", "lora"]
    model = attach.attach_adapter(load(tiny_llama), adapter, "x").get_base_model()
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}  # fmt: skip
    got = updates(tmp_path / "a.gguf")
    assert len(got) == len(layers) == 14
    for layer, module in layers.items():
        number, kind = re.match(r"model\.layers\.(\d)\.(.*)", layer).groups()
        wanted = module.get_delta_weight("x").numpy()
        wanted = neighbours(wanted, 3) if kind[-6:] in ("q_proj", "k_proj") else wanted
        np.testing.assert_allclose(got[f"blk.{number}.{names[kind]}.weight"], wanted, atol=1e-5)


def test_other_families_keep_their_order(tiny_gemma, tmp_path):
    adapter, base = make_adapter(tiny_gemma, tmp_path / "a", "gemma-base")
    gguf_files.write_adapter_gguf(adapter, base, tmp_path / "a.gguf")
    model = attach.attach_adapter(load(tiny_gemma), adapter, "x").get_base_model()
    wanted = model.model.layers[1].self_attn.q_proj.get_delta_weight("x").numpy()
    np.testing.assert_allclose(updates(tmp_path / "a.gguf")["blk.1.attn_q.weight"], wanted, atol=1e-5)


def test_what_llama_cpp_has_no_form_for(tiny_llama, tiny_gemma, tmp_path):
    adapter, base = make_adapter(tiny_llama, tmp_path / "dora", use_dora=True)
    with pytest.raises(
        AdapterError, match=r"no form for a DoRA adapter. Export the whole model instead: --as gguf --merge"
    ):
        gguf_files.write_adapter_gguf(adapter, base, tmp_path / "x.gguf")
    model = with_lora(
        load(tiny_llama), trainable_token_indices=trained_tokens.select_trainable_tokens(load(tiny_llama), 7)
    )
    adapters.save_adapter(model, tmp_path / "rows", base=base, template=read_template("chatml"), card=CARD, facts=FACTS)
    with pytest.raises(AdapterError, match="no form for trained rows of tokens"):
        gguf_files.write_adapter_gguf(adapters.read_adapter(tmp_path / "rows"), base, tmp_path / "x.gguf")
    adapter, _ = make_adapter(tiny_llama, tmp_path / "a")
    with pytest.raises(AdapterError, match="does not fit this one"):
        gguf_files.write_adapter_gguf(adapter, Base("tiny-gemma", tiny_gemma), tmp_path / "x.gguf")
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    for kind in ("gpt_neox", "gemma4", "qwen3_5", "gemma3n"):
        config = json.loads((other / "config.json").read_text()) | {"model_type": kind}
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(
            BaseError, match=rf"{kind} is not among .* --as merged, then .* convert_hf_to_gguf.py FOLDER"
        ):
            gguf_files.write_adapter_gguf(adapter, Base("someone/other", other), tmp_path / "x.gguf")


def test_a_folder_for_llama_cpp_says_what_is_missing(tiny_llama, tmp_path):
    adapter, base = make_adapter(tiny_llama, tmp_path / "a")
    made = gguf_folder.export_adapter_gguf(adapter, base, tmp_path / "zhen-huan")
    files = {f.name for f in (tmp_path / "zhen-huan").iterdir()}
    assert (
        files == {"zhen-huan.gguf", "Modelfile", "README.md", "chat_template.jinja"}
        and made["file"] == "zhen-huan.gguf"
    )
    (note,) = made["notes"]
    assert "tiny.gguf is not there yet: someone/tiny did not come as a GGUF file" in note
    assert note in (tmp_path / "zhen-huan" / "README.md").read_text()
    lines = (tmp_path / "zhen-huan" / "Modelfile").read_text().splitlines()
    assert {"FROM ./tiny.gguf", "ADAPTER ./zhen-huan.gguf", 'PARAMETER stop "<|im_end|>"'} <= set(lines)
    with pytest.raises(BaseError, match=r"did not come as a GGUF file.*--as merged"):
        gguf_folder.export_merged_gguf(adapter, base, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    for file in (tmp_path / "zhen-huan").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


# ---- Ollama's template


def renderer(name: str) -> Renderer:
    template = shipped_templates()[name]
    return Renderer(family_tokenizer(template.text), template, "Be Mags.")


def test_ollamas_template_gives_what_ours_gives():
    def check(name):
        if name in ("mistral-v3", "mistral-tekken"):  # the system prompt moves along with the last question
            with pytest.raises(TemplateError, match=rf"{name}: has no form in Ollama's template language: it moves"):
                modelfile.go_template(renderer(name))
            return
        text = modelfile.go_template(renderer(name))
        for chat_ in [*SAMPLE_CHATS[:4], build_messages("s", [("q1", "r1"), ("q2", "r2")], "q3")]:
            assert modelfile.render_go_template(text, chat_) == modelfile._render_prompt(renderer(name), chat_)

    check_each(list(shipped_templates()), check)


def test_the_evaluator_follows_go():
    text = (
        "{{ if .System }}[{{ .System }}]{{ else }}-{{ end }}"
        "{{ range $i, $_ := .Messages }}"
        '{{ if eq .Role "user" }}U{{ .Content }}{{ if eq (len (slice $.Messages $i)) 1 }}!{{ else }},{{ end }}'
        '{{ else if eq .Role "assistant" }}A{{ .Content }};{{ end }}{{ end }}.'
    )
    assert modelfile.render_go_template(text, build_messages("s", [("a", "b")], "c")) == "[s]Ua,Ab;Uc!."
    assert modelfile.render_go_template(text, build_messages("", [], "c")) == "-Uc!."


@pytest.mark.parametrize(
    "text, why",
    [
        ("{% for m in messages %}{{ m['role'] }}{{ loop.index }}:{{ m['content'] }}{% endfor %}", "in different ways"),
        ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}", "moves, repeats or leaves out"),
        ('{% for m in messages %}"""{{ m["content"] }}{% endfor %}', 'it writes """, which ends a text'),
        (
            "{% for m in messages %}{{ m['content'] | replace('Be', 'Do not be') }}|{% endfor %}",
            "differs from what was",
        ),
    ],
    ids=["numbers", "twice", "quotes", "changes"],
)
def test_templates_that_ollama_cannot_have(byte_tokenizer, text, why):
    own = Renderer(byte_tokenizer, ChatTemplate("own", text), "")
    with pytest.raises(TemplateError, match=re.escape(why)):
        modelfile.go_template(own)


def test_a_modelfile_without_a_template_says_why():
    file, note = modelfile.render_modelfile(CARD, renderer("mistral-v3"), "m.gguf", "", "MIT")
    assert "it moves, repeats" in note and f"# No TEMPLATE: {note}" in file and 'TEMPLATE """' not in file
    assert "ADAPTER" not in file


def test_a_modelfile_is_read_back(byte_tokenizer):
    card = CARD.model_copy(update={"system": 'Say """hi""".\nBe brief.'})
    text, why = modelfile.render_modelfile(
        card, Renderer(byte_tokenizer, read_template("chatml"), ""), "m.gguf", "a.gguf", "MIT"
    )
    found = dict(re.findall(r'^(\w+) (?:"""(.*?)""")', text, re.S | re.M))
    assert why == "" and found["SYSTEM"] == "Say '''hi'''.\nBe brief." and found["LICENSE"] == "MIT"
    assert modelfile.render_go_template(found["TEMPLATE"], build_messages("s", [], "q")) == \
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"  # fmt: skip
    settings = dict(re.findall(r"^PARAMETER (\w+) (.*)$", text, re.M))
    usual = Sampling()
    assert float(settings["temperature"]) == usual.temperature and float(settings["top_p"]) == usual.top_p
    assert float(settings["repeat_penalty"]) == usual.repetition_penalty and settings["stop"] == '"<|im_end|>"'


# ---- in llama.cpp

TOKENS, ASKED = 16, 4


def train(base: Base, name: str, template: str, target: Path) -> adapters.Adapter:
    """A real adapter after a few steps on the shipped pairs: enough to answer in another way than the base."""
    example = next(e for e in list_examples() if e.slug == name)
    card, config = example.card(), make_config(lora_r=8, lora_alpha=16)
    made = Renderer(load_tokenizer(base), read_template(template), card.system)
    rows = [made.render_example(p) for p in example.pairs()[:24]]
    model = load_base_model(base, "bfloat16")
    torch.manual_seed(0)
    from peft import get_peft_model

    model = get_peft_model(model, make_lora_config(config, model)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, collate = torch.optim.AdamW(trained, lr=2e-3), Collator(made.tokenizer.pad_token_id)
    for at in range(0, len(rows), 4):
        batch = collate([{"input_ids": r.input_ids, "labels": r.labels} for r in rows[at : at + 4]])
        total, learned = nll_sum(model, batch["input_ids"], batch["labels"])
        (total / learned).backward()
        optimizer.step()
        optimizer.zero_grad()
    adapters.save_adapter(model, target, base=base, template=made.template, card=card, facts=FACTS)
    return adapters.read_adapter(target)


def llama_cpp(model: Path, prompts: list[list[int]], lora: Path | None = None) -> list[list[int]]:
    """The first tokens of llama.cpp's greedy answers."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 512, 1, False, 0
    settings.cpuparams.n_threads = 2
    if lora:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    server, said = xllamacpp.Server(settings), []
    for ids in prompts:
        asked = {"prompt": ids, "n_predict": TOKENS, "temperature": 0, "logprobs": 1, "cache_prompt": False}
        answer = server.handle_completions(asked)
        said.append([t["id"] for t in answer["choices"][0]["logprobs"]["content"]])
    return said


def alike(wanted: list[list[int]], got: list[list[int]]) -> float:
    """Share of the wanted tokens before the first difference."""
    firsts = [next((n for n, (a, b) in enumerate(zip(w, g, strict=False)) if a != b), min(len(w), len(g)))
              for w, g in zip(wanted, got, strict=True)]  # fmt: skip
    return sum(firsts) / sum(map(len, wanted))


@pytest.mark.slow
@pytest.mark.parametrize(
    "base_name, persona, template",
    [
        ("smollm2-135m-instruct", "lighthouse-keeper", "smollm2"),
        ("gemma-3-270m", "zhen-huan", "gemma-base"),
    ],
)
@pytest.mark.release
def test_llama_cpp_says_what_our_chat_says(request, base_home, tmp_path, base_name, persona, template):
    """Adapter on a 16-bit base, and merged, in llama.cpp. Both embedded bases: Llama's rows of q and k are permuted."""
    if base_name == "smollm2-135m-instruct":
        request.getfixturevalue("smollm2_tokenizer")
    from persona.models.base import resolve_base

    base = resolve_base(base_name)
    adapter = train(base, persona, template, tmp_path / "adapter")
    model = attach.attach_adapter(load_base_model(base, "float32"), adapter, "x")
    made = session.renderer_of(adapter, load_tokenizer(base))
    prompts = [made.render_prompt([], q).ids for q in adapter.card.probes[:ASKED]]

    def ours(model) -> list[list[int]]:
        said = [model.generate(torch.tensor([p]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=made.stop_id)
                for p in prompts]  # fmt: skip
        return [s[0, len(p) :].tolist() for s, p in zip(said, prompts, strict=True)]

    wanted = ours(model)
    with model.disable_adapter():
        assert alike(wanted, ours(model)) < 0.5
    del model
    if base_name == "smollm2-135m-instruct":  # opening Gemma's own file takes nine seconds each time
        whole = gguf_folder.export_merged_gguf(adapter, base, tmp_path / "whole")
        assert whole["difference"]["kl"] < 1e-4
        check = whole["check"]
        assert check["prompt_ids_equal"] and check["stops"] and check["tokens"] > 50
        assert check["tokens_equal"] >= 0.95 and abs(check["nll_difference"]) < 0.01
        assert [note[:22] for note in whole["notes"]] == ["Checked in llama.cpp: "]
        assert alike(wanted, llama_cpp(tmp_path / "whole" / "whole.gguf", prompts)) >= 0.9
        reader = gguf.GGUFReader(tmp_path / "whole" / "whole.gguf")
        assert reader.fields["general.name"].contents() == adapter.card.name
        assert (
            reader.fields["tokenizer.chat_template"].contents()
            == merged_model.strip_generation_tags(adapter.template).text
        )
        assert reader.fields["tokenizer.ggml.eot_token_id"].contents() == made.stop_id
        del reader
    made_folder = gguf_folder.export_adapter_gguf(adapter, base, tmp_path / "lora")
    assert made_folder["check"]["prompt_ids_equal"] and made_folder["check"]["stops"]
    assert made_folder["check"]["nll_difference"] < 0.1
    lora = tmp_path / "lora" / "lora.gguf"
    with pytest.raises(InputError, match="is there already"):
        gguf_folder.export_adapter_gguf(adapter, base, tmp_path / "lora")
    bare = load_base_model(base, "float16")
    stored = next(f for f in (tmp_path / "lora").glob("*.gguf") if f != lora)  # the file that the base came from
    gguf_files.write_model_gguf(stored, bare.state_dict(), base, tmp_path / "base.gguf", "base", "", made.stop_id)
    assert alike(wanted, llama_cpp(tmp_path / "base.gguf", prompts, lora)) >= 0.9
    text = (tmp_path / "lora" / "Modelfile").read_text()
    assert f"FROM ./{stored.name}\nADAPTER ./lora.gguf\nTEMPLATE" in text and "<bos>" not in text
