"""Adapters out and in: zip archives, the Hub, model cards, exports for other programs, references to adapters.

Outwards by an allow-list, inwards without trust. `adapter_ref.py` parses the names of adapters and voices.
A new export format is a module in `exports/` and an entry in `exports/formats.py`.
"""
