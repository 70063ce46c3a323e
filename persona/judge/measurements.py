"""One evaluation, part by part, on a base with the adapter attached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rapidfuzz import fuzz, process

from persona.compare.session import NO_ADAPTER, Column, LoadedModel
from persona.errors import Message
from persona.judge import metrics, probes
from persona.judge import report_model as found
from persona.judge import scoring as measuring
from persona.judge.eval_rows import EvalRows, sample_evenly
from persona.judge.scoring import EvalProgress, EvalWork
from persona.models.adapter import Adapter
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.store.pairs import Pair
from persona.store.persona_folder import ProbeRule
from persona.template.render import Renderer, TrainingExample
from persona.train.run_folder import Run

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


@dataclass
class EvalSession:
    """What all parts share. The rows are chosen once, so that the work can be counted before it begins."""

    voices: LoadedModel
    name: str
    renderer: Renderer
    held: list[tuple[Pair, TrainingExample]]
    trained: list[tuple[Pair, TrainingExample]]
    rules: list[ProbeRule]
    limits: EvalBudget
    sampling: Sampling
    work: EvalWork
    notes: list[str] = field(default_factory=list)

    def ask(self, columns: Sequence[Column], seed: int = 0, limit: int = 0) -> list[Generation]:
        sampling = replace(self.sampling, seed=seed, max_new_tokens=limit or self.sampling.max_new_tokens)
        return measuring.ask_columns(self.voices, columns, sampling, self.renderer.stop_id, self.work)

    def score_both(self, examples: Sequence[TrainingExample]) -> tuple[list[float], list[float]]:
        """The rows' NLL by base and adapter."""
        return (
            measuring.score_rows(self.voices, NO_ADAPTER, examples, self.work),
            measuring.score_rows(self.voices, self.name, examples, self.work),
        )

    def answers(self, renderer: Renderer, pairs: Sequence[Pair], limit: int) -> list[found.AnswerPair]:
        """Both voices on each pair's question."""
        asked = measuring.render_prompts(renderer, pairs, limit)
        replies = self.ask([Column(who, prompt) for _, prompt in asked for who in (NO_ADAPTER, self.name)], 0, limit)
        return [
            found.AnswerPair(question=pair.instruction, reference=pair.output, base=b.text, adapter=a.text,
                         base_ended=b.ended, adapter_ended=a.ended)
            for (pair, _), b, a in zip(asked, replies[::2], replies[1::2], strict=True)
        ]  # fmt: skip


def start_session(
    voices: LoadedModel, adapter: Adapter, renderer: Renderer, rows: EvalRows, limits: EvalBudget,
    report: Callable[[EvalProgress], None], more: int = 0,
) -> EvalSession:  # fmt: skip
    """Choose the rows and count the work; `more` is work that is done elsewhere."""
    held = _renderable(renderer, rows.held)
    trained = _renderable(renderer, sample_evenly(rows.trained, 2 * limits.trained))
    lost = len(rows.held) - len(held)
    notes: list[str] = []
    if lost:
        notes.append(
            Message("{count:,} held-out pairs cannot be rendered with this template and were left out.", count=lost)
        )
    limit = measuring.reply_token_limit([e for _, e in held + trained])
    rules = probes.list_probe_rules(adapter.card)[: limits.probes]
    asked = [2 * min(limits.answers, len(held)), min(limits.remembered, len(trained))]
    asked += [(2 if n == 0 else 1) * len(rules) for n in range(limits.seeds)]
    planned = more + sum(measuring.count_passes(n, limit) for n in asked)
    planned += measuring.count_passes(2 * limits.general, measuring.GENERAL_REPLY_TOKENS)
    planned += 2 * (min(limits.likelihoods, len(held)) + min(limits.trained, len(trained)) + limits.general)
    sampling = Sampling(max_new_tokens=limit)
    return EvalSession(
        voices,
        voices.attach(adapter),
        renderer,
        sample_evenly(held, limits.likelihoods),
        trained,
        rules,
        limits,
        sampling,
        EvalWork(planned, report),
        notes,
    )


def _renderable(renderer: Renderer, pairs: Sequence[Pair]) -> list[tuple[Pair, TrainingExample]]:
    rendered = [(p, renderer.render_example(p)) for p in pairs]
    return [(p, e) for p, e in rendered if e.learned and not e.problems]


def measure_likelihood(s: EvalSession, rows: EvalRows, run: Run | None) -> found.Likelihood | None:
    """How likely base and adapter find the held-out replies, and some that were trained on."""
    if not s.held:
        return None
    s.work.doing = Message("How likely are the held-out replies?")
    examples = [e for _, e in s.held]
    weights = [e.learned for e in examples]
    base, own = s.score_both(examples)
    gains = [b - a for b, a in zip(base, own, strict=True)]
    spread = metrics.bootstrap(list(zip(base, own, gains, strict=True)), weights)
    of_base, of_own, gain = (found.Interval(value=v, low=low, high=high) for v, low, high in spread)
    known = sample_evenly([e for _, e in s.trained], s.limits.trained)
    trained: list[float | None] = [None, None]
    if known:
        s.work.doing = Message("How likely are replies that were trained on?")
        before, after = s.score_both(known)
        learned = [e.learned for e in known]
        trained = [metrics.bootstrap([[x] for x in side], learned)[0][0] for side in (before, after)]
    own_rows = run is not None and rows.source.startswith("the run's")
    seen = [nll for step, nll in run.progress().held_out if step] if run and own_rows else []
    return found.Likelihood(
        source=rows.source, rows=len(examples), of=len(rows.held), tokens=sum(weights), base=of_base, adapter=of_own,
        gain=gain, wins=sum(g > 0 for g in gains) / len(gains), gains=gains, train_base=trained[0], train=trained[1],
        best=min(seen, default=None),
    )  # fmt: skip


