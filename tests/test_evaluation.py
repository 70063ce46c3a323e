"""Did it learn? Adapters that really are good, untrained, overfitted, forgetful or endless, and what is said of them."""

import json
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pretrained_base as learner
import pytest

from persona import cli
from persona.compare import session
from persona.errors import InputError, PersonaError
from persona.judge import eval_rows, evaluate, measurements, metrics, probes, scoring
from persona.judge.report_model import EvalReport
from persona.models import adapter
from persona.models.loss import mean_nll
from persona.store.pairs import Pair, write_pairs
from persona.store.persona_folder import PersonaCard, ProbeRule, create_persona_at, open_persona
from persona.store.workspace import EXAMPLES_DIR
from persona.template.chat_template import read_template
from persona.template.render import IGNORE_INDEX, Renderer, render_examples
from persona.train import run as train_run
from persona.train.collator import Collator
from persona.train.config import make_config
from persona.train.launcher import create_run
from persona.ui.steps.compare import judge_tab

PAIRS = learner.persona_pairs()
CARD = PersonaCard(name="Mags", system="You are Mags.", language="en", probes=("What about the moon in the tower?",),
            probe_rules=(ProbeRule(ask="What about the moon in the tower?", must_mention=("told|aye",)),
                         ProbeRule(ask="Who?", must_not_mention=("aye",))))  # fmt: skip
LIMITS = measurements.EvalBudget(likelihoods=24, trained=8, answers=6, remembered=6, seeds=2)


# ---- numbers


def test_words_are_characters_in_chinese_and_words_in_english():
    assert metrics.split_words("本宫 Zhen Huan，18岁。") == ["本", "宫", "zhen", "huan", "18", "岁"]


def test_similarity_is_whole_for_the_same_text_and_counts_chinese_characters():
    chinese = ["家父是大理寺少卿甄远道。", "外头风凉，进来坐。"]
    assert metrics.similarity(chinese, chinese) == pytest.approx({"bleu": 100, "chrf": 100, "rouge_l": 100})
    near = metrics.similarity(["家父是大理寺少卿甄某人。", "外头风凉，进去坐。"], chinese)
    assert 30 < near["bleu"] < 90, "as words between spaces, each reply would be one word, and BLEU 0"
    assert metrics.bleu_tokenization(chinese) == "zh" and metrics.bleu_tokenization(["Mind the step."]) == "13a"
    assert metrics.bleu_tokenization(["お元気ですか"]) == "char"


def test_rouge_l_follows_lin_2004():
    # the paper's example: S1 "police killed the gunman", S2 "police kill the gunman": LCS 3 of 4 and 4
    assert metrics.rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert metrics.rouge_l("", "police") == 0


def test_distinct_counts_n_grams():
    assert metrics.distinct_n(["a b a b"], 1) == 0.5 and metrics.distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert metrics.distinct_n([""], 2) == 0


def test_copies_are_long_runs():
    reply = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    assert metrics.is_copy(reply, reply) and metrics.is_copy("so: " + " ".join(reply.split()[:8]), reply)
    assert not metrics.is_copy(" ".join(reply.split()[:7]), reply), "half of it is 7, but a set phrase can be as long"
    assert metrics.is_copy("Aye.", "Aye."), "short and the same"


def test_bootstrap_weighs_by_tokens_and_pairs_the_rows():
    draw = np.random.default_rng(1)
    base = draw.normal(5, 1, 40)
    own = base - 0.2 + draw.normal(0, 0.01, 40)
    weights = [1] * 39 + [39]
    first, _, gain = metrics.bootstrap(list(zip(base, own, base - own, strict=True)), weights)
    assert first[0] == pytest.approx((base[:39].sum() + 39 * base[39]) / 78)
    assert first[1] < first[0] < first[2] and first[2] - first[1] > 0.2
    assert gain[2] - gain[1] < 0.05, "rows differ by 1, their gains by a hundredth: only a paired interval sees it"
    assert metrics.bootstrap([[1.0], [2.0]], [1, 1]) == metrics.bootstrap([[1.0], [2.0]], [1, 1])


# ---- probes


def test_probe_rules_name_what_an_answer_breaks():
    rule = ProbeRule(ask="Who?", must_mention=("Mags|light", "Sable"), must_not_mention=("language MODEL",))
    assert probes.find_broken_rules(rule, "mags of SABLE Point") == []
    assert probes.find_broken_rules(rule, "A language model.") == [
        "does not mention Mags or light", "does not mention Sable", "mentions language MODEL"]  # fmt: skip


