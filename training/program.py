"""One training job from its config files to its artifact.

Whatever can be refused is refused before torch is imported, which takes seconds: a bad photo ends
the job in its first second.
"""

from __future__ import annotations

import time
from typing import Final

from limner.contracts.base import read_card
from training.job import read_job
from training.photos import load_photos
from training.progress import event_line, say
from training.settings import Settings

# Photos are kept at this multiple of the base's resolution: enough for every crop to be scaled
# down, little enough for fifty of them to fit into memory.
_KEEP_SCALE: Final = 2


def train(settings: Settings) -> None:
    """Runs the job that the container's config files describe.

    The photos of one request are the work of one machine. Where a job has several hosts, the first
    of ``hosts`` trains; the others say so, leave their ``model/`` empty and end well, and SageMaker
    packs the first host's artifact.

    Raises:
        LimnerError: With what went wrong; ``model/`` holds no artifact then.
    """
    started = time.perf_counter()
    job = read_job(settings)
    if job.resources.index > 0:
        say(event_line("idle", host=job.resources.index, hosts=len(job.resources.hosts)))
        return
    card = read_card(job.base_dir)
    photos = load_photos(job.photos_dir, keep_side_px=_KEEP_SCALE * card.resolution_px)
    say(event_line("checked", photos=len(photos), seconds=time.perf_counter() - started))

    from training.production import produce  # torch comes in here, not earlier

    produce(settings, job, photos, started=started)
    say(event_line("trained", seconds=time.perf_counter() - started))
