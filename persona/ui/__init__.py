"""The Gradio page. `app.build_app()` makes it; `steps/` holds a package or module for each of the five steps.

`navigation.py` decides which steps are open, `i18n.py` translates, `middleware/` is what a request passes first.
Handlers are functions at module level, and call the packages below; no decision about data or models is made here.
Where a handler has many inputs or outputs, one named tuple holds first their components and then their values.
A new text needs its Chinese in locales/zh.json; a new tab is a module of its step, built in the step's `build`.
"""
