"""A reference subscriber: it receives alerts over HTTP, and acts on each one once. The model for a subscriber of your own.

It needs nothing of the pipeline: only the request's headers and body, and the shared secret.
"""
