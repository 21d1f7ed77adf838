"""What a likelihood sees of a network or of a formula: log densities and log ratios."""
