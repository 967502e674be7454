"""SageMaker on a laptop: training jobs, and multi-model endpoints, as real processes."""
