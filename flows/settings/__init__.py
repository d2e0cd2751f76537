"""The settings of the pipelines: shared sections, one model a pipeline, and how they are loaded."""
