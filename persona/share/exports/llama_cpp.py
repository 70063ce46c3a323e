"""`python -m persona.share.exports.llama_cpp`: answers of a GGUF file in llama.cpp, for gguf_check.

A process of its own: whatever llama.cpp makes of a file, even a crash, ends here. One JSON job on stdin, one JSON
result as the last line of stdout.
"""

import json
import sys
from typing import Any

import httpx

LIKELIEST = 200  # tokens of which llama.cpp tells the probability
SECONDS = 600  # for one token; a model of many billions on two cores takes ten


def answer_job(job: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp makes of a job.

    job: model, lora ("" for none), template (Jinja, "" for the file's own), chats (messages), rows of (prompt ids,
    reply ids), stop_id. Returns prompts (ids of each chat), likeliest (for each row the likeliest token at each place
    of its reply), log_probabilities (of the reply's tokens there, nats; of a token below the first LIKELIEST the last
    one's, which is more than its own), stops (whether stop_id ends an answer).
    """
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = job["model"]
    settings.n_ctx = max([512, *(len(prompt) + len(reply) + 8 for prompt, reply in job["rows"])])
    settings.n_parallel, settings.warmup, settings.verbosity, settings.use_jinja = 1, False, 0, True
    if job["template"]:
        settings.chat_template = job["template"]
    if job["lora"]:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(job["lora"], 1.0)]
    server = xllamacpp.Server(settings)  # is closed when it is collected
    with httpx.Client(base_url=server.listening_address, timeout=SECONDS, trust_env=False) as client:
        prompts = [_prompt_ids(client, chat) for chat in job["chats"]]
        places = [[_next_token(client, prompt + reply[:n], reply[n]) for n in range(len(reply))]
                  for prompt, reply in job["rows"]]  # fmt: skip
        asked = {"prompt": job["rows"][0][0], "n_predict": 4, "logit_bias": [[job["stop_id"], 1000.0]]}
        stops = _ask(client, "/completion", asked)["stop_type"] == "eos"
    return {
        "prompts": prompts,
        "likeliest": [[token for token, _ in row] for row in places],
        "log_probabilities": [[p for _, p in row] for row in places],
        "stops": stops,
    }


def _prompt_ids(client: httpx.Client, chat: list[dict[str, str]]) -> list[int]:
    text = _ask(client, "/apply-template", {"messages": chat})["prompt"]
    return _ask(client, "/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]


def _next_token(client: httpx.Client, ids: list[int], wanted: int) -> tuple[int, float]:
    """(the likeliest token after `ids`, the log probability of `wanted` there)."""
    asked = {"prompt": ids, "n_predict": 1, "n_probs": LIKELIEST, "temperature": 0, "cache_prompt": True}
    found = _ask(client, "/completion", asked)["completion_probabilities"][0]["top_logprobs"]
    own = next((x["logprob"] for x in found if x["id"] == wanted), found[-1]["logprob"])
    return found[0]["id"], own


def _ask(client: httpx.Client, path: str, values: dict[str, Any]) -> Any:
    return client.post(path, json=values).raise_for_status().json()


if __name__ == "__main__":
    print(json.dumps(answer_job(json.load(sys.stdin))))
