"""The encoder-decoder whose every feed-forward network is a set of experts chosen by supervision."""
