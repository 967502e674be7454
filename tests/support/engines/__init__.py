"""A second, independent engine for the state machines: moto executes what ministack executes.

``MotoStack`` (``moto_stack.py``) has the surface of ``tests.support.onboarding.Stack``, so that one
table of cases (``cases.py``) runs on both; ``docs/engines.md`` says where they differ and who is
right. Below it, one module each: the seams into moto (``seams.py``), SageMaker by script
(``sagemaker.py``), our functions in process (``functions.py``), and who gets which call
(``world.py``).
"""
