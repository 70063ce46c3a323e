"""Step 4, what its tabs share: who answers, and how the replies are sampled."""

from typing import Any, NamedTuple

from persona.errors import Message
from persona.models import zerogpu
from persona.models.sampling import Sampling

CARD_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # what a persona's card can hold


NO_UNSEEN_QUESTIONS = Message(
    "There are no probes and no held-out questions that this adapter was not trained on. Write questions of your own, "
    "or add probes in step 1, tab Who it is."
)


class Selection(NamedTuple):
    """Who answers whom, in which conversation: the components, or their values in a handler."""

    browser_key: Any  # whose conversations these are
    slug: Any  # of the open persona, "" for none
    adapter_id: Any  # of the chosen adapter, see voice_picker.py
    other_voices: Any  # ids of the voices beside it
    conversation_id: Any  # "" for a new one


class SamplingSettings(NamedTuple):
    """How replies are made, the same for all voices: the components in the page's order, or their values."""

    strength: Any  # of the adapters: 0 is the base, 1 as trained
    temperature: Any
    top_p: Any
    top_k: Any
    min_p: Any
    repetition_penalty: Any
    max_new_tokens: Any
    seed: Any
    quantization: Any = "auto"  # of the base in memory, a ChatQuantization

    def of_card(self) -> list[Any]:
        """Those of CARD_SAMPLING."""
        return [getattr(self, name) for name in CARD_SAMPLING]

    def to_sampling(self) -> Sampling:
        """The values; an emptied number is 0."""
        return Sampling(
            temperature=float(self.temperature),
            top_p=float(self.top_p),
            top_k=int(self.top_k or 0),
            min_p=float(self.min_p),
            repetition_penalty=float(self.repetition_penalty),
            seed=int(self.seed or 0),
            max_new_tokens=int(self.max_new_tokens),
        )

    def gpu_seconds(self, rows: int) -> float:
        """Seconds of the GPU for a batch of answers, on ZeroGPU."""
        return zerogpu.answer_seconds(int(self.max_new_tokens), rows)
