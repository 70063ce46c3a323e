"""Persona: write pairs, train a LoRA, talk to base and persona side by side, share the adapter."""

__version__ = "0.1.0"
