"""The streams a Trainer iterates over: training, evaluation and prediction."""
