"""AWS on a laptop: ministack, with SageMaker, and with AWS's semantics where it lacks them.

>>> from limner import local
>>> laptop = local.start(Path.cwd())         # doctest: +SKIP
>>> boto3.client("s3", endpoint_url=laptop.endpoint_url)   # doctest: +SKIP
>>> local.stop(Path.cwd())                   # doctest: +SKIP

``limner.local.control.Control`` turns its clock and orders trouble.
"""

from limner.local.supervisor import Laptop, running, start, stop

__all__ = ["Laptop", "running", "start", "stop"]
