"""Readers of catalogue formats: each yields rows from text. `rows` is what they have in common."""
