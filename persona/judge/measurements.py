"""One evaluation, part by part, on a base with the adapter attached."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rapidfuzz import fuzz, process

from persona.compare.session import NO_ADAPTER, Column, LoadedModel
from persona.errors import Message
from persona.judge import behaviour, metrics, probes, scoring
from persona.judge.eval_rows import EvalRows, sample_evenly
from persona.judge.report_model import (
    AnswerPair,
    AnswerStats,
    Drift,
    HardRow,
    Interval,
    Likelihood,
    Memorisation,
    ProbeReply,
    ProbeResult,
    SideStats,
    Similarity,
)
from persona.judge.scoring import EvalProgress, EvalWork
from persona.models.adapter import Adapter
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, ProbeRule
from persona.template.render import Renderer, TrainingExample
from persona.train.run_folder import Run
from persona.write.lint.finding import normalize_text

SAME_TEXT_RATIO = 90  # of 100: an answer so near to a training reply is that reply (one word in ten differs)


@dataclass(frozen=True)
class EvalBudget:
    """How much is measured: the defaults take about two minutes with the embedded base on two CPU cores."""

    likelihoods: int = 64  # held-out rows
    trained: int = 12  # trained rows, for their likelihood
    answers: int = 20  # held-out questions
    remembered: int = 16  # trained questions
    general: int = 24  # general questions
    probes: int = 12
    seeds: int = 3  # answers of the adapter to each probe
    pressure_seeds: int = 2  # answers of the adapter to each question under pressure
    talks: int = 2  # scripted talks (long_talk.py), at once
    talk_rules: int = 5  # probes with rules that are asked in each of them, three times
    hard: int = 5  # held-out rows that are shown as the least likely ones


@dataclass
class EvalSession:
    """What all measurements share. The rows are chosen once, so that the work can be counted before it begins.

    adapter: its name in `model`. held, trained: (pair, rendered pair).
    """

    model: LoadedModel
    adapter: str
    renderer: Renderer
    held: list[tuple[Pair, TrainingExample]]
    trained: list[tuple[Pair, TrainingExample]]
    rules: list[ProbeRule]
    limits: EvalBudget
    sampling: Sampling
    work: EvalWork
    notes: list[str] = field(default_factory=list)
    pressure: list[ProbeRule] = field(default_factory=list)  # questions that want it to admit that it is an AI

    def ask(self, columns: Sequence[Column], seed: int = 0, limit: int = 0) -> list[Generation]:
        sampling = replace(self.sampling, seed=seed, max_new_tokens=limit or self.sampling.max_new_tokens)
        return scoring.ask_columns(self.model, columns, sampling, self.renderer.stop_id, self.work)

    @property
    def general_limit(self) -> int:
        """Tokens of an answer to a general question."""
        return scoring.GENERAL_REPLY_TOKENS + scoring.thinking_room(self.renderer)

    def score_both(self, examples: Sequence[TrainingExample]) -> tuple[list[float], list[float]]:
        """The rows' NLL by base and adapter."""
        return (
            scoring.score_rows(self.model, NO_ADAPTER, examples, self.work),
            scoring.score_rows(self.model, self.adapter, examples, self.work),
        )

    def answer_pairs(self, renderer: Renderer, pairs: Sequence[Pair], limit: int) -> list[AnswerPair]:
        """The answers of base and adapter to each pair's question."""
        asked = scoring.render_prompts(renderer, pairs, limit)
        replies = self.ask([Column(name, p) for _, p in asked for name in (NO_ADAPTER, self.adapter)], 0, limit)
        return [
            AnswerPair(question=pair.instruction, reference=pair.output, base=b.text, adapter=a.text,
                       base_ended=b.ended, adapter_ended=a.ended)
            for (pair, _), b, a in zip(asked, replies[::2], replies[1::2], strict=True)
        ]  # fmt: skip


