"""The program inside the SageMaker training container: photos in, adapters out.

A job is for one user, or a batch of tasks for many. Start it with ``python -m training``. Modules,
from the outside in:

* ``__main__``: the process boundary: signals, exit code, ``output/failure``;
* ``settings``: every environment variable;
* ``program``: one job, from its config files to its artifact or its results;
* ``job``: what the container's config files say; ``tasks``: what a batch is told to do; ``forms``:
  JSON of an agreed form;
* ``works``: what a host does, and in which order; ``claims``: whose a task is among hosts;
* ``worker``: a job that takes its works from the queue; ``orders``: the queue and the shelf;
* ``batch``: the tasks of a batch, each with its own end; ``results``: what is left of each;
* ``production``: from photos to the artifact's content: the part that needs torch;
* ``photos``: which files are good photos;
* ``base``: the frozen pipeline;
* ``lora``: the adapter on it;
* ``recipe``: the fine-tuning itself, readable from top to bottom;
* ``progress``: the lines that SageMaker's MetricDefinitions read;
* ``artifact``: the members of an artifact; ``archive``: how a batch packs them;
* ``files``: how files are written; ``failures``: errors that nobody foresaw.
"""
