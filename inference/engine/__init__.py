"""The engine: the base, the slots of its adapters, and the drawing of images.

It knows nothing of HTTP or Triton; a shell calls ``Engine`` (``inference.engine.engine``).
"""
