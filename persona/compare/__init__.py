"""Several voices side by side: a loaded model with its adapters, conversations, blind votes, corrections.

Gives: `open_model`; `stream_replies`, a batch in which base, adapters and blends answer together; the one queue before
the model (`model_queue.py`) and the running batch that its turns share (`shared_batch.py`); conversations and votes on
disk. Knows adapters, but nothing of the page.
A new kind of voice goes into `session.py`, another server's into `remote.py`; what is kept on disk into
`conversation_store.py` and `blind_votes.py`.
"""
