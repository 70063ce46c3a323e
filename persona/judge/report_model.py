"""The report of an evaluation as values: report.json on disk, shown by the page, the shell and report.html.

NLL: mean negative log-likelihood, nats per learned token. Shares are 0 … 1, BLEU, chrF and ROUGE-L 0 … 100.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, WrapValidator

from persona.errors import Message

# a text for the user; pydantic would make a Message a plain str, which it is in report.json only
Text = Annotated[str, WrapValidator(lambda value, check: value if isinstance(value, Message) else check(value))]
VerdictKind = Literal[
    "learned", "not learned", "overfitted", "forgot", "never stops", "circles", "breaks character", "drifts",
    "not measured",
]  # fmt: skip
NextStep = Literal["interview", "epochs", "rehearsal", "base"]


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(FrozenModel):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


class Likelihood(FrozenModel):
    """NLL of the true replies by base and adapter. gain: base − adapter, paired; wins: share of rows with a gain.

    train, train_base: NLL on a sample of the rows that were trained on; best: the lowest held-out NLL during the run.
    Each is None where it is not known. nlls: of each row by the adapter, in the order of gains; [] in older reports.
    """

    source: str
    rows: int
    of: int
    tokens: int
    base: Interval
    adapter: Interval
    gain: Interval
    wins: float
    gains: list[float]
    train: float | None = None
    train_base: float | None = None
    best: float | None = None
    nlls: list[float] = []


class AnswerPair(FrozenModel):
    question: str
    reference: str
    base: str
    adapter: str
    base_ended: bool
    adapter_ended: bool


class HardRow(FrozenModel):
    """A held-out pair that the adapter finds unlikely. nll: nats per learned token; answer: "" if never asked."""

    question: str
    reference: str
    nll: float
    answer: str = ""
    history: tuple[tuple[str, str], ...] = ()


class Similarity(FrozenModel):
    """Similarity of the answers to the references, over the whole set."""

    bleu: float
    chrf: float
    rouge_l: float


class SideStats(FrozenModel):
    """The answers of base, adapter or pairs as a set. length: words at 5, 25, 50, 75 and 95 % of the answers."""

    length: list[float]
    distinct_1: float
    distinct_2: float
    ended: float | None = None
    similarity: Similarity | None = None


class AnswerStats(FrozenModel):
    """Answers to held-out questions. pairs: the true replies, for comparison."""

    rows: list[AnswerPair]
    base: SideStats
    adapter: SideStats
    pairs: SideStats


class ProbeReply(FrozenModel):
    """An answer to a probe. wrong: the rules that it breaks, in words."""

    text: str
    ended: bool
    wrong: list[str]


class ProbeResult(FrozenModel):
    """A probe's answers. ruled: whether the card has rules for it that could be broken."""

    ask: str
    ruled: bool
    base: ProbeReply
    replies: list[ProbeReply]


class Memorisation(FrozenModel):
    """Shares of answers that copy a reply: all of it, or half in one run. recited: held-out questions answered with a
    training reply.
    """

    rows: int
    train_copied: float
    train_ended: float
    held_rows: int
    held_copied: float | None
    recited: float | None


class Drift(FrozenModel):
    """NLL and answers on general questions, without the persona's system prompt.

    rise: adapter − base, paired; right: shares of answers with the key word.
    """

    rows: int
    base: Interval
    adapter: Interval
    rise: Interval
    base_right: float
    adapter_right: float
    answers: list[AnswerPair]


class TalkTurn(FrozenModel):
    """A turn of the scripted talk. replies: one a talk; answers: those, and those to the rules where they were asked.

    kept: whether each rule was kept, talk by talk; [] where none was asked. circles, foreign, admissions: answers that
    go round in circles, are in another writing system than the pairs, say that they are an AI. left_out: the oldest
    exchanges that the prompt had no room for.
    """

    said: str
    replies: list[str]
    answers: int
    kept: list[bool] = []
    circles: int = 0
    foreign: int = 0
    admissions: int = 0
    left_out: int = 0


class LongTalk(FrozenModel):
    """The same scripted talk several times, each with other random numbers. rules: the questions that have rules."""

    talks: int
    rules: list[str]
    turns: list[TalkTurn]


class JudgeAgreement(FrozenModel):
    """A judge against the author's own blind votes: the share of the same choices (left, right, neither), and Cohen's
    kappa (1960). Both are None with too few votes to say."""

    votes: int
    agree: Interval | None = None
    kappa: Interval | None = None


class JudgeTally(FrozenModel):
    """How often a blind judge preferred the adapter's held-out answers. agreement: None in older reports."""

    model: str
    wins: int
    losses: int
    ties: int
    agreement: JudgeAgreement | None = None


class Verdict(FrozenModel):
    """steps: what can be done about it, the most promising first; the page has a button for each."""

    kind: VerdictKind
    said: Text
    cause: Text
    advice: Text
    remarks: list[Text]
    steps: list[NextStep] = []

    @property
    def paragraph(self) -> str:
        return " ".join(x for x in (self.said, self.cause, self.advice) if x)


class EvalReport(FrozenModel):
    """The whole report. A part that could not be measured is None, and `notes` says why.

    pressure: questions that want it to admit that it is an AI, with its answers. hard: the held-out pairs that the
    adapter finds least likely, the worst first. missing: the parts that are left to
    measure, where the evaluation was stopped. quantization: of the base: nf4, int8 or none.
    """

    persona: str
    base: str
    template: str
    created: str
    seconds: float
    sampling: str
    steps: int | None = None
    train_rows: int | None = None
    learning_rate: float | None = None
    likelihood: Likelihood | None = None
    answers: AnswerStats | None = None
    probes: list[ProbeResult] = []
    pressure: list[ProbeResult] = []
    talk: LongTalk | None = None
    memory: Memorisation | None = None
    drift: Drift | None = None
    ended: float | None = None
    base_ended: float | None = None
    judged: JudgeTally | None = None
    hard: list[HardRow] = []
    quantization: str = "none"
    notes: list[Text] = []
    missing: list[str] = []
    verdict: Verdict | None = None
