"""Sinks, one store in each module. What a sink has acknowledged is durable."""
