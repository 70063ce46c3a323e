"""One evaluation, part by part, on a base with the adapter attached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rapidfuzz import fuzz, process

import persona.evaluate.found as found
import persona.evaluate.measuring as measuring
import persona.evaluate.metrics as metrics
import persona.evaluate.probes as probes
from persona.adapter import Adapter
from persona.chat import BASE, Column, Voices
from persona.decode import Reply
from persona.errors import Message
from persona.evaluate.measuring import Progress, Work
from persona.evaluate.rows import Rows, some
from persona.folder import ProbeRule
from persona.pairs import Pair
from persona.render import Example, Renderer
from persona.runs import Run
from persona.sampling import Sampling

SAME_TEXT = 90  # of 100: an answer so near to a training reply is that reply (one word in ten differs)


@dataclass(frozen=True)
class Limits:
    """How much is measured: the defaults take about two minutes with the embedded base on two CPU cores."""

    likelihoods: int = 64  # held-out rows
    trained: int = 12  # trained rows, for their likelihood
    answers: int = 20  # held-out questions
    remembered: int = 16  # trained questions
    general: int = 24  # general questions
    probes: int = 12
    seeds: int = 3  # answers of the adapter to each probe


@dataclass
class Session:
    """What all parts share. The rows are chosen once, so that the work can be counted before it begins."""

    voices: Voices
    name: str
    renderer: Renderer
    held: list[tuple[Pair, Example]]
    trained: list[tuple[Pair, Example]]
    rules: list[ProbeRule]
    limits: Limits
    sampling: Sampling
    work: Work
    notes: list[str] = field(default_factory=list)

    def ask(self, columns: Sequence[Column], seed: int = 0, limit: int = 0) -> list[Reply]:
        sampling = replace(self.sampling, seed=seed, max_new_tokens=limit or self.sampling.max_new_tokens)
        return measuring.ask(self.voices, columns, sampling, self.renderer.stop_id, self.work)

    def both(self, examples: Sequence[Example]) -> tuple[list[float], list[float]]:
        """The rows' NLL by base and adapter."""
        return (
            measuring.row_nlls(self.voices, BASE, examples, self.work),
            measuring.row_nlls(self.voices, self.name, examples, self.work),
        )

    def answers(self, renderer: Renderer, pairs: Sequence[Pair], limit: int) -> list[found.Answer]:
        """Both voices on each pair's question."""
        asked = measuring.prompts_of(renderer, pairs, limit)
        replies = self.ask([Column(who, prompt) for _, prompt in asked for who in (BASE, self.name)], 0, limit)
        return [
            found.Answer(question=pair.instruction, reference=pair.output, base=b.text, adapter=a.text,
                         base_ended=b.ended, adapter_ended=a.ended)
            for (pair, _), b, a in zip(asked, replies[::2], replies[1::2], strict=True)
        ]  # fmt: skip


def begin(
    voices: Voices, adapter: Adapter, renderer: Renderer, rows: Rows, limits: Limits,
    report: Callable[[Progress], None], more: int = 0,
) -> Session:  # fmt: skip
    """Choose the rows and count the work; `more` is work that is done elsewhere."""
    held = _renderable(renderer, rows.held)
    trained = _renderable(renderer, some(rows.trained, 2 * limits.trained))
    lost = len(rows.held) - len(held)
    notes: list[str] = []
    if lost:
        notes.append(
            Message("{count:,} held-out pairs cannot be rendered with this template and were left out.", count=lost)
        )
    limit = measuring.reply_limit([e for _, e in held + trained])
    rules = probes.rules(adapter.card)[: limits.probes]
    asked = [2 * min(limits.answers, len(held)), min(limits.remembered, len(trained))]
    asked += [(2 if n == 0 else 1) * len(rules) for n in range(limits.seeds)]
    planned = more + sum(measuring.passes(n, limit) for n in asked)
    planned += measuring.passes(2 * limits.general, measuring.SHORT)
    planned += 2 * (min(limits.likelihoods, len(held)) + min(limits.trained, len(trained)) + limits.general)
    sampling = Sampling(max_new_tokens=limit)
    return Session(voices, voices.attach(adapter), renderer, some(held, limits.likelihoods), trained, rules, limits,
                   sampling, Work(planned, report), notes)  # fmt: skip


def _renderable(renderer: Renderer, pairs: Sequence[Pair]) -> list[tuple[Pair, Example]]:
    rendered = [(p, renderer.example(p)) for p in pairs]
    return [(p, e) for p, e in rendered if e.learned and not e.problems]


def likelihood(s: Session, rows: Rows, run: Run | None) -> found.Likelihood | None:
    """How likely base and adapter find the held-out replies, and some that were trained on."""
    if not s.held:
        return None
    s.work.doing = Message("How likely are the held-out replies?")
    examples = [e for _, e in s.held]
    weights = [e.learned for e in examples]
    base, own = s.both(examples)
    gains = [b - a for b, a in zip(base, own, strict=True)]
    spread = metrics.bootstrap(list(zip(base, own, gains, strict=True)), weights)
    of_base, of_own, gain = (found.Interval(value=v, low=low, high=high) for v, low, high in spread)
    known = some([e for _, e in s.trained], s.limits.trained)
    trained: list[float | None] = [None, None]
    if known:
        s.work.doing = Message("How likely are replies that were trained on?")
        before, after = s.both(known)
        learned = [e.learned for e in known]
        trained = [metrics.bootstrap([[x] for x in side], learned)[0][0] for side in (before, after)]
    own_rows = run is not None and rows.source.startswith("the run's")
    seen = [nll for step, nll in run.progress().held_out if step] if run and own_rows else []
    return found.Likelihood(
        source=rows.source, rows=len(examples), of=len(rows.held), tokens=sum(weights), base=of_base, adapter=of_own,
        gain=gain, wins=sum(g > 0 for g in gains) / len(gains), gains=gains, train_base=trained[0], train=trained[1],
        best=min(seen, default=None),
    )  # fmt: skip


