"""Runs math-verify in a child process with time and memory limits."""
