"""Figures: ratios side by side in one run, and the absolute figures of the README."""
