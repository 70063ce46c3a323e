"""A base model and its adapters in memory: download, GGUF, hardware, memory need, attach, loss, generation.

Gives: `Base` (opened by Hub id, ModelScope id, folder or GGUF file), `Adapter`, `generate_batch`, token losses.
Knows nothing of runs, conversations or the page.
A new known base is an entry in `catalogue.json`; a new source of models goes into `download.py`.
"""
