"""A GGUF file opened in llama.cpp and compared with the page: prompt, likeliest tokens, likelihood, stop token."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from persona.errors import Message, ShareError
from persona.share.exports.formats import Quantization
from persona.share.exports.probe_answers import ProbeAnswers
from persona.store.workspace import child_environment
from persona.template.chat_template import build_messages
from persona.template.render import Renderer

ENOUGH_EQUAL = 0.9  # share of tokens; llama.cpp rounds activations, so the last bits of a logit always differ
ENOUGH_LIKELY = 0.05  # nats per token; a twentieth of what a persona's training usually gains


@dataclass(frozen=True)
class EngineCheck:
    """llama.cpp with the written file against base + adapter on the page.

    prompt_ids_equal: of a first question, and of one after another; stops: the persona's stop token ends an answer;
    tokens: places compared; tokens_equal: share of them where the likeliest token is the page's; nll_difference: of the
    page's answers, nats per token, positive where llama.cpp finds them less likely.
    """

    prompt_ids_equal: bool
    stops: bool
    tokens: int
    tokens_equal: float
    nll_difference: float


def check_in_llama_cpp(
    model: Path, renderer: Renderer, answers: ProbeAnswers, lora: Path | None = None, template: str = ""
) -> EngineCheck | None:
    """Open the file and replay the answers; None where llama.cpp is not installed, or the system ended it.

    lora: an adapter's file, for which `model` is the base. template: in Jinja; "" for the one in the file. Raises
    ShareError where llama.cpp refuses the file.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    first, last = answers.questions[0], answers.questions[-1]
    turns = [([], first), ([(first, last)], last)]
    job = {
        "model": str(model),
        "lora": str(lora or ""),
        "template": template,
        "chats": [build_messages(renderer.system, history, question) for history, question in turns],
        "rows": answers.rows,
        "stop_id": renderer.stop_id,
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "persona.share.exports.llama_cpp"],
        input=json.dumps(job), capture_output=True, text=True, env=child_environment(),
    )  # fmt: skip
    if done.returncode > 0:
        why = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise ShareError("{file}: llama.cpp does not open what was written ({reason}).", file=model.name, reason=why)
    if done.returncode:
        return None
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = [renderer.render_prompt(history, question).ids for history, question in turns]
    ours, theirs = answers.log_probabilities(), found["log_probabilities"]
    tokens = max(1, sum(map(len, ours)))
    equal = sum(a == b for (_, reply), row in zip(answers.rows, found["likeliest"], strict=True)
                for a, b in zip(reply, row, strict=True))  # fmt: skip
    lost = sum(a - b for row, other in zip(ours, theirs, strict=True) for a, b in zip(row, other, strict=True))
    return EngineCheck(found["prompts"] == wanted, found["stops"], tokens, equal / tokens, lost / tokens)


def describe_check(
    check: EngineCheck | None, quantization: Quantization = Quantization.none, same_in_16_bits: float = 1.0
) -> list[str]:
    """The check in words: what is the same, and where something is not, its likely cause and the way on.

    same_in_16_bits: share of tokens that are the page's before the weights were quantized.
    """
    if check is None:
        return [Message("Not checked in llama.cpp: it is not installed here (pip install xllamacpp).")]
    notes: list[str] = [
        Message(
            "Checked in llama.cpp: at {share:.1%} of {count} places its likeliest token is this page's, and the "
            "page's answers cost it {difference:+.3f} nats a token.",
            share=check.tokens_equal,
            count=check.tokens,
            difference=check.nll_difference,
        )
    ]
    if not check.prompt_ids_equal:
        notes.append(Message("Its prompt is not this page's: llama.cpp reads the chat template in another way."))
    if not check.stops:
        notes.append(Message("It does not end an answer at the persona's stop token: name it as a stop text there."))
    if check.tokens_equal < ENOUGH_EQUAL or check.nll_difference > ENOUGH_LIKELY:
        if quantization is not Quantization.none and same_in_16_bits >= ENOUGH_EQUAL:
            notes.append(
                Message(
                    "The loss is the quantization's ({quantization}): in 16 bits {share:.1%} of the tokens are the "
                    "same. Take more bits, such as q8_0.",
                    quantization=quantization.value,
                    share=same_in_16_bits,
                )
            )
        else:
            notes.append(Message("That is more than rounding explains: compare the answers before you share it."))
    return notes
