"""Requests whose photos somebody else uploads: registered first, submitted when they are there."""
