"""Results as JSON and figures."""
