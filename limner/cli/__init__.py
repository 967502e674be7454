"""The command line: ``limner up|down|onboard|status|cancel|generate|train|graph|doctor``.

A command's module imports boto3, pydantic and rich inside its function, so that ``limner --help``
and completion answer at once.
"""
