"""Text from outside → pairs, and what is wrong with a set of pairs.

`importers/` reads other programs' formats, `lint/` checks pairs, `interview.py` asks the author (`questions/` is its
bank), `suggestions.py` asks a model for more.
Knows nothing of templates, tokenizers or training; imports no torch and no gradio.
A new format is a module in `importers/` and a line in `importers/registry.py`; a new rule goes into `lint/`; a new
question is a line in `questions/`, where the first of a topic comes first.
"""
