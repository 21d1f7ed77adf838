"""Minimisation: the home of iminuit."""
