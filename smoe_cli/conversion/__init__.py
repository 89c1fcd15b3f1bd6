"""Weights from elsewhere: folders of transformers become checkpoints that decode, train on and grow experts as any other."""
