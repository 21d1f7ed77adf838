"""Intervals, test statistics, limits and significances."""
