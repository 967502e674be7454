"""Looks at a trained artifact before anybody serves it: is it whole, ours, and good enough?"""