def answers(s: Session, rows: Rows) -> found.Answers | None:
    """Both voices on held-out questions, and how near they come to what she said."""
    if not s.held:
        return None
    s.work.doing = Message("Answers to held-out questions")
    heard = s.answers(s.renderer, some([p for p, _ in s.held], s.limits.answers), s.sampling.max_new_tokens)
    if not heard:
        return None
    references = [h.reference for h in heard]
    pairs = [p.output for p in (*rows.held, *rows.trained)]
    return found.Answers(
        rows=heard,
        base=_voice([h.base for h in heard], [h.base_ended for h in heard], references),
        adapter=_voice([h.adapter for h in heard], [h.adapter_ended for h in heard], references),
        pairs=found.Voice(length=_lengths(pairs), distinct_1=metrics.distinct(references, 1),
                          distinct_2=metrics.distinct(references, 2)),
    )  # fmt: skip


def _voice(texts: list[str], ended: list[bool], references: list[str]) -> found.Voice:
    return found.Voice(
        length=_lengths(texts), distinct_1=metrics.distinct(texts, 1), distinct_2=metrics.distinct(texts, 2),
        ended=sum(ended) / len(ended), similarity=found.Similarity(**metrics.similarity(texts, references)),
    )  # fmt: skip


def _lengths(texts: Sequence[str]) -> list[float]:
    return metrics.quantiles([len(metrics.words(t)) for t in texts])


def asked_probes(s: Session) -> list[found.Probe]:
    """Every probe: the base once, the adapter under several seeds."""
    prompts = [s.renderer.prompt([], rule.ask) for rule in s.rules]
    heard: list[list[found.Reply]] = [[] for _ in prompts]
    base: list[found.Reply] = []
    for seed in range(s.limits.seeds):
        s.work.doing = Message("Probes, seed {seed} of {seeds}", seed=seed + 1, seeds=s.limits.seeds)
        voices = [BASE] * (seed == 0) + [s.name]
        replies = s.ask([Column(who, prompt) for who in voices for prompt in prompts], seed)
        judged = [
            found.Reply(text=r.text, ended=r.ended, wrong=probes.wrong(rule, r.text))
            for r, rule in zip(replies, s.rules * len(voices), strict=True)
        ]
        base = judged[: len(prompts)] if seed == 0 else base
        for of_probe, reply in zip(heard, judged[-len(prompts) :] if prompts else [], strict=True):
            of_probe.append(reply)
    return [
        found.Probe(ask=rule.ask, ruled=bool(rule.must_mention or rule.must_not_mention), base=b, replies=r)
        for rule, b, r in zip(s.rules, base, heard, strict=True)
    ]


def memory(s: Session, rows: Rows, heard: found.Answers | None) -> found.Memory | None:
    """Are training replies said by heart? On held-out questions the same measure is what set phrases give."""
    if not s.trained:
        return None
    s.work.doing = Message("Questions that were trained on")
    asked = measuring.prompts_of(s.renderer, [p for p, _ in some(s.trained, s.limits.remembered)],
                                 s.sampling.max_new_tokens)  # fmt: skip
    if not asked:
        return None
    replies = s.ask([Column(s.name, prompt) for _, prompt in asked])
    said = [r.text for r in replies]
    copied = [metrics.is_copy(text, pair.output) for text, (pair, _) in zip(said, asked, strict=True)]
    held = heard.rows if heard else []
    known = [p.output.strip() for p in rows.trained]
    recited = [process.extractOne(h.adapter, known, scorer=fuzz.ratio, score_cutoff=SAME_TEXT) for h in held]
    return found.Memory(
        rows=len(said), train_copied=sum(copied) / len(copied),
        train_ended=sum(r.ended for r in replies) / len(replies), held_rows=len(held),
        held_copied=sum(metrics.is_copy(h.adapter, h.reference) for h in held) / len(held) if held else None,
        recited=sum(r is not None for r in recited) / len(held) if held else None,
    )  # fmt: skip


def drift(s: Session) -> found.Drift | None:
    """General questions without the persona's system prompt: what has been lost?"""
    s.work.doing = Message("General questions")
    renderer = replace(s.renderer, system="")
    rendered = [(q, renderer.example(q.pair)) for q in measuring.general()[: s.limits.general]]
    asked = [(q, measuring.without_stop(e, renderer.stop_id)) for q, e in rendered if e.learned and not e.problems]
    questions, examples = [q for q, _ in asked], [e for _, e in asked]
    if not questions:  # a tokenizer that can write none of them
        return None
    base, own = s.both(examples)
    rises = [a - b for b, a in zip(base, own, strict=True)]
    spread = metrics.bootstrap(list(zip(base, own, rises, strict=True)), [e.learned for e in examples])
    of_base, of_own, rise = (found.Interval(value=v, low=low, high=high) for v, low, high in spread)
    heard = s.answers(renderer, [q.pair for q in questions], measuring.SHORT)
    right = [(q.right(h.base), q.right(h.adapter)) for q, h in zip(questions, heard, strict=True)]
    return found.Drift(
        rows=len(questions), base=of_base, adapter=of_own, rise=rise, answers=heard,
        base_right=sum(b for b, _ in right) / len(right), adapter_right=sum(a for _, a in right) / len(right),
    )  # fmt: skip
