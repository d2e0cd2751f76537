"""From settings to a graph: one module a pipeline, and the stages that they share."""