def test_probes_stay_text_for_who_reads_them_and_rules_may_ask_more():
    assert CARD.probes == ("What about the moon in the tower?",)
    assert [r.ask for r in probes.list_probe_rules(CARD)] == ["What about the moon in the tower?", "Who?"]
    assert [r.must_mention for r in probes.list_probe_rules(PersonaCard(name="x", probes=("a",)))] == [()]


def test_probes_that_were_trained_on_are_not_asked():
    """The persona's probes may be edited after the run, and become one of its pairs."""
    renderer = SimpleNamespace(iterate_examples=lambda pairs: [SimpleNamespace(learned=0, problems=()) for _ in pairs],
                               template=SimpleNamespace(shows_thinking=False))  # fmt: skip
    model, rows = SimpleNamespace(attach=str), eval_rows.EvalRows(trained=[Pair("who!", "I.")])
    session = measurements.start_session(model, "mags", renderer, CARD, rows, LIMITS, lambda _: None)
    assert [r.ask for r in session.rules] == ["What about the moon in the tower?"]
    assert session.notes == ["1 probe is among the pairs that it was trained on, and was not asked."]


@pytest.mark.parametrize("name", ["zhen-huan", "lighthouse-keeper"])
def test_shipped_rules_belong_to_probes_and_reject_an_assistant(name):
    card = open_persona(EXAMPLES_DIR / name).card()
    assert len(card.probe_rules) >= 5 and {r.ask for r in card.probe_rules} <= set(card.probes)
    assistant = "As an AI language model, 我是人工智能语言模型。"
    assert all(probes.find_broken_rules(r, assistant) for r in card.probe_rules)


def test_general_questions_are_answered_rightly_by_their_own_answers():
    questions = scoring.read_general_questions()
    assert len(questions) == 24 and all(
        q.is_right(q.pair.output) and not q.is_right("I know nothing of that.") for q in questions
    )


# ---- which pairs


def test_a_file_is_measured_without_the_pairs_that_were_trained_on(tmp_path):
    persona = create_persona_at(tmp_path / "mags", CARD, PAIRS[:8])
    run = create_run(persona, make_config(eval_fraction=0.25))
    held = eval_rows.read_eval_rows(run, None)
    assert len(held.held) == 2 and len(held.trained) == 6 and held.notes == [] and held.from_run
    file = tmp_path / "the run's.jsonl"
    write_pairs(file, [*held.trained[:3], *PAIRS[20:24]])
    found = eval_rows.read_eval_rows(run, file)
    assert found.held == PAIRS[20:24] and "3 pairs were trained on" in found.notes[0] and not found.from_run
    write_pairs(file, held.trained)
    with pytest.raises(InputError, match="all of its 6 pairs were trained on"):
        eval_rows.read_eval_rows(run, file)
    (tmp_path / "sheet.csv").write_text("instruction,output\nWho?,Mags.\n")
    assert [p.output for p in eval_rows.read_eval_rows(None, tmp_path / "sheet.csv").held] == ["Mags."]
    assert "--data" in eval_rows.read_eval_rows(None, None).notes[0]


# ---- adapters that really are so


@pytest.fixture(scope="module")
def base(tmp_path_factory, plain_cpu):
    yield learner.pretrain(tmp_path_factory.mktemp("learner"))
    session._open.clear()


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """(pairs, settings) → the finished run; the stop token is left unlearned when `endless`."""

    def trained(pairs, endless=False, **settings):
        persona = create_persona_at(tmp_path_factory.mktemp("persona") / "mags", CARD, pairs)
        options = {
            "base": str(base.path),
            "template": "chatml",
            "dtype": "float32",
            "batch_size": 16,
            "diary_probes": 0,
        }
        run = create_run(persona, make_config(**{**options, "eval_fraction": 0.15, **settings}))
        with pytest.MonkeyPatch.context() as patch:
            if endless:
                patch.setattr(
                    "persona.train.prepare.render_examples",
                    lambda *given: [_no_stop(*given[:1], e) for e in render_examples(*given)],
                )
            train_run.train_run(run)
        return run

    return trained


def _no_stop(renderer, example):
    return replace(example, labels=[IGNORE_INDEX if i == renderer.stop_id else i for i in example.labels])


