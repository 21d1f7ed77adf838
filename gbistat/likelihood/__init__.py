"""Parameters, constraints, components and their negative log-likelihood."""
