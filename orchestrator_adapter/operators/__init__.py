"""What an operator is given (``WiredEnds``), and operators and routers made of plain functions."""