def report(run, base, **options) -> EvalReport:
    return evaluate.evaluate_adapter(adapter.read_adapter(run.adapter), base=str(base.path), limits=LIMITS, **options)


@pytest.fixture(scope="module")
def good(trained):
    return trained(PAIRS[:140], epochs=4, learning_rate=1e-3, lora_r=4, lora_alpha=32, load_best_model_at_end=True)


@pytest.mark.slow
def test_a_good_adapter_has_learned(good, base, tmp_path):
    seen = []
    found = report(good, base, progress=seen.append)
    likely, drift = found.likelihood, found.drift
    assert found.verdict.kind == "learned" and found.verdict.said.startswith("Learned: ")
    assert likely.gain.low > 0.1 and likely.wins > 0.8 and likely.rows == len(likely.gains) == 21
    assert likely.adapter.value == pytest.approx(good.progress().result["adapter_nll"], abs=1e-3), "training's figure"
    assert likely.base.value == pytest.approx(good.progress().result["base_nll"], abs=1e-3)
    assert drift.rise.value < 0.3 and drift.base_right > 0.9
    assert found.ended > 0.9 and found.memory.train_copied < 0.5
    assert [p.ask for p in found.probes] == ["What about the moon in the tower?", "Who?"]
    assert all(len(p.replies) == 2 and p.ruled for p in found.probes)
    shares = [p.share for p in seen]
    assert shares == sorted(shares) and shares[-1] == 1.0, "all planned work was counted, and no more"
    left = [p.seconds_left for p in seen if p.seconds_left is not None]
    assert left == sorted(left, reverse=True), "it counts down"
    assert {p.parts for p in seen if p.part} == {8} and sorted({p.part for p in seen}) == list(range(9))
    assert seen[-1].seconds_left == 0 and {"General questions", "Answers to held-out questions"} <= {
        p.doing for p in seen
    }
    assert (
        EvalReport.model_validate_json(evaluate.save_report(found, good).with_name("report.json").read_text()) == found
    )


@pytest.mark.slow
def test_an_untrained_adapter_has_not(trained, base):
    found = report(trained(PAIRS[:140], max_steps=1, learning_rate=1e-8), base)
    assert found.verdict.kind == "not learned" and "changes nothing" in found.verdict.said
    assert "only 1 optimizer step" in found.verdict.cause
    assert [a.base for a in found.answers.rows] == [a.adapter for a in found.answers.rows], "the same random numbers"


@pytest.mark.slow
@pytest.mark.release
def test_an_overfitted_adapter_is_told_by_its_training_rows(trained, base, tmp_path):
    write_pairs(tmp_path / "fresh.jsonl", PAIRS[140:])
    run = trained(PAIRS[:16], epochs=80, learning_rate=5e-3, eval_fraction=0)
    found = report(run, base, data=tmp_path / "fresh.jsonl")
    assert found.verdict.kind == "overfitted" and "by heart" in found.verdict.said
    assert found.memory.train_copied > 0.7 and found.likelihood.train < found.likelihood.adapter.value - 0.5
    assert "16" in found.verdict.cause


@pytest.mark.slow
@pytest.mark.release
def test_an_adapter_that_forgot_is_told_by_general_questions(trained, base):
    found = report(trained(PAIRS[:140], epochs=8, learning_rate=2e-2, lora_r=32), base)
    assert found.verdict.kind == "forgot" and found.drift.rise.low > 1
    assert found.drift.adapter_right < 0.5 < found.drift.base_right


@pytest.mark.slow
@pytest.mark.release
def test_an_adapter_without_its_stop_token_never_stops(trained, base):
    found = report(trained(learner.rambling(PAIRS[:140]), endless=True, epochs=4, learning_rate=2e-3), base)
    assert found.verdict.kind == "never stops" and found.ended < 0.2 < found.base_ended
    assert "manner itself was learned" in found.verdict.cause and "step 2" in found.verdict.advice


