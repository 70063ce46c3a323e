"""Several voices side by side: a loaded model with its adapters, conversations, blind votes, corrections.

Gives: `load_model`, one batch in which base, adapters and blends answer together, and what is kept of it.
Knows adapters and run snapshots, but nothing of the page or HTTP.
A new kind of voice goes into `session.py`; what is kept on disk into `conversation_store.py` and `blind_votes.py`.
"""
