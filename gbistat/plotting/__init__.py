"""Plots: take results, draw into axes, compute nothing."""