def measure_answers(s: EvalSession, rows: EvalRows) -> found.AnswerStats | None:
    """Both voices on held-out questions, and how near they come to what she said."""
    if not s.held:
        return None
    s.work.doing = Message("Answers to held-out questions")
    heard = s.answers(s.renderer, sample_evenly([p for p, _ in s.held], s.limits.answers), s.sampling.max_new_tokens)
    if not heard:
        return None
    references = [h.reference for h in heard]
    pairs = [p.output for p in (*rows.held, *rows.trained)]
    return found.AnswerStats(
        rows=heard,
        base=_side_stats([h.base for h in heard], [h.base_ended for h in heard], references),
        adapter=_side_stats([h.adapter for h in heard], [h.adapter_ended for h in heard], references),
        pairs=found.SideStats(length=_length_quantiles(pairs), distinct_1=metrics.distinct_n(references, 1),
                          distinct_2=metrics.distinct_n(references, 2)),
    )  # fmt: skip


def _side_stats(texts: list[str], ended: list[bool], references: list[str]) -> found.SideStats:
    return found.SideStats(
        length=_length_quantiles(texts),
        distinct_1=metrics.distinct_n(texts, 1),
        distinct_2=metrics.distinct_n(texts, 2),
        ended=sum(ended) / len(ended),
        similarity=found.Similarity(**metrics.similarity(texts, references)),
    )


def _length_quantiles(texts: Sequence[str]) -> list[float]:
    return metrics.quantiles([len(metrics.split_words(t)) for t in texts])


def measure_probes(s: EvalSession) -> list[found.ProbeResult]:
    """Every probe: the base once, the adapter under several seeds."""
    prompts = [s.renderer.render_prompt([], rule.ask) for rule in s.rules]
    heard: list[list[found.ProbeReply]] = [[] for _ in prompts]
    base: list[found.ProbeReply] = []
    for seed in range(s.limits.seeds):
        s.work.doing = Message("Probes, seed {seed} of {seeds}", seed=seed + 1, seeds=s.limits.seeds)
        voices = [NO_ADAPTER] * (seed == 0) + [s.name]
        replies = s.ask([Column(who, prompt) for who in voices for prompt in prompts], seed)
        judged = [
            found.ProbeReply(text=r.text, ended=r.ended, wrong=probes.find_broken_rules(rule, r.text))
            for r, rule in zip(replies, s.rules * len(voices), strict=True)
        ]
        base = judged[: len(prompts)] if seed == 0 else base
        for of_probe, reply in zip(heard, judged[-len(prompts) :] if prompts else [], strict=True):
            of_probe.append(reply)
    return [
        found.ProbeResult(ask=rule.ask, ruled=bool(rule.must_mention or rule.must_not_mention), base=b, replies=r)
        for rule, b, r in zip(s.rules, base, heard, strict=True)
    ]


def measure_memorisation(s: EvalSession, rows: EvalRows, heard: found.AnswerStats | None) -> found.Memorisation | None:
    """Are training replies said by heart? On held-out questions the same measure is what set phrases give."""
    if not s.trained:
        return None
    s.work.doing = Message("Questions that were trained on")
    asked = measuring.render_prompts(s.renderer, [p for p, _ in sample_evenly(s.trained, s.limits.remembered)],
                                 s.sampling.max_new_tokens)  # fmt: skip
    if not asked:
        return None
    replies = s.ask([Column(s.name, prompt) for _, prompt in asked])
    said = [r.text for r in replies]
    copied = [metrics.is_copy(text, pair.output) for text, (pair, _) in zip(said, asked, strict=True)]
    held = heard.rows if heard else []
    known = [p.output.strip() for p in rows.trained]
    recited = [process.extractOne(h.adapter, known, scorer=fuzz.ratio, score_cutoff=SAME_TEXT_RATIO) for h in held]
    return found.Memorisation(
        rows=len(said), train_copied=sum(copied) / len(copied),
        train_ended=sum(r.ended for r in replies) / len(replies), held_rows=len(held),
        held_copied=sum(metrics.is_copy(h.adapter, h.reference) for h in held) / len(held) if held else None,
        recited=sum(r is not None for r in recited) / len(held) if held else None,
    )  # fmt: skip


def measure_drift(s: EvalSession) -> found.Drift | None:
    """General questions without the persona's system prompt: what has been lost?"""
    s.work.doing = Message("General questions")
    renderer = replace(s.renderer, system="")
    rendered = [(q, renderer.render_example(q.pair)) for q in measuring.read_general_questions()[: s.limits.general]]
    asked = [(q, measuring.mask_stop_token(e, renderer.stop_id)) for q, e in rendered if e.learned and not e.problems]
    questions, examples = [q for q, _ in asked], [e for _, e in asked]
    if not questions:  # a tokenizer that can write none of them
        return None
    base, own = s.score_both(examples)
    rises = [a - b for b, a in zip(base, own, strict=True)]
    spread = metrics.bootstrap(list(zip(base, own, rises, strict=True)), [e.learned for e in examples])
    of_base, of_own, rise = (found.Interval(value=v, low=low, high=high) for v, low, high in spread)
    heard = s.answers(renderer, [q.pair for q in questions], measuring.GENERAL_REPLY_TOKENS)
    right = [(q.right(h.base), q.right(h.adapter)) for q, h in zip(questions, heard, strict=True)]
    return found.Drift(
        rows=len(questions), base=of_base, adapter=of_own, rise=rise, answers=heard,
        base_right=sum(b for b, _ in right) / len(right), adapter_right=sum(a for _, a in right) / len(right),
    )  # fmt: skip
