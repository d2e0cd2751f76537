"""The risk of conjunctions: evidence by event time, and the operator ``risk``."""