@pytest.mark.slow
def test_rows_are_measured_as_training_measures_them(good, base):
    opened = adapter.read_adapter(good.adapter)
    model = session.open_model(session.base_of(opened, str(base.path)))
    name = model.attach(opened)
    renderer = Renderer(model.tokenizer, read_template("chatml"), "You are Mags.")
    examples = [renderer.render_example(p) for p in PAIRS[:5]]
    work = scoring.EvalWork(lambda _: None)
    by_base = scoring.score_rows(model, session.NO_ADAPTER, examples, work)
    own = scoring.score_rows(model, name, examples, work)
    weights = [e.learned for e in examples]
    with model.without_adapters():
        whole = mean_nll(model.model, examples, Collator(model.tokenizer.pad_token_id))
    assert np.average(by_base, weights=weights) == pytest.approx(whole, abs=1e-4)
    assert all(b > a + 0.05 for b, a in zip(by_base, own, strict=True))
    short = scoring.mask_stop_token(examples[0], renderer.stop_id)
    assert short.learned == examples[0].learned - 1 and renderer.stop_id not in short.labels


@pytest.mark.slow
def test_a_stopped_evaluation_keeps_what_it_has_and_goes_on(good, base, tmp_path):
    """Stopped while the probes are asked: the parts before them stay, and only the others are measured then."""
    whole, doing = report(good, base), []

    def stop_at_probes(step):
        doing.append(str(step.doing))
        if "Probes" in doing[-1]:
            raise evaluate.EvaluationStopped

    begun = report(good, base, progress=stop_at_probes)
    assert begun.missing == ["probes", "pressure", "hard", "memory", "drift", "talk"] and any(
        "Stopped" in note for note in begun.notes
    )
    assert begun.likelihood == whole.likelihood and begun.answers == whole.answers and not begun.probes
    assert begun.verdict.kind == "learned", "from the likelihood, which was measured"
    doing.clear()
    rest = report(good, base, begun=begun, progress=lambda step: doing.append(str(step.doing)))
    assert not any("held-out" in text for text in doing) and any("Probes" in text for text in doing)
    assert not rest.missing and not any("Stopped" in note for note in rest.notes)
    for part in ("likelihood", "answers", "probes", "pressure", "hard", "memory", "drift"):
        assert getattr(rest, part) == getattr(whole, part)
    asked = {a.question: a.adapter for a in whole.answers.rows}
    assert [row.nll for row in whole.hard] == sorted(whole.likelihood.nlls, reverse=True)[:5]
    assert all(row.answer == asked.get(row.question, row.answer) != "" for row in whole.hard), (
        "asked once, and all of them"
    )

    def stop_at_once(step):
        raise evaluate.EvaluationStopped

    with pytest.raises(evaluate.EvaluationStopped):
        report(good, base, progress=stop_at_once)


@pytest.mark.slow
def test_the_page_stops_a_measurement_and_shows_what_it_has(good, base, monkeypatch):
    opened = adapter.read_adapter(good.adapter)
    monkeypatch.setattr(judge_tab.voice_picker, "find_adapter", lambda _: opened)
    monkeypatch.setattr(session, "base_of", lambda *_, **__: base)
    chosen = f"run/{good.persona_slug}/{good.name}"
    for part in ("report.json", "report.html"):
        (good.path / part).unlink(missing_ok=True)
    steps = judge_tab.measure_adapter(chosen, False)
    for html, _ in steps:
        with pytest.raises(PersonaError, match="of yours is running"):
            next(judge_tab.measure_adapter(chosen, False))
        if "Answers to held-out questions" in html:
            break
    assert 'role="progressbar"' in html and "Part 2 of 8: Answers" in html
    judge_tab.stop_measuring()
    *_, (shown, save) = steps
    assert "Stopped" in shown and save.interactive and save.value["path"].endswith("report.html")
    *_, (shown, _) = judge_tab.measure_adapter(chosen, False)
    assert "Stopped" not in shown and not evaluate.load_report(good.path / "report.json").missing


@pytest.mark.slow
def test_eval_on_the_command_line(good, base, monkeypatch, capsys):
    monkeypatch.setattr(
        evaluate.evaluate_adapter, "__kwdefaults__", {**evaluate.evaluate_adapter.__kwdefaults__, "limits": LIMITS}
    )
    monkeypatch.setattr(sys, "argv", ["persona", "eval", str(good.path), "--base", str(base.path), "--json"])
    assert cli.main() == 0
    out, err = capsys.readouterr()
    value = json.loads(out.splitlines()[-1])
    assert value["verdict"]["kind"] == "learned" and "report.html" in err
    page = (good.path / "report.html").read_text(encoding="utf-8")
    assert "Did it learn?" in page and value["verdict"]["said"].split(" → ")[0] in page
    HTMLParser().feed(page)
