"""Ask `persona serve` with the clients that people use: openai, litellm and LangChain's.

    python scripts/clients_check.py FOLDER ADAPTER

The adapter is given as for `persona serve`. The first call makes an environment with the clients in FOLDER, which needs
the network. Each client asks for a whole reply, a stream, and a reply with a stop string; greedy, so that all of them
must get one text. The exit status is 1 where one does not.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from vllm_check import serving

CLIENTS = ("openai==3.57.0", "litellm==1.110.2", "langchain-openai==1.7.4")
QUESTION, GREEDY = "Who are you?", {"temperature": 0, "max_tokens": 12}
# run by the clients' Python: URL, model, stop string, question and settings → what each client got
ASK = """
import json, sys
import litellm, openai
from langchain_openai import ChatOpenAI
url, model, stop, question, greedy = *sys.argv[1:5], json.loads(sys.argv[5])
chat = [{"role": "user", "content": question}]
client = openai.OpenAI(base_url=url, api_key="none")
llm = ChatOpenAI(model=model, base_url=url, api_key="none", **greedy)

def ask_openai(**more):
    return client.chat.completions.create(model=model, messages=chat, **greedy, **more)

def ask_litellm(**more):
    return litellm.completion(f"openai/{model}", chat, api_base=url, api_key="none", **greedy, **more)

got = {"models": [m.id for m in client.models.list()]}
for name, ask in (("openai", ask_openai), ("litellm", ask_litellm)):
    whole, stopped = (ask(**more).choices[0].message.content for more in ({}, {"stop": [stop]}))
    got[name] = [whole, "".join(c.choices[0].delta.content or "" for c in ask(stream=True) if c.choices), stopped]
streamed = "".join(c.content for c in llm.stream(question))
got["langchain"] = [llm.invoke(question).content, streamed, llm.invoke(question, stop=[stop]).content]
print(json.dumps(got))
"""


def make_environment(folder: Path) -> Path:
    """The Python of an environment with the clients in `folder`, which is made on the first call."""
    python = folder / "clients/bin/python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "clients")], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *CLIENTS], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment and the server's log go")
    parser.add_argument("adapter")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    python = make_environment(chosen.folder.resolve())
    with serving([f"mags={chosen.adapter}"], chosen.folder / "persona.log") as client:
        url = f"{str(client.base_url).rstrip('/')}/v1"
        request = {"model": "mags", "messages": [{"role": "user", "content": QUESTION}], **GREEDY}
        answer = client.post("/v1/chat/completions", json=request).raise_for_status().json()
        first = answer["choices"][0]["message"]["content"]
        stop = first.split()[1]  # the reply's second word
        environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it asks the network
        environment.pop("PYTHONPATH", None)
        command = [python, "-c", ASK, url, "mags", stop, QUESTION, json.dumps(GREEDY)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    got = json.loads(done.stdout.splitlines()[-1])
    print(f"models: {got.pop('models')}")
    expected = [first, first, first.split(stop)[0]]
    for name, texts in got.items():
        print(f"{name}: {'equal' if texts == expected else f'{texts} instead of {expected}'}")
    raise SystemExit(0 if all(texts == expected for texts in got.values()) else 1)


if __name__ == "__main__":
    main()
