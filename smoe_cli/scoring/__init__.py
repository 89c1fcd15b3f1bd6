"""Scores of hypotheses: metrics, slices, alignments, tables and the HTML report. Needs no torch."""
