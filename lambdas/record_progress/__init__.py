"""Writes the status of all requests of a batch."""
