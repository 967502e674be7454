"""Ends a request whose execution has failed, and frees its model."""
