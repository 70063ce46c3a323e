"""Compare each chat template of the Modelfiles, filled in by Go's own text/template, with our prompt.

    python scripts/go_template_check.py FOLDER

Ollama fills its TEMPLATE in with Go's text/template. An npm package has that engine as WebAssembly: the first call puts
it into FOLDER, and needs Node, npm and the network. Prints how many templates and prompts are equal, and what differs;
the exit status is 1 then. The tests evaluate the same templates with an evaluator of their own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from persona.errors import TemplateError
from persona.share.exports import modelfile
from persona.template.chat_template import build_messages, shipped_templates
from persona.template.compatibility import SAMPLE_CHATS
from persona.template.render import Renderer
from tests.conftest import family_tokenizer

ENGINE = "@evertdespiegeleer/go-template@1.0.2"
FILL_IN = """
import { parse } from "@evertdespiegeleer/go-template";
import { readFileSync } from "node:fs";
const answers = [];
for (const [template, values] of JSON.parse(readFileSync(0, "utf8"))) answers.push(await parse(template, values));
process.stdout.write(JSON.stringify(answers), () => process.exit(0));
"""


def fill_in(folder: Path, jobs: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Each template with its values, by Go."""
    if not (folder / "node_modules").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), ENGINE], check=True)
    (folder / "fill_in.mjs").write_text(FILL_IN, encoding="utf-8")
    done = subprocess.run(
        ["node", "fill_in.mjs"], cwd=folder, input=json.dumps(jobs), text=True, stdout=subprocess.PIPE
    )
    if done.returncode:
        raise SystemExit(f"node ended with status {done.returncode}")
    return json.loads(done.stdout)


def values(chat: list[dict[str, str]]) -> dict[str, Any]:
    """A conversation as Ollama gives it to a template: the system message is also a value of its own."""
    system = next((m["content"] for m in chat if m["role"] == "system"), "")
    return {"System": system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in chat]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    chats = [*SAMPLE_CHATS, build_messages("s", [("q1", "r1"), ("q2", "r2")], "q3")]
    jobs, wanted, without = [], [], []
    for name, template in shipped_templates().items():
        renderer = Renderer(family_tokenizer(template.text), template, "Be Mags.")
        try:
            text = modelfile.go_template(renderer)
        except TemplateError:
            without.append(name)
            continue
        for chat in chats:
            stripped = [{**m, "content": m["content"].strip()} for m in chat]  # as in modelfile.go_template
            jobs.append((text, values(stripped)))
            wanted.append((name, modelfile._render_prompt(renderer, stripped)))
    got = fill_in(folder, jobs)
    different = [(name, w, g) for (name, w), g in zip(wanted, got, strict=True) if w != g]
    for name, w, g in different:
        print(f"{name}\n  ours {w!r}\n  Go's {g!r}")
    names = {name for name, _ in wanted}
    print(f"{len(names)} templates, {len(wanted) - len(different)} of {len(wanted)} prompts equal in Go; "
          f"without a form in Go: {', '.join(without)}")  # fmt: skip
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
