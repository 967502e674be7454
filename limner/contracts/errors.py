"""The one registry of errors.

Every error a user can meet has a code here, and with it an HTTP status, whether trying again can
help, one sentence, and a fix. ASL error names, Lambda errors, HTTP bodies, CLI text and
``docs/errors.md`` are all made from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Fault = Literal["caller", "aws", "limner"]

# Error name of an execution that could not record its failure; its cause is the failure as JSON,
# ``{"Error": …, "Cause": …}``, for whoever records it next.
NOT_RECORDED: Final = "NotRecorded"


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """One kind of error.

    Attributes:
        code: Stable name, upper snake case; what programs test for.
        http_status: Status of an HTTP answer that carries this error.
        retryable: Whether the same call can succeed later without a change by the user.
        summary: One sentence that says what happened.
        fix: One sentence that says what to do about it.
        fault: Whose it is: ``caller`` (the user's data, or the app's call), ``aws`` (rates, quotas,
            capacity, the service itself) or ``limner`` (our code, our base, our deployment).
    """

    code: str
    http_status: int
    retryable: bool
    summary: str
    fix: str
    fault: Fault


def _spec(
    code: str,
    http_status: int,
    summary: str,
    fix: str,
    *,
    retryable: bool = False,
    fault: Fault = "caller",
) -> ErrorSpec:
    return ErrorSpec(code, http_status, retryable, summary, fix, fault)


_SPECS: Final = (
    # The user's input.
    _spec(
        "INVALID_INPUT",
        400,
        "A value is missing or out of range.",
        "Correct the value that the message names.",
    ),
    _spec(
        "PHOTO_NOT_AN_IMAGE",
        400,
        "A file is not an image that can be read.",
        "Replace the file by a PNG, JPEG or WebP image.",
    ),
    _spec(
        "PHOTO_TOO_SMALL",
        400,
        "A photo has too few pixels to learn from.",
        "Replace the photo by one with more pixels on its shorter side.",
    ),
    _spec(
        "PHOTO_TOO_LARGE",
        400,
        "A photo has more pixels or bytes than is safe to decode.",
        "Scale the photo down and upload it again.",
    ),
    _spec(
        "TOO_FEW_PHOTOS",
        400,
        "There are too few photos of the subject.",
        "Add photos of the same subject, from other sides and on other backgrounds.",
    ),
    _spec(
        "TOO_MANY_PHOTOS",
        400,
        "There are too many photos of the subject.",
        "Keep the sharpest and most different photos.",
    ),
    # The life of a request.
    _spec(
        "REQUEST_NOT_FOUND",
        404,
        "There is no such request.",
        "List the requests of the user, or onboard the user.",
    ),
    _spec(
        "REQUEST_CONFLICT",
        409,
        "The same request id was used with other input.",
        "Use a new request id for other photos or settings.",
    ),
    _spec(
        "REQUEST_ALREADY_CLAIMED",
        409,
        "Another execution works on this request, or it has ended.",
        "Nothing to do: follow the execution that owns the request.",
    ),
    _spec(
        "MODEL_BUSY",
        409,
        "Another onboarding of this model is in progress.",
        "Wait for it to end, or cancel it, and ask again.",
        retryable=True,
    ),
    _spec(
        "MODEL_NOT_FOUND",
        404,
        "The user has no such model.",
        "Onboard the user first: limner onboard USER PHOTOS.",
    ),
    _spec(
        "MODEL_NOT_READY",
        409,
        "The model has no version that can serve yet.",
        "Wait for the onboarding to end: limner status USER.",
        retryable=True,
    ),
    _spec(
        "VERSION_NOT_FOUND",
        404,
        "The model has no such version.",
        "Look which versions there are: limner versions USER.",
    ),
    _spec(
        "MODEL_CHANGED",
        409,
        "Another version of the model went live at the same moment.",
        "Look which version serves now (limner versions USER), and activate again.",
        retryable=True,
    ),
    _spec(
        "EXECUTION_STOPPED",
        409,
        "The onboarding was stopped before its end.",
        "Onboard the user again.",
        retryable=True,
    ),
    _spec(
        "DEADLINE_EXCEEDED",
        504,
        "The work took longer than its deadline allows.",
        "Try again; if it happens again, raise the timeout or lower the number of steps.",
        retryable=True,
        fault="aws",
    ),
    _spec(
        "UPLOAD_INCOMPLETE",
        409,
        "Photos that were registered have not arrived, or are not the ones that were promised.",
        "Upload the files that the message names, and submit the request again.",
        retryable=True,
    ),
    _spec(
        "UPLOAD_EXPIRED",
        410,
        "The photos of a registered request never came.",
        "Register the request anew, and upload the photos within a day.",
    ),
    _spec(
        "TOO_MANY_REQUESTS",
        429,
        "The user has too many requests that have not ended.",
        "Wait for some of them to end, or cancel them, and ask again.",
        retryable=True,
    ),
    # Training.
    _spec(
        "THROTTLED",
        429,
        "AWS refused calls because there were too many.",
        "Try again later; bursts of requests belong in the requests queue.",
        retryable=True,
        fault="aws",
    ),
    _spec(
        "QUOTA_EXCEEDED",
        429,
        "The account's quota of training instances is full.",
        "Try again when running jobs have ended, or ask AWS for a higher quota.",
        retryable=True,
        fault="aws",
    ),
    _spec(
        "NO_CAPACITY",
        503,
        "AWS had no free machine of the asked type.",
        "Try again later, or allow another instance type.",
        retryable=True,
        fault="aws",
    ),
    _spec(
        "TRAINING_FAILED",
        500,
        "The training program failed.",
        "Read the reason and the job's log; the photos are kept.",
        fault="limner",
    ),
    _spec(
        "TRAINING_DIVERGED",
        500,
        "The training loss is no longer a number.",
        "Lower the learning rate.",
        fault="limner",
    ),
    _spec(
        "JOB_INCOMPLETE",
        503,
        "Several training jobs ended without having done this request's part.",
        "Onboard the user again; if it happens again, look at the jobs' logs.",
        retryable=True,
        fault="aws",
    ),
    _spec(
        "JOB_NAME_TAKEN",
        409,
        "A training job of this name works for something else.",
        "Let nothing else use the prefix of the stage's training jobs; then onboard again.",
        retryable=True,
        fault="limner",
    ),
    _spec(
        "TRAINING_STOPPED",
        409,
        "The training job was stopped.",
        "Onboard the user again.",
        retryable=True,
    ),
    _spec(
        "BASE_INVALID",
        500,
        "The base model cannot be read.",
        "Check that the base is a diffusers StableDiffusionPipeline folder.",
        fault="limner",
    ),
    _spec(
        "QUALITY_TOO_LOW",
        422,
        "The new model's images fall short of what is asked of a model.",
        "Onboard the user again with more or sharper photos of the same subject, or more steps.",
    ),
    # Serving.
    _spec(
        "ARTIFACT_INVALID",
        400,
        "The model's artifact does not have the agreed form.",
        "Train the model again; never edit an artifact by hand.",
        fault="limner",
    ),
    _spec(
        "ARTIFACT_WRONG_BASE",
        400,
        "The adapter was trained on another base than the endpoint serves.",
        "Train the model again on the endpoint's base, or call the endpoint of its base.",
        fault="limner",
    ),
    _spec(
        "MODEL_ALREADY_LOADED",
        409,
        "The model is already loaded.",
        "Invoke it.",
        fault="limner",
    ),
    _spec(
        "MODEL_NOT_LOADED",
        404,
        "The model is not loaded.",
        "Load it first.",
        retryable=True,
        fault="limner",
    ),
    _spec(
        "OUT_OF_MEMORY",
        507,
        "There is no memory left for another model.",
        "Unload models that are not used, and try again.",
        retryable=True,
        fault="aws",
    ),
    _spec(
        "MODEL_LOADING",
        429,
        "The endpoint is still loading the model.",
        "Try again in some seconds.",
        retryable=True,
        fault="aws",
    ),
    _spec(
        "SMOKE_TEST_FAILED",
        500,
        "The new model did not answer its first request with a sound image.",
        "Onboard the user again; if it happens again, look at the endpoint's log.",
        fault="limner",
    ),
    _spec(
        "GENERATION_FAILED",
        502,
        "The endpoint could not answer the request.",
        "Try again; if it happens again, look at the endpoint's log.",
        retryable=True,
        fault="limner",
    ),
    _spec(
        "GENERATION_CANCELLED",
        # Not in any RFC, but what proxies log for a client that went away.
        499,
        "Whoever asked for the images went away before they were drawn.",
        "Ask again.",
        retryable=True,
    ),
    _spec(
        "ENDPOINT_BUSY",
        503,
        "More requests wait for the endpoint than it may keep.",
        "Try again in some seconds; if it happens often, add instances.",
        retryable=True,
        fault="aws",
    ),
    _spec(
        "CONTENT_REFUSED",
        422,
        "The prompt or an image did not pass the app's content check.",
        "Ask for something else.",
    ),
    # The laptop and the deployment.
    _spec(
        "LAPTOP_NOT_RUNNING",
        503,
        "AWS on this laptop is not running.",
        "Start it: limner up.",
    ),
    _spec(
        "LAPTOP_START_FAILED",
        500,
        "AWS on this laptop did not start.",
        "Run limner doctor, and read the log that the message names.",
        fault="limner",
    ),
    _spec(
        "NOT_DEPLOYED",
        404,
        "Limner's stack was not found in this account and region.",
        "Deploy it, or check the stage, the region and AWS_ENDPOINT_URL.",
    ),
    _spec(
        "TOOL_MISSING",
        500,
        "A program that this command needs is not on this machine.",
        "Install what the message names.",
    ),
    _spec(
        "AWS_ERROR",
        502,
        "AWS refused a call.",
        "Check credentials, permissions and the region.",
        fault="aws",
    ),
    _spec(
        "INTERNAL",
        500,
        "Limner has a bug.",
        "Report it with the request id.",
        fault="limner",
    ),
)

REGISTRY: Final[dict[str, ErrorSpec]] = {spec.code: spec for spec in _SPECS}


class LimnerError(Exception):
    """An error from the registry, with what the user needs to know about this one case.

    Args:
        code: A code of ``REGISTRY``.
        detail: What happened here: the file, the value, the reason. Never the content of a
            prompt or a photo.

    Raises:
        KeyError: If the code is not in the registry.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        self.spec = REGISTRY[code]
        self.detail = detail
        super().__init__(self.message)

    @property
    def code(self) -> str:
        """The stable name of the error."""
        return self.spec.code

    @property
    def message(self) -> str:
        """The case at hand where it is known, else the registry's sentence."""
        return self.detail or self.spec.summary

    def __str__(self) -> str:
        return f"{self.code}: {self.message} Fix: {self.spec.fix}"

    def __reduce__(self) -> tuple[type[LimnerError], tuple[str, str]]:
        # Exceptions pickle by their args, which are not ours; pools and pytest-xdist pickle them.
        return (LimnerError, (self.code, self.detail))

    def to_dict(self) -> dict[str, object]:
        """The one JSON shape of an error, the same in HTTP bodies, Lambda answers and the CLI."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "retryable": self.spec.retryable,
                "fault": self.spec.fault,
                "fix": self.spec.fix,
            }
        }


def as_markdown() -> str:
    """The registry as the page ``docs/errors.md``; a test keeps the page equal."""
    lines = [
        "# Errors",
        "",
        "Made from `limner/contracts/errors.py` by `make docs`; do not edit it by hand.",
        "",
        "`again?` says whether the same call can succeed later; `fault` says whose it is: the"
        " caller's (data or call), AWS's, or Limner's own.",
        "",
        "| code | HTTP | again? | fault | what happened | what to do |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{spec.code}` | {spec.http_status} | {'yes' if spec.retryable else 'no'} "
        f"| {spec.fault} | {spec.summary} | {spec.fix} |"
        for spec in _SPECS
    ]
    return "\n".join(lines) + "\n"
