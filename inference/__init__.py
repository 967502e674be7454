"""Serving: one resident base, many personal adapters, over SageMaker's multi-model contract."""
