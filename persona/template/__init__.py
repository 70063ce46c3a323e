"""Chat templates: shipped, chosen for a base, derived, sandboxed; a pair → token ids and label mask.

Only `chat_template.render_chats` runs a chat template; preview, training, chat and API get ids from `render.py`.
Knows pairs and tokenizers, but no model; imports no torch and no gradio.
A new shipped template is a file in `templates/chat/`; rules for choosing one are in `select.py`.
"""
