"""Writes what the job of a batch is to do, and shares it out among its machines."""
