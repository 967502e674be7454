"""The ASGI shell: SageMaker's multi-model container contract over the engine."""
