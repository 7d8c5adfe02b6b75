"""Grades evaluation problems and computes pass@k, maj@k and their intervals."""
