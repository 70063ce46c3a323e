"""The OpenAI-compatible API.

Gives: `http.build_api`, an ASGI app. A request passes `auth.py`, is checked by `requests.py`, finds its model in
`model_list.py`, and is answered by `batcher.py` in the batch that runs on its base. Knows nothing of the page.
A new field of a request goes into `requests.py`, a new route into `http.py`.
"""
