"""Looks for what nobody is going to end any more: repairs it, or ends it."""
