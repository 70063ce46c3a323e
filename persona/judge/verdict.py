"""The verdict of an evaluation, in plain words. Every threshold is here, with its reason; behaviour.py has its own.

A difference is sure when its 95 % interval lies on one side of zero; a threshold on top of it says when it is worth
mentioning. decide_verdict goes by importance: what makes the other figures meaningless comes first.
"""

from persona.errors import Message, join
from persona.judge import behaviour, long_talk
from persona.judge.behaviour import VerdictParts
from persona.judge.metrics import format_percent
from persona.judge.report_model import (
    Drift,
    EvalReport,
    Interval,
    JudgeAgreement,
    Likelihood,
    Memorisation,
    NextStep,
    Verdict,
)

# nats per learned token: 2 % more likely words. An adapter that was hardly trained stays below, whatever the interval
NEGLIGIBLE_GAIN = 0.02
# e^0.1: the true words 10 % likelier. Less can be sure with many rows, and yet nobody notices it
CLEAR_GAIN = 0.1
# most answers must end: a chat with less is unusable; with less than nine in ten it is a nuisance
MIN_ENDED, GOOD_ENDED = 0.5, 0.9
# half of the asked training replies come back, and held-out ones by 0.3 less often: said by heart
MEMORISED, MEMORISED_MARGIN = 0.5, 0.3
# nats between held-out and trained rows (a factor of 1.6 a token); alone it is normal, with copies it is overfitting
OVERFIT_GAP = 0.5
# nats above the run's own best evaluation; the kept adapter is normally that best one
PAST_BEST = 0.1
# nats: words of plain answers become e times less likely. A style alone costs less (the persona's prompt is left out)
STRONG_DRIFT, MILD_DRIFT = 1.0, 0.3
# of the questions that the base had right: losing half is forgetting too, with at least 4 lost so that it is not chance
LOST_SHARE, LOST_ANSWERS = 0.5, 4
# held-out pairs: below the first, one odd pair moves the figure; below the second, nothing can be told at all
FEW_ROWS, MIN_ROWS = 20, 5
MIN_VOTES = 20  # of the author: with fewer, a judge's agreement with them says nothing
FEW_STEPS, LOW_RATE, FEW_PAIRS = 20, 2e-5, 50  # steps, learning rate of a LoRA, training pairs
GOOD_PROBES = 0.7  # share of the answers in character
RECITED = 0.2  # of new questions answered with a training reply
REPETITIVE = 0.6  # of the distinct-2 of the pairs' replies
LENGTH_RATIO = (0.5, 2.0)  # of the pairs' median
# kind → what to do next; _next_steps has the exceptions
NEXT_STEPS: dict[str, list[NextStep]] = {
    "not learned": ["epochs", "interview"], "overfitted": ["interview"], "forgot": ["rehearsal"],
    "circles": ["epochs", "base"], "breaks character": ["interview", "epochs"],
    "drifts": ["interview", "base"],
}  # fmt: skip


def decide_verdict(r: EvalReport) -> Verdict:
    """The main verdict, its likely cause, what to do, and further remarks."""
    finders = (
        _nothing_changed, _never_stops, _overfitted, _forgot, behaviour.goes_in_circles,
        behaviour.breaks_character, behaviour.drifts, long_talk.wears_off, _too_few, _not_learned, _learned,
        _not_measured,
    )  # fmt: skip
    kind, said, cause, advice = next(parts for find in finders if (parts := find(r)))
    remarks = [text for about, text in _remarks(r) if text and about != kind]
    return Verdict(
        kind=kind, said=said, cause=cause, advice=advice, remarks=remarks, steps=_next_steps(r, kind)  # type: ignore[arg-type]
    )  # fmt: skip


def _next_steps(r: EvalReport, kind: str) -> list[NextStep]:
    likely = r.likelihood
    if kind == "learned" and likely and likely.gain.low < CLEAR_GAIN:
        return ["epochs", "interview"]
    if kind == "not measured" and likely:  # too few
        return ["interview"]
    return NEXT_STEPS.get(kind, [])


def _nothing_changed(r: EvalReport) -> VerdictParts:
    likely = r.likelihood
    if (
        not likely
        or likely.rows < MIN_ROWS
        or abs(likely.gain.value) >= NEGLIGIBLE_GAIN
        or max(-likely.gain.low, likely.gain.high) >= CLEAR_GAIN
    ):
        return None
    said = Message("Not learned: the adapter changes nothing. {figures}", figures=_nlls(likely))
    advice = Message("Train longer or with a higher learning rate: the preset quick, as it is, is a good start.")
    return "not learned", said, _why_little(r), advice


