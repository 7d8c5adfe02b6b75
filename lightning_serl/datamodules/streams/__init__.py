"""The streams that a Trainer iterates over: training, evaluation and prediction."""
