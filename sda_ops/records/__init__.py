"""What travels through the pipelines: observations, correlations, and their identifiers."""
