"""Is a manifest fit to train on: every cut on its own, all cuts together, and what to do with those that are not."""
