"""The audit: are the tags right, did the planned expert really run, and does it matter which one runs."""
