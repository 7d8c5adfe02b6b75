"""Runs math-verify in a worker process with limits on time and memory."""
