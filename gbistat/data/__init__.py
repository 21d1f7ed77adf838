"""Events, windows, features: from files to arrays."""