def start_session(
    model: LoadedModel, adapter: Adapter, renderer: Renderer, card: PersonaCard, rows: EvalRows, limits: EvalBudget,
    report: Callable[[EvalProgress], None], visitor: str = "",
) -> EvalSession:  # fmt: skip
    """Choose the rows. card: whose probes are asked. visitor: whose work it is in the queue before the model."""
    held = _renderable(renderer, rows.held)
    trained = _renderable(renderer, sample_evenly(rows.trained, 2 * limits.trained))
    lost = len(rows.held) - len(held)
    notes: list[str] = []
    if lost:
        notes.append(
            Message(
                "{count:,} held-out pair(s) cannot be rendered with this template and (was|were) left out.", count=lost
            )
        )
    limit = scoring.reply_token_limit([e for _, e in held + trained]) + scoring.thinking_room(renderer)
    trained_on = {normalize_text(pair.instruction) for pair in rows.trained}
    known = probes.list_probe_rules(card)
    rules = [rule for rule in known if normalize_text(rule.ask) not in trained_on]
    if seen := len(known) - len(rules):
        notes.append(
            Message(
                "{count:,} probe(s) (is|are) among the pairs that it was trained on, and (was|were) not asked.",
                count=seen,
            )
        )
    rules = rules[: limits.probes]
    pressure = [r for r in behaviour.list_pressure_rules(card.language) if normalize_text(r.ask) not in trained_on]
    return EvalSession(
        model, model.attach(adapter), renderer, sample_evenly(held, limits.likelihoods), trained, rules, limits,
        Sampling(max_new_tokens=limit), EvalWork(report, visitor), notes, pressure,
    )  # fmt: skip


def count_work(session: EvalSession) -> dict[str, Counter[str]]:
    """The passes of each part of the report, at most."""
    limits, limit, rules = session.limits, session.sampling.max_new_tokens, len(session.rules)
    held, trained = len(session.held), len(session.trained)
    general = scoring.count_passes(2 * limits.general, session.general_limit)

    def count_probe_passes(count: int, seeds: int) -> int:
        return sum(scoring.count_passes((2 if n == 0 else 1) * count, limit) for n in range(seeds))

    return {
        "likelihood": Counter(scoring=2 * (min(limits.likelihoods, held) + min(limits.trained, trained))),
        "answers": Counter(answering=scoring.count_passes(2 * min(limits.answers, held), limit)),
        "probes": Counter(answering=count_probe_passes(rules, limits.seeds)),
        "pressure": Counter(answering=count_probe_passes(len(session.pressure), limits.pressure_seeds)),
        "hard": Counter(answering=scoring.count_passes(min(limits.hard, held), limit)),
        "memory": Counter(answering=scoring.count_passes(min(limits.remembered, trained), limit)),
        "drift": Counter(answering=general, scoring=2 * limits.general),
    }


def _renderable(renderer: Renderer, pairs: Sequence[Pair]) -> list[tuple[Pair, TrainingExample]]:
    return [
        (p, e) for p, e in zip(pairs, renderer.iterate_examples(pairs), strict=True) if e.learned and not e.problems
    ]


def _paired_intervals(*columns: Sequence[float], examples: Sequence[TrainingExample]) -> list[Interval]:
    """The mean of each column over the same rows, weighted by their learned tokens, with its 95 % interval."""
    rows = list(zip(*columns, strict=True))
    return [
        Interval(value=mean, low=low, high=high)
        for mean, low, high in metrics.bootstrap(rows, [e.learned for e in examples])
    ]


def measure_likelihood(session: EvalSession, rows: EvalRows, run: Run | None) -> Likelihood | None:
    """How likely base and adapter find the held-out replies, and some that were trained on."""
    if not session.held:
        return None
    session.work.doing = Message("How likely are the held-out replies?")
    examples = [e for _, e in session.held]
    base_nlls, adapter_nlls = session.score_both(examples)
    gains = [b - a for b, a in zip(base_nlls, adapter_nlls, strict=True)]
    base, adapter, gain = _paired_intervals(base_nlls, adapter_nlls, gains, examples=examples)
    known = sample_evenly([e for _, e in session.trained], session.limits.trained)
    train_base: float | None = None
    train: float | None = None
    if known:
        session.work.doing = Message("How likely are replies that were trained on?")
        train_base, train = (i.value for i in _paired_intervals(*session.score_both(known), examples=known))
    # where the last step is kept on purpose, no better snapshot was missed
    chosen = run is not None and rows.from_run and run.config().load_best_model_at_end
    evaluations = [nll for step, nll in run.progress().held_out if step] if run and chosen else []
    return Likelihood(
        source=rows.source, rows=len(examples), of=len(rows.held), tokens=sum(e.learned for e in examples), base=base,
        adapter=adapter, gain=gain, wins=sum(g > 0 for g in gains) / len(gains), gains=gains, train_base=train_base,
        train=train, best=min(evaluations, default=None), nlls=adapter_nlls,
    )  # fmt: skip