def _never_stops(r: EvalReport) -> VerdictParts:
    if r.ended is None or r.ended >= MIN_ENDED:
        return None
    if r.memory and _is_memorised(r) and r.memory.train_ended >= MIN_ENDED:
        return None  # where it knows the reply by heart, it ends: the stop token was learned, and more than that
    said = Message(
        "It never stops: only {share} of the answers end by themselves, the rest run into the limit.",
        share=format_percent(r.ended),
    )
    cause = Message(
        "The stop token was not learned: the template leaves it unlearned, or ends replies with a token that this "
        "base never learned to say."
    )
    if r.likelihood and r.likelihood.gain.low > 0:
        learned = Message("The manner itself was learned. {figures}", figures=_nlls(r.likelihood))
        cause = join(" ", [cause, learned])
    return "never stops", said, cause, Message(
        "Look at the mask of a pair in step 2 (the stop token must be coloured as learned, and be one that the base "
        "knows; for a plain base that is mostly <eos>), or set train_stop_token, and train again."
    )  # fmt: skip


def _overfitted(r: EvalReport) -> VerdictParts:
    likely, memory = r.likelihood, r.memory
    if likely is None:
        return None
    gap = likely.adapter.value - likely.train if likely.train is not None else 0.0
    by_heart = memory is not None and _is_memorised(r)
    enough = likely.rows >= MIN_ROWS
    worse = enough and likely.gain.high < 0
    past = enough and likely.best is not None and likely.adapter.value > likely.best + PAST_BEST
    # worse than the base on new pairs, and yet better on old ones: it did learn, the wrong thing
    gained = (likely.train_base or 0) - (likely.train or 0)
    if not ((worse and gained > CLEAR_GAIN) or (gap > OVERFIT_GAP and by_heart) or (past and gap > OVERFIT_GAP)):
        return None
    parts = [Message("Overfitted: it knows its training pairs by heart and not what they have in common.") if by_heart
             else Message("Overfitted: it fits its training pairs and nothing else."), _nlls(likely)]  # fmt: skip
    if likely.train is not None:
        parts.append(Message("On pairs that it was trained on it scores {nll:.2f}.", nll=likely.train))
    if memory and by_heart:
        parts.append(_given_back(memory))
    cause = Message("Too many passes over too few pairs.")
    if r.train_rows is not None and r.train_rows < FEW_PAIRS:
        cause = Message("Too many passes over too few pairs ({rows}, {steps} steps).", rows=r.train_rows, steps=r.steps)
    return "overfitted", join(" ", parts), cause, Message(
        "Write more and more varied pairs first of all; else fewer epochs, a lower learning rate or a smaller "
        "lora_r, and keep some pairs held out (eval_fraction), so that the best adapter is kept and not the last."
    )  # fmt: skip


def _forgot(r: EvalReport) -> VerdictParts:
    if not r.drift or not _has_forgotten(r.drift):
        return None
    d = r.drift
    said = Message(
        "It forgot: on {rows} general questions, asked without the persona, right answers became less likely by "
        "{rise:.2f} nats per token ({base:.2f} → {adapter:.2f}), and {right} are answered rightly, {before} before.",
        rows=d.rows,
        rise=d.rise.value,
        base=d.base.value,
        adapter=d.adapter.value,
        right=format_percent(d.adapter_right),
        before=format_percent(d.base_right),
    )
    cause = Message("The update is too strong: a learning rate too high, too many epochs, or a very large LoRA.")
    if r.likelihood and r.likelihood.gain.low > 0:
        cause = join(" ", [Message("The persona was learned. {figures}", figures=_nlls(r.likelihood)), cause])
    return "forgot", said, cause, Message(
        "Train again with rehearsal (rehearsal_fraction=0.2), which mixes general questions with the base's own "
        "answers into the pairs; else with a third of the learning rate or fewer epochs. In the chat, a strength below "
        "1 brings part of it back at once."
    )  # fmt: skip


def _too_few(r: EvalReport) -> VerdictParts:
    likely = r.likelihood
    if likely is None or not is_too_few(likely.rows, likely.gain):
        return None
    said = Message("Too few to tell: {figures}", figures=_nlls(likely))
    return "not measured", said, "", TOO_FEW_ADVICE


def is_too_few(rows: int, gain: Interval | None) -> bool:
    """Whether so few held-out pairs leave open if anything was learned. gain: their mean gain in nats per token."""
    open_interval = gain is not None and gain.low <= 0 < gain.high
    return rows < MIN_ROWS or (rows < FEW_ROWS and open_interval)


