"""Reads what came of each task of a batch."""