def measure_hard(session: EvalSession, likelihood: Likelihood | None, answers: AnswerStats | None) -> list[HardRow]:
    """The held-out pairs that the adapter finds least likely, the worst first, each with its own answer."""
    nlls = likelihood.nlls if likelihood else []
    if len(nlls) != len(session.held):  # of an older report
        return []
    session.work.doing = Message("The least likely pairs")
    worst = sorted(zip(nlls, (p for p, _ in session.held), strict=True), key=lambda x: -x[0])[: session.limits.hard]
    known = {(a.question, a.reference): a.adapter for a in answers.rows} if answers else {}
    new = [p for _, p in worst if p.history or (p.instruction, p.output) not in known]
    asked = scoring.render_prompts(session.renderer, new, session.sampling.max_new_tokens)
    replies = session.ask([Column(session.adapter, prompt) for _, prompt in asked])
    said = {p: reply.text for (p, _), reply in zip(asked, replies, strict=True)}
    return [
        HardRow(question=p.instruction, reference=p.output, nll=nll, history=p.history,
                answer=said.get(p, known.get((p.instruction, p.output), "")))
        for nll, p in worst
    ]  # fmt: skip


def measure_answers(session: EvalSession, rows: EvalRows) -> AnswerStats | None:
    """The answers of base and adapter to held-out questions, and how near they come to the persona's own replies."""
    if not session.held:
        return None
    session.work.doing = Message("Answers to held-out questions")
    pairs = sample_evenly([p for p, _ in session.held], session.limits.answers)
    answers = session.answer_pairs(session.renderer, pairs, session.sampling.max_new_tokens)
    if not answers:
        return None
    references = [a.reference for a in answers]
    outputs = [p.output for p in (*rows.held, *rows.trained)]
    return AnswerStats(
        rows=answers,
        base=_side_stats([a.base for a in answers], [a.base_ended for a in answers], references),
        adapter=_side_stats([a.adapter for a in answers], [a.adapter_ended for a in answers], references),
        pairs=SideStats(length=_length_quantiles(outputs), distinct_1=metrics.distinct_n(references, 1),
                        distinct_2=metrics.distinct_n(references, 2)),
    )  # fmt: skip


def _side_stats(texts: list[str], ended: list[bool], references: list[str]) -> SideStats:
    return SideStats(
        length=_length_quantiles(texts),
        distinct_1=metrics.distinct_n(texts, 1),
        distinct_2=metrics.distinct_n(texts, 2),
        ended=sum(ended) / len(ended),
        similarity=Similarity(**metrics.similarity(texts, references)),
    )


def _length_quantiles(texts: Sequence[str]) -> list[float]:
    return metrics.quantiles([len(metrics.split_words(t)) for t in texts])


def measure_probes(session: EvalSession) -> list[ProbeResult]:
    """Every probe: the base once, the adapter under several seeds."""
    return _ask_rules(session, session.rules, session.limits.seeds)


def measure_pressure(session: EvalSession) -> list[ProbeResult]:
    """Questions that want it to admit that it is an AI, asked like the probes; `wrong` where it does."""
    results = _ask_rules(session, session.pressure, session.limits.pressure_seeds)

    def judge(reply: ProbeReply) -> ProbeReply:
        return reply.model_copy(update={"wrong": [behaviour.ADMITS_AI] if behaviour.admits_ai(reply.text) else []})

    return [
        p.model_copy(update={"ruled": True, "base": judge(p.base), "replies": list(map(judge, p.replies))})
        for p in results
    ]


