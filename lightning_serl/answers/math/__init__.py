"""Decides which math answers are equal without a computer algebra system.

``decide`` tries in turn: equal normal forms (``normal_form``), numbers, percentages, numbers with units
(``quantities``), and values at fixed points (``compare``, with ``structure`` and ``expression``).
"""
