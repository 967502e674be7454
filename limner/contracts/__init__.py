"""What the parts of Limner agree on: names, keys, statuses, errors and data models.

Import the module you need (``from limner.contracts import keys``). ``errors``, ``keys`` and
``statuses`` use the standard library alone, so that Lambda functions start fast and need no
packaged dependencies; the data models use pydantic.
"""