def _ask_rules(session: EvalSession, rules: Sequence[ProbeRule], seeds: int) -> list[ProbeResult]:
    prompts = [session.renderer.render_prompt([], rule.ask) for rule in rules]
    adapter_replies: list[list[ProbeReply]] = [[] for _ in prompts]
    base_replies: list[ProbeReply] = []
    for seed in range(seeds):
        session.work.doing = Message("Probes, seed {seed} of {seeds}", seed=seed + 1, seeds=seeds)
        names = [NO_ADAPTER] * (seed == 0) + [session.adapter]
        replies = session.ask([Column(name, prompt) for name in names for prompt in prompts], seed)
        checked = [
            ProbeReply(text=r.text, ended=r.ended, wrong=probes.find_broken_rules(rule, r.text))
            for r, rule in zip(replies, [*rules] * len(names), strict=True)
        ]
        if seed == 0:
            base_replies = checked[: len(prompts)]
        for of_probe, reply in zip(adapter_replies, checked[len(checked) - len(prompts) :], strict=True):
            of_probe.append(reply)
    return [
        ProbeResult(ask=rule.ask, ruled=bool(rule.must_mention or rule.must_not_mention), base=b, replies=r)
        for rule, b, r in zip(rules, base_replies, adapter_replies, strict=True)
    ]


def measure_memorisation(session: EvalSession, rows: EvalRows, answers: AnswerStats | None) -> Memorisation | None:
    """How many training replies come back word for word, beside the same share for held-out questions (set phrases)."""
    if not session.trained:
        return None
    session.work.doing = Message("Questions that were trained on")
    pairs = [p for p, _ in sample_evenly(session.trained, session.limits.remembered)]
    asked = scoring.render_prompts(session.renderer, pairs, session.sampling.max_new_tokens)
    if not asked:
        return None
    replies = session.ask([Column(session.adapter, prompt) for _, prompt in asked])
    copied = [metrics.is_copy(r.text, pair.output) for r, (pair, _) in zip(replies, asked, strict=True)]
    held = answers.rows if answers else []
    known = [p.output.strip() for p in rows.trained]
    recited = [process.extractOne(h.adapter, known, scorer=fuzz.ratio, score_cutoff=SAME_TEXT_RATIO) for h in held]
    return Memorisation(
        rows=len(replies), train_copied=sum(copied) / len(copied),
        train_ended=sum(r.ended for r in replies) / len(replies), held_rows=len(held),
        held_copied=sum(metrics.is_copy(h.adapter, h.reference) for h in held) / len(held) if held else None,
        recited=sum(r is not None for r in recited) / len(held) if held else None,
    )  # fmt: skip


def measure_drift(session: EvalSession) -> Drift | None:
    """What general knowledge was lost: general questions, asked without the persona's system prompt."""
    session.work.doing = Message("General questions")
    renderer = replace(session.renderer, system="")
    questions = scoring.read_general_questions()[: session.limits.general]
    rendered = list(zip(questions, renderer.iterate_examples(q.pair for q in questions), strict=True))
    usable = [(q, scoring.mask_stop_token(e, renderer.stop_id)) for q, e in rendered if e.learned and not e.problems]
    questions, examples = [q for q, _ in usable], [e for _, e in usable]
    if not questions:  # a tokenizer that can write none of them
        return None
    base_nlls, adapter_nlls = session.score_both(examples)
    rises = [a - b for b, a in zip(base_nlls, adapter_nlls, strict=True)]
    base, adapter, rise = _paired_intervals(base_nlls, adapter_nlls, rises, examples=examples)
    answers = session.answer_pairs(renderer, [q.pair for q in questions], session.general_limit)
    right = [(q.is_right(a.base), q.is_right(a.adapter)) for q, a in zip(questions, answers, strict=True)]
    return Drift(
        rows=len(questions), base=base, adapter=adapter, rise=rise, answers=answers,
        base_right=sum(b for b, _ in right) / len(right), adapter_right=sum(a for _, a in right) / len(right),
    )  # fmt: skip
