"""ASGI middleware of the page: trusted hosts, isolation of visitors, language; and the visitors' workspaces."""