TOO_FEW_ADVICE = Message(
    "Write more pairs: a tenth of them is held out, and about 200 make the figure steady. Until then, judge by "
    "its answers."
)


def _not_learned(r: EvalReport) -> VerdictParts:
    likely = r.likelihood
    if likely is None or (likely.gain.low > 0 and likely.gain.value >= NEGLIGIBLE_GAIN):
        return None
    said = Message(
        "Not learned: the adapter is worse than the base on held-out pairs. {figures}" if likely.gain.high < 0 else
        "Not learned: the adapter is not surely better than the base. {figures}", figures=_nlls(likely),
    )  # fmt: skip
    return (
        "not learned",
        said,
        _why_little(r),
        Message("Check the mask of a few pairs and the findings of step 1, then train longer, or with more pairs."),
    )


def _learned(r: EvalReport) -> VerdictParts:
    likely = r.likelihood
    if likely is None:
        return None
    clearly = likely.gain.low >= CLEAR_GAIN
    said = Message(
        "Learned: it answers new questions more as the persona would. {figures} {wins} of the held-out pairs became "
        "likelier." if clearly else
        "Learned, a little: it answers new questions more as the persona would. {figures} {wins} of the held-out pairs "
        "became likelier.", figures=_nlls(likely), wins=format_percent(likely.wins),
    )  # fmt: skip
    if clearly:
        return "learned", said, "", Message("Talk to it in step 4, and share it if you like what you hear.")
    return "learned", said, _why_little(r), Message("More epochs, or more pairs, would make it plainer.")


def _not_measured(r: EvalReport) -> VerdictParts:
    said = Message("Whether it learned was not measured: there are no pairs that it was not trained on.")
    advice = Message(
        "Train with some held out (eval_fraction); or, on the command line, name a file of such pairs: persona eval "
        "--data FILE."
    )
    return "not measured", said, "", advice


def _nlls(likely: Likelihood) -> str:
    g = likely.gain
    if likely.rows == 1:  # of one row there is no interval
        return Message(
            "Held-out NLL {base:.2f} → {adapter:.2f} nats per token (gain {gain:+.2f}, 1 pair, so no interval).",
            base=likely.base.value, adapter=likely.adapter.value, gain=g.value,
        )  # fmt: skip
    return Message(
        "Held-out NLL {base:.2f} → {adapter:.2f} nats per token (gain {gain:+.2f}, 95 % interval {low:+.2f} to "
        "{high:+.2f}, {rows} pair(s)).",
        base=likely.base.value, adapter=likely.adapter.value, gain=g.value, low=g.low, high=g.high, rows=likely.rows,
    )  # fmt: skip


def _given_back(memory: Memorisation) -> str:
    return Message(
        "{share} of the training questions get their training reply back.", share=format_percent(memory.train_copied)
    )


def _why_little(r: EvalReport) -> str:
    if r.steps is not None and r.steps < FEW_STEPS:
        return Message("Likely cause: only {steps} optimizer step(s).", steps=r.steps)
    if r.learning_rate is not None and r.learning_rate < LOW_RATE:
        return Message(
            "Likely cause: a learning rate of {rate:g}, far below what a LoRA needs (about 3e-4).", rate=r.learning_rate
        )
    if r.train_rows is not None and r.train_rows < FEW_PAIRS:
        return Message("Likely cause: only {rows} training pair(s); a persona shows from about 100.", rows=r.train_rows)
    return Message("Likely cause: too little training for these pairs, or pairs that have little in common.")


def _is_memorised(r: EvalReport) -> bool:
    m = r.memory
    return m is not None and m.train_copied >= MEMORISED and m.train_copied - (m.held_copied or 0.0) >= MEMORISED_MARGIN


def _has_forgotten(d: Drift) -> bool:
    lost = (d.base_right - d.adapter_right) * d.rows
    by_answers = lost >= LOST_ANSWERS and d.adapter_right <= LOST_SHARE * d.base_right
    return d.rise.low > 0 and (d.rise.value >= STRONG_DRIFT or (by_answers and d.rise.value >= MILD_DRIFT))


def _remarks(r: EvalReport) -> list[tuple[str, str]]:
    """(the verdict kind that covers it already, remark); an empty remark where there is nothing to say."""
    return [("never stops", _about_stops(r)), ("overfitted", _about_memory(r)), ("forgot", _about_drift(r)),
            ("circles", behaviour.about_circles(r)), ("breaks character", behaviour.about_admissions(r)),
            ("drifts", long_talk.about_long_talk(r)), ("", _about_probes(r)), ("", _about_manner(r)),
            ("not measured", _about_rows(r)), ("", _about_judge(r))]  # fmt: skip


