"""TRL's training templates beside ours: why templates/chat ships files of its own, family by family.

TRL is not imported: its templates are read as files of the installed package.
"""

from functools import cache

import pytest
from conftest import family_tokenizer
from rendering import CONVERSATIONS, SHIPPED, TRL

from persona.errors import TemplateError
from persona.template.chat_template import ChatTemplate, apply_template

SAME = "the same text and mask"
LINE_BREAKS = "learns line breaks around the reply too, which a chat never has to write"
THOUGHTS = "learns an empty block of thoughts, which a chat that asks for none writes itself"
OTHER_TEXT = "renders another training text"
NO_SYSTEM = "refuses a system prompt, which every persona has"

# TRL's name -> (ours, how TRL's differs). llama-3 alone could be read from TRL; one file more is less than a second source
FAMILIES = {
    "deepseek_r1_distill": ("deepseek-r1-distill", {OTHER_TEXT}),  # no closed block: the prompt of a chat opens one
    "diffusion_gemma": ("gemma-4", {LINE_BREAKS}),
    "gemma": ("gemma", {LINE_BREAKS, NO_SYSTEM}),
    "gemma3": ("gemma", {LINE_BREAKS}),
    "glm4moe": ("glm-4.5", {OTHER_TEXT}),  # without /nothink, so trained on another prompt than a chat's
    "lfm2": ("internlm", {LINE_BREAKS}),
    "llama3": ("llama-3", {SAME}),
    "phi3": ("phi-3", {OTHER_TEXT}),  # a second end token after the line break
    "phi3_5": ("phi-3", {OTHER_TEXT}),
    "qwen2_5": ("qwen2.5", {LINE_BREAKS}),
    "qwen3": ("qwen3", {THOUGHTS, OTHER_TEXT}),  # the block stands before earlier replies too
    "qwen3_instruct_2507": ("chatml", {LINE_BREAKS}),
    "qwen3_vl": ("chatml", {LINE_BREAKS}),
}
WITHOUT_TRL = {"alpaca-en", "alpaca-zh", "gemma-base", "glm-4", "llama-3.1", "mistral-tekken", "mistral-v1", "mistral-v3",
               "mistral-v7", "phi-4", "phi-4-mini", "smollm2", "smollm3"}  # fmt: skip


@cache
def differences(file: str, name: str) -> frozenset[str]:
    text = (TRL / f"{file}_training.jinja").read_text(encoding="utf-8")
    tokenizer = family_tokenizer(text, SHIPPED[name].text, extra="<|user|> <|assistant|> <|system|>")
    found = set()
    for chat in CONVERSATIONS:
        whole = [*chat, {"role": "assistant", "content": "Yes, 好。"}]
        try:
            got = [
                apply_template(tokenizer, t, whole, return_dict=True, return_assistant_tokens_mask=True)
                for t in (SHIPPED[name], ChatTemplate(file, text))
            ]
        except TemplateError:
            assert chat[0]["role"] == "system"
            found.add(NO_SYSTEM)
            continue
        ids, masks = [list(x["input_ids"]) for x in got], [list(x["assistant_masks"]) for x in got]
        if ids[0] != ids[1]:
            found.add(OTHER_TEXT)
        elif masks[0] == masks[1]:
            found.add(SAME)
        else:
            more = {tokenizer.decode([i]) for i, mine, trls in zip(ids[0], *masks, strict=True) if mine != trls}
            assert more <= {"\n", "\n\n", "<think>", "</think>"}
            assert all(mine <= trls for mine, trls in zip(*masks, strict=True)), "TRL marks all that ours marks"
            found.add(THOUGHTS if "<think>" in more else LINE_BREAKS)
    return frozenset(found)


@pytest.mark.parametrize("file", FAMILIES)
def test_how_trls_training_template_differs_from_ours(file):
    name, expected = FAMILIES[file]
    assert differences(file, name) == expected


def test_every_shipped_template_is_in_the_table():
    trls = {path.stem.removesuffix("_training") for path in TRL.glob("*_training.jinja")}
    assert trls >= FAMILIES.keys()
    assert {name for name, _ in FAMILIES.values()} | WITHOUT_TRL == SHIPPED.keys()
    assert not {name for name, _ in FAMILIES.values()} & WITHOUT_TRL
