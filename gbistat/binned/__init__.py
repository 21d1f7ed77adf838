"""The binned twin of a model: the home of pyhf."""
