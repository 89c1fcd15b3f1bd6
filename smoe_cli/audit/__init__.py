"""The audit: are the tags right, did the planned expert really run, and does it matter which one runs."""

AUDITED_UTTERANCES = 30
"""Cuts per route in the swap test, unless told otherwise."""
