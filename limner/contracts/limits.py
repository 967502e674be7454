"""Limits that the app, the functions and the training know alike."""

from __future__ import annotations

from typing import Final

MIN_PHOTOS: Final = 3
MAX_PHOTOS: Final = 50
MIN_PHOTO_SIDE_PX: Final = 32
MAX_PHOTO_PIXELS: Final = 40_000_000
MAX_PHOTO_BYTES: Final = 25_000_000

# Requests of one user that have not ended. The index that counts them is a moment late, so a crowd
# of calls at once can pass it by as many: it bounds floods, and is no budget.
MAX_OPEN_REQUESTS: Final = 100
# So many of the user's last requests are looked at for that: what one look costs at most.
COUNTED_REQUESTS: Final = 200

# A record outlives what people ask about; then DynamoDB deletes it.
RECORD_DAYS: Final = 400