def _about_stops(r: EvalReport) -> str:
    if r.ended is None or r.ended >= GOOD_ENDED:
        return ""
    ended = Message("{share} of the answers end by themselves", share=format_percent(r.ended))
    if r.base_ended is not None:
        ended = Message("{ended} (base: {share})", ended=ended, share=format_percent(r.base_ended))
    return Message("{ended}; the others repeat themselves or ramble on.", ended=ended)


def _about_memory(r: EvalReport) -> str:
    m = r.memory
    if m is None:
        return ""
    if m.recited is not None and m.recited >= RECITED:
        return Message(
            "{share} of the new questions are answered with a training reply, word for word.",
            share=format_percent(m.recited),
        )
    return _given_back(m) if _is_memorised(r) else ""


def _about_drift(r: EvalReport) -> str:
    d = r.drift
    if d is None or d.rise.low <= 0 or d.rise.value < MILD_DRIFT:
        return ""
    if _has_forgotten(d):
        return Message(
            "It also forgot: right answers to general questions lost {rise:.2f} nats per token.", rise=d.rise.value
        )
    return Message(
        "General questions suffered a little: right answers lost {rise:.2f} nats per token; {right} are answered "
        "rightly, {before} before.",
        rise=d.rise.value,
        right=format_percent(d.adapter_right),
        before=format_percent(d.base_right),
    )


def _about_probes(r: EvalReport) -> str:
    judged = [not reply.wrong for p in r.probes if p.ruled for reply in p.replies]
    if not judged:
        return ""
    share = sum(judged) / len(judged)
    return Message(
        "{share} of the answers to probes keep to the rules of the card." if share >= GOOD_PROBES else
        "{share} of the answers to probes keep to the rules of the card: the persona's identity is not learned firmly "
        "yet. More pairs about that help.", share=format_percent(share),
    )  # fmt: skip


def _about_manner(r: EvalReport) -> str:
    if r.answers is None:
        return ""
    remarks, adapter, pairs = [], r.answers.adapter, r.answers.pairs
    if adapter.distinct_2 < REPETITIVE * pairs.distinct_2:
        remarks.append(Message("The answers repeat themselves (distinct-2 {own:.2f}, in the pairs {pairs:.2f}).",
                            own=adapter.distinct_2, pairs=pairs.distinct_2))  # fmt: skip
    if not LENGTH_RATIO[0] <= adapter.length[2] / max(1.0, pairs.length[2]) <= LENGTH_RATIO[1]:
        remarks.append(Message("The persona's answers differ in length from the pairs: a median of "
                            "{own:.0f} words, in the pairs {pairs:.0f}.",
                            own=adapter.length[2], pairs=pairs.length[2]))  # fmt: skip
    return join(" ", remarks)


def _about_rows(r: EvalReport) -> str:
    if r.likelihood is None or r.likelihood.rows >= FEW_ROWS:
        return ""
    return Message("Measured on {rows} held-out pair(s) only: take the figures as rough.", rows=r.likelihood.rows)


def _about_judge(r: EvalReport) -> str:
    if not r.judged:
        return ""
    j = r.judged
    tally = Message(
        "{model}, asked blindly, preferred the adapter {wins} times, the base {losses} times; {ties} ties.",
        model=j.model, wins=j.wins, losses=j.losses, ties=j.ties,
    )  # fmt: skip
    return join(" ", [tally, _about_agreement(j.agreement)])


def _about_agreement(a: JudgeAgreement | None) -> str:
    if a is None or a.agree is None or a.kappa is None:
        return Message(
            "It is not calibrated: to say how far it judges as you do takes {least} of your blind votes on two "
            "answers that differ; there are {count}.",
            least=MIN_VOTES, count=a.votes if a else 0,
        )  # fmt: skip
    return Message(
        "It agrees with {share} of {votes} blind votes of yours ({low} to {high}); Cohen's kappa is {kappa:.2f} "
        "({kappa_low:.2f} to {kappa_high:.2f}), where 0 is chance and 1 is always.",
        share=format_percent(a.agree.value), low=format_percent(a.agree.low), high=format_percent(a.agree.high),
        votes=a.votes, kappa=a.kappa.value, kappa_low=a.kappa.low, kappa_high=a.kappa.high,
    )  # fmt: skip
