"""Adapters out and in: zip archives, the Hub, model cards, exports for other programs, references to adapters.

Only the files of an allow-list go out, without tokens or private folders (`secrets.py`); nothing that comes in is
trusted. `adapter_ref.py` parses every name of an adapter or voice, `open_adapter.py` opens what it names. A new export
format is a module in `exports/` and an entry in `exports/formats.py`. Knows no page, API or command line.
"""
