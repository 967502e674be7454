"""One training job from its config files to its artifact, or to its tasks' results.

Whatever can be refused is refused before torch is imported, which takes seconds: a bad photo ends
the job of one request in its first second, and a batch that is done already never loads a base.
"""

from __future__ import annotations

import secrets
import time
from functools import partial

from limner.contracts.base import read_card
from limner.contracts.errors import LimnerError
from training.claims import open_claims
from training.job import Job, read_base_dir, read_job
from training.orders import open_orders
from training.photos import keep_side_px, load_photos
from training.progress import event_line, say
from training.results import finished, write_result
from training.settings import Settings
from training.worker import Inbox
from training.works import Works


def train(settings: Settings) -> None:
    """Runs this host's part of the job that the container's config files describe.

    A worker takes its works from the queue instead, until its time is over. A host without a part
    says so, leaves nothing and ends well. With one request, SageMaker packs the first host's
    ``model/``; a batch leaves ``model/`` empty, for its artifacts go to ``checkpoints/`` one by
    one.

    Raises:
        LimnerError: With what went wrong; ``model/`` holds no artifact then.
    """
    started = time.perf_counter()
    if settings.worker_table is not None:
        _serve(settings, settings.worker_table)
        return
    job = read_job(settings)
    if not job.share and not (job.others and settings.claims):
        say(event_line("idle", host=job.resources.index, hosts=len(job.resources.hosts)))
    elif job.batch:
        _train_batch(settings, job)
        say(event_line("ended", tasks=len(job.share), seconds=time.perf_counter() - started))
    else:
        _train_one(settings, job, started)


def _train_one(settings: Settings, job: Job, started: float) -> None:
    (work,) = job.share
    photos = load_photos(work.photos_dir, keep_side_px=keep_side_px(read_card(job.base_dir)))
    say(event_line("checked", photos=len(photos), seconds=time.perf_counter() - started))

    from training.artifact import write_members  # torch comes in here, not earlier
    from training.checkpoints import Checkpoints
    from training.production import open_base
    from training.runner import Runner

    checkpoints = Checkpoints.of(settings)
    runner = Runner(
        open_base(job.base_dir),
        rows=settings.rows,
        previews_dir=lambda _: settings.checkpoint_dir,
        parts_dir=settings.parts_dir,
        is_signed=False,
        checkpoints=checkpoints,
        quality=settings.quality,
    )
    (outcome,) = runner.run([work])
    if outcome.made is None:
        raise outcome.error or LimnerError("TRAINING_FAILED")
    write_members(settings.model_dir, outcome.made.members)
    checkpoints.finish()
    # images_per_second is not said once more: SageMaker would take the line for another reading.
    timings = {name: s for name, s in outcome.made.timings.items() if name.endswith("_seconds")}
    say(event_line("trained", seconds=time.perf_counter() - started, **timings))


def _train_batch(settings: Settings, job: Job) -> None:
    claims = open_claims(settings.claims, job.resources.index) if settings.claims else None
    todo, ended = [], []
    for work in (*job.share, *(job.others if claims else ())):
        result = finished(settings, work.request_id)
        if result is None:
            todo.append(work)
        else:
            # An earlier start of this job did it: spot interruptions and RetryStrategy start anew.
            say(event_line("kept", request=work.request_id, status=result.status))
            ended.append(work)
    if not todo:
        return
    ours = {work.request_id for work in job.share}
    works = Works(
        [work for work in todo if work.request_id in ours],
        ended=ended,
        others=[work for work in todo if work.request_id not in ours],
        claims=claims,
    )

    from training.batch import train_all  # torch comes in here, not earlier
    from training.checkpoints import Checkpoints
    from training.production import open_base

    base = open_base(job.base_dir)
    checkpoints = Checkpoints.of(settings, job.resources.index)
    train_all(settings, base, works, checkpoints=checkpoints)


def _serve(settings: Settings, table: str) -> None:
    """Takes works from the queue until there are none, or the job's time is over.

    It keeps no checkpoints: what it has not delivered is free for others as soon as it ends.
    """
    base_dir = read_base_dir(settings)
    orders = open_orders(
        table=table,
        bucket=settings.worker_bucket,
        job=settings.job_name,
        # A start of the job that is gone must not hold what its successor takes.
        me=f"{settings.job_name}#{secrets.token_hex(8)}",
        region=settings.worker_region,
    )

    from training.batch import train_all
    from training.production import open_base

    base = open_base(base_dir)
    with Inbox(
        orders,
        settings.worker_dir,
        keep=partial(write_result, settings),
        idle_s=settings.worker_idle_s,
        lifetime_s=settings.worker_lifetime_s,
    ) as inbox:
        train_all(settings, base, inbox, kept=inbox.deliver)
