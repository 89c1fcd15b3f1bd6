"""Decoding: beam search with caches, joint CTC scores, and hypotheses for cuts."""
