"""Limner: a personal generative model for every user."""

__version__ = "0.1.0"
