"""The program inside the SageMaker training container: one user's photos in, one adapter out.

Start it with ``python -m training``. Modules, from the outside in:

* ``__main__``: the process boundary: signals, exit code, ``output/failure``;
* ``settings``: every environment variable;
* ``program``: one job, from its config files to its artifact;
* ``production``: the part of it that needs torch;
* ``job``: what the container's config files say;
* ``photos``: which files are good photos;
* ``base``: the frozen pipeline;
* ``lora``: the adapter on it;
* ``recipe``: the fine-tuning itself, readable from top to bottom;
* ``progress``: the lines that SageMaker's MetricDefinitions read;
* ``artifact``: what is left in ``model/``; ``files``: how files are written.
"""
