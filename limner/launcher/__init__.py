"""Fine-tuning outside of the workflow, for people who tune recipes: ``limner train``.

A plan is frozen data that can be printed and tested without AWS (``plan``); carrying it out is
another module for each place: ``here`` starts the training program as a process, ``modeltrainer``
has SageMaker run it, through AWS's own SDK.
"""
