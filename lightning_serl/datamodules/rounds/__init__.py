"""One round of self-play, without a Trainer."""
