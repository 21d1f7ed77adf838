"""Analytic shapes of the mass, one a module."""
