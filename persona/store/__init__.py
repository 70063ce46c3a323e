"""Files on disk and whose they are: the workspace, persona folders, pairs, edit history, JSON lines, quotas.

Gives: `Persona` (a folder), `Pair`, edits with undo, atomic writes, and the workspace of the visitor who asks.
Knows nothing of models, templates, training or the page; imports no torch and no gradio.
A new file of a persona folder goes into `persona_folder.py`, a kind of edit into `edits.py`, a limit into `quotas.py`.
"""
