"""The digest that tells a repeat of a request from a conflict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from limner.contracts.config_table import without_later


def input_digest(
    user_id: str,
    model_id: str,
    retrain: bool,
    config: Mapping[str, object],
    photos: Iterable[str],
) -> str:
    """SHA-256 over everything that a request asks for, as 64 hexadecimal digits.

    The app (``Limner.onboard``) and the function ``register`` compute it alike, so that a token
    means the same wish by whichever way it comes.

    Args:
        user_id: Whose model.
        model_id: Which of the user's models.
        retrain: Whether to train a new version when the model is ready already.
        config: All fields of the training config, as JSON has them.
        photos: SHA-256 of each different photo, 64 hexadecimal digits.
    """
    canonical = {
        "user_id": user_id,
        "model_id": model_id,
        "retrain": retrain,
        "config": without_later(config),
        "photos": sorted(photos),
    }
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()
