"""A Modelfile as Ollama reads it: its commands, quotes and parameters, by the rules of parser/parser.go."""

import re

import pytest
from cases import check_each
from conftest import family_tokenizer

from persona.errors import TemplateError
from persona.models.sampling import Sampling
from persona.share.exports import modelfile
from persona.store.persona_folder import PersonaCard
from persona.template.chat_template import shipped_templates
from persona.template.render import Renderer

COMMANDS = {"FROM", "ADAPTER", "TEMPLATE", "SYSTEM", "PARAMETER", "LICENSE", "MESSAGE"}
FLOATS, INTEGERS = {"temperature", "top_p", "repeat_penalty"}, {"top_k", "num_predict", "num_ctx"}  # api.Options
TRICKY = ['Say "hi"', '"', '""', 'He said: """no"""', "# no comment\nFROM evil", "PARAMETER stop x", "甄嬛，\t“你”",
          "{{ .System }}", "ends with a backslash\\", "a\n\n\nb"]  # fmt: skip


def parse(text: str) -> list[tuple[str, str, str]]:
    """(command, name of the parameter or "", value) of each command. Raises ValueError as Ollama refuses a file."""
    found, rest = [], text
    while rest := re.sub(r"\A(?:\s+|#[^\n]*\n)+", "", rest):
        command, _, rest = rest.partition(" ")
        if command.upper() not in COMMANDS:
            raise ValueError(f"{command!r} is no command")
        name = ""
        if command == "PARAMETER":
            name, _, rest = rest.partition(" ")
            if not re.fullmatch(r"\w+", name, re.ASCII):
                raise ValueError(f"{name!r} is no parameter")
        ends = (m.end() for m in re.finditer(r"\n|\Z", rest))  # a value goes to the first line end outside its quotes
        end, value = next(((e, v) for e in ends if (v := unquote(rest[:e].strip())) is not None), (0, None))
        if value is None:
            raise ValueError(f"{command} has no end")
        found.append((command, name, value))
        rest = rest[end:]
    return found


def unquote(value: str) -> str | None:
    """Without its quotes, which escape nothing; None where they are open."""
    for quote in ('"""', '"'):
        if value.startswith(quote):
            closed = len(value) >= 2 * len(quote) and value.endswith(quote)
            return value[len(quote) : -len(quote)] if closed else None
    return value


@pytest.mark.parametrize("text", ["FORM ./x\n", 'FROM ./x\nSYSTEM """a\n', "FROM ./x\nPARAMETER to-p 1\n", "SYSTEM\n"])
def test_what_ollama_refuses(text):
    with pytest.raises(ValueError):
        parse(text)


def test_ollama_reads_what_was_written():
    def check(name, system):
        template = shipped_templates()[name]
        renderer = Renderer(family_tokenizer(template.text), template, system)
        text, why = modelfile.render_modelfile(
            PersonaCard(name="Mags", system=system), renderer, "m.gguf", "a.gguf", 'MIT """x"""\nFROM evil'
        )
        commands = parse(text)
        plain = {command: value for command, name, value in commands if not name}
        settings = {name: value for _, name, value in commands if name}
        assert len(commands) == len(plain) + len(settings), "none is said twice"
        assert (plain["FROM"], plain["ADAPTER"]) == ("./m.gguf", "./a.gguf")
        assert plain["SYSTEM"] == system.replace('"""', "'''")
        assert plain["LICENSE"] == "MIT '''x'''\nFROM evil"
        assert settings.pop("stop") == renderer.tokenizer.convert_ids_to_tokens(renderer.stop_id)
        assert settings.keys() == FLOATS | INTEGERS
        assert all(int(settings[n]) >= 0 for n in INTEGERS) and float(settings["top_p"]) == Sampling().top_p
        try:
            assert plain.get("TEMPLATE", "") == modelfile.go_template(renderer)
        except TemplateError as e:
            assert why == e.message and "TEMPLATE" not in plain

    check_each([(name, TRICKY[0]) for name in shipped_templates()] + [("chatml", text) for text in TRICKY], check)
