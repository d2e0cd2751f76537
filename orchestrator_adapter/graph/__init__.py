"""A graph as it is declared: vertices, edges, validation, drawing. Nothing here runs."""
