"""The Triton shell: SageMaker's supported container for many models on one GPU.

``serve`` starts Triton with the resident model ``base`` (``resident``), which owns the engine.
Each user's artifact brings a thin model (``limner/contracts/shell/model.py``), which asks ``base``.
"""
