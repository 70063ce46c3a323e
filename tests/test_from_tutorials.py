"""docs/from-tutorials.md: its settings are taken, its commands run, and its words are those of the page, in both languages."""

import json
import re
import shlex

import pytest
import uvicorn
import yaml

from persona.store.workspace import PROJECT_DIR
from persona.train.config import RunConfig
from persona.train.settings_file import read_settings

pytest_plugins = "tests.cli_fixtures"
GUIDES = {name: (PROJECT_DIR / "docs" / name).read_text(encoding="utf-8")
          for name in ("from-tutorials.md", "from-tutorials.zh.md")}  # fmt: skip
GUIDE = GUIDES["from-tutorials.md"]
CHINESE = json.loads((PROJECT_DIR / "persona/ui/locales/zh.json").read_text(encoding="utf-8"))
UNTRANSLATED = {"Top-k"}


def blocks(language: str, guide: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", guide, re.M | re.S)


def settings_files() -> dict[str, str]:
    """File name, from its first line → content."""
    return {re.match(r"# (\S+)", block)[1]: block for block in blocks("yaml")}


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]


def test_both_languages_have_the_same_settings_and_commands():
    assert len(commands()) > 20 and len(settings_files()) == 5
    for language in ("yaml", "sh"):
        first, second = (blocks(language, guide) for guide in GUIDES.values())
        assert first == second
    headings, tables = (
        [len(re.findall(pattern, guide, re.M)) for guide in GUIDES.values()] for pattern in ("^##+ ", r"^\| ")
    )
    assert headings[0] == headings[1] and tables[0] == tables[1]


def test_the_settings_are_taken_by_the_tutorials_names(tmp_path):
    read = {}
    for name, text in settings_files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        read[name] = RunConfig(**read_settings(tmp_path / name))
    first = read["gemma-3n.yaml"]
    assert (first.lora_r, first.lora_alpha, first.epochs, first.warmup) == (16, 32, 3, 100)
    assert (first.quantization, first.dtype, first.eval_steps, first.save_total_limit) == ("nf4", "float16", 500, 3)
    assert [c.logging_steps for c in read.values()] == [10, 1, 10, 10, 10] and read["unsloth.yaml"].dtype == "bfloat16"
    assert read["unsloth.yaml"].max_steps == 60 and read["unsloth.yaml"].seed == 42
    assert read["huanhuan.yaml"].target_modules == "q_proj,k_proj,v_proj,o_proj"
    assert read["llama-2.yaml"].warmup == 0.03 and read["llama-2.yaml"].optim == "paged_adamw_8bit"


def test_its_bold_words_are_labels_of_the_page():
    texts = {"from-tutorials.md": {*CHINESE, *UNTRANSLATED}, "from-tutorials.zh.md": {*CHINESE.values(), *UNTRANSLATED}}
    for name, guide in GUIDES.items():
        rows = "\n".join(re.findall(r"^\| .*$", guide, re.M))
        labels = {part.strip() for bold in re.findall(r"\*\*(.+?)\*\*", rows) for part in bold.split("→")}
        assert len(labels) > 25
        assert [x for x in sorted(labels) if not any(x in text for text in texts[name])] == [], name


# ---- the commands, with tiny bases

GPU_ONLY = ("engine", "load_in_4bit", "quantization", "torch_dtype", "bf16", "fp16", "report_to", "bnb_4bit_quant_type",
            "bnb_4bit_compute_dtype", "bnb_4bit_use_double_quant")  # fmt: skip
MODEL_COMMANDS = ("render", "chat", "eval", "export", "serve")


def make_data(folder, monkeypatch) -> None:
    """Small files in place of the data sets, the five settings files, and a server that does not stay."""
    rows = [
        {"instruction": f"ask {n}", "input": "hi" * (n % 2), "output": f"an answer {n}, and more"} for n in range(12)
    ]
    long = [{"instruction": "ask", "input": "", "output": "x" * 2000}]
    for name in ("tatsu-lab.json", "yahma.json", "huanhuan.json"):
        (folder / name).write_text(json.dumps(rows + (long if name != "huanhuan.json" else [])), encoding="utf-8")
    answers = "a long answer of more than fifty characters, so that it stays"
    named = [{"instruction": f"ask {n}", "response": f"{answers} {n}" if n else "short"} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)


def adapt(words: list[str], base) -> list[str]:
    """The command with tiny data and the tiny base."""
    files = {"tatsu-lab/alpaca[:1000]": "tatsu-lab.json[:1000]", "yahma/alpaca-cleaned": "yahma.json", "8000": "0"}
    words = [files.get(word, word) for word in words]
    if "--base" in words:
        at = words.index("--base")
        words[at + 1] = str(base)
    elif words[1] in MODEL_COMMANDS:
        words = [*words, "--base", str(base)]
    return words


@pytest.fixture
def run_commands(tmp_path, home, tiny_gemma, call, monkeypatch):
    """Run commands of the guide in a folder with what they need; returns the folder."""
    make_data(tmp_path, monkeypatch)
    for name, text in settings_files().items():
        known = {k: v for k, v in yaml.safe_load(text).items() if k not in GPU_ONLY}
        known |= {"base": str(tiny_gemma), "max_steps": 1} | ({"optim": "adamw_torch"} if "optim" in known else {})
        (tmp_path / name).write_text(yaml.safe_dump(known))
    monkeypatch.chdir(tmp_path)

    def run(lines: list[list[str]]):
        for words in lines:
            status, _, err = call(*adapt(words, tiny_gemma)[1:])
            assert status == 0, f"{shlex.join(words)}\n{err}"
        return tmp_path

    return run


@pytest.mark.slow
@pytest.mark.release
def test_the_first_tutorial_s_commands_run(run_commands):
    folder = run_commands([words for words in commands() if "assistant" in words and "helper" not in words])
    pairs = [json.loads(line) for line in (folder / "assistant/pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 12 and pairs[1]["instruction"] == "ask 1\n\n### 输入:\nhi", "the long one was dropped"


@pytest.mark.release
def test_every_command_runs(run_commands):
    folder = run_commands(commands())
    assert (folder / "merged_lora_model" / "config.json").is_file()
    assert len((folder / "qlora/pairs.jsonl").read_text().splitlines()) == 11, "the short one was left out"
