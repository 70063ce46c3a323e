"""The Gradio page. `app.build()` makes it; `steps/` holds a package or module for each of the five steps.

`navigation.py` decides which steps are open, `i18n.py` translates, `middleware/` is what a request passes first.
Handlers are functions at module level, and call the packages below; no decision about data or models is made here.
"""
