"""The commands of ``python -m flows``, one module each."""
