"""Conjunctions with an identity that stays, over successive catalogues: matching, table, and the source of a pipeline."""
