"""Which math answers are equal: normal forms, values at fixed points, quantities, and math-verify for the rest."""
