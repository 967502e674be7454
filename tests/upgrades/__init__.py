"""Upgrades: what executions of earlier versions did, and whether this version would do the same.

``histories/`` holds recorded executions, ``migrations.toml`` the differences that are meant.
``python -m tests.upgrades.record VERSION`` records the executions of the present version;
``python -m tests.upgrades.replay`` replays all that there are.
"""
