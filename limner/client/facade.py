"""``Limner``: what an app calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from botocore.exceptions import ClientError
from pydantic import ValidationError

from limner.capture import Counts
from limner.client import (
    generation,
    polling,
    prefetching,
    progress,
    registration,
    uploads,
    versions,
)
from limner.client.aws import Clients, find_deployment
from limner.client.capture import FLUSH_S, Capture
from limner.client.errors import code_of, translated
from limner.client.generation import Generation
from limner.client.polling import Clock
from limner.client.prefetching import Prefetched
from limner.client.progress import Progress, StateVisit
from limner.client.registration import PromisedPhoto, Registration
from limner.client.versions import ModelVersions
from limner.contracts import keys
from limner.contracts.capture import CaptureBy
from limner.contracts.digests import input_digest
from limner.contracts.errors import REGISTRY, LimnerError
from limner.contracts.generation import SMALLEST, GenerateRequest, ImageFormat
from limner.contracts.limits import MAX_OPEN_REQUESTS
from limner.contracts.onboarding import OnboardingInput
from limner.contracts.statuses import RequestStatus
from limner.contracts.training import TrainingConfig, explain
from limner.photos import Photo, PhotoSource, check_photos
from limner.registry import Model, Registry, Request, RequestFailure
from limner.settings import Deployment, read_settings

if TYPE_CHECKING:
    import boto3

_LAST_REQUESTS: Final = 5
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How a model stands.

    Attributes:
        user_id: Whose model.
        model_id: Which one.
        live_version: The version that serves; None until the first is ready.
        target_model: What the endpoint calls the live version.
        active_request: The request that trains a new version now.
        requests: The last requests for this model, newest first.
    """

    user_id: str
    model_id: str
    live_version: int | None
    target_model: str | None
    active_request: str | None
    requests: tuple[Request, ...]

    @property
    def is_ready(self) -> bool:
        """Whether the model can generate."""
        return self.live_version is not None


class Limner:
    """A personal generative model for every user, over one deployed stage.

    One object may be used from many threads. All methods raise ``LimnerError`` alone; its ``code``
    is what a program tests.

    Example::

        limner = Limner.connect(stage="prod")
        request = limner.onboard("alice", ["1.jpg", "2.jpg", "3.jpg"], client_token="signup-7")
        limner.wait(request.request_id)
        limner.generate("alice", "a photo of {token} on the beach").save("out")

    Args:
        clients: The boto3 clients.
        deployment: The AWS resources.
        clock: Time; tests turn it.
        capture: ``client`` keeps what is generated in the bucket, behind the caller's back
            (``docs/serving.md``). Then end with ``close``, or use the object as a context manager.
    """

    def __init__(
        self,
        clients: Clients,
        deployment: Deployment,
        *,
        clock: Clock | None = None,
        capture: CaptureBy = "off",
    ) -> None:
        self.clients = clients
        self.deployment = deployment
        self._clock = clock or Clock()
        self._registry = Registry(
            clients.dynamodb, deployment.models_table, deployment.requests_table
        )
        self._prefetches = prefetching.Background()
        self._capture = Capture(clients.s3, deployment.bucket) if capture == "client" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, deadline_s: float = FLUSH_S) -> None:
        """Gives the captured generations their time to be written; without capture, does nothing.

        Args:
            deadline_s: Seconds to wait at the most; what is left then is dropped, and counted.
        """
        if self._capture:
            self._capture.close(deadline_s)

    @property
    def captured(self) -> Counts:
        """How many generations were written to the bucket, dropped, or refused by it."""
        return self._capture.counts if self._capture else Counts()

    @classmethod
    def connect(
        cls,
        stage: str | None = None,
        *,
        deployment: Deployment | None = None,
        session: boto3.Session | None = None,
        endpoint_url: str | None = None,
        capture: CaptureBy | None = None,
    ) -> Self:
        """Connects to a deployed stage with the standard AWS settings.

        Args:
            stage: The stage; ``LIMNER_STAGE``, else ``prod``, where absent.
            deployment: The resources, where the app knows them. Else they come from the
                ``LIMNER_*`` settings, if no stage is given and those are set, or from the outputs
                of the stack ``limner-<stage>``.
            session: Credentials and region.
            endpoint_url: Another AWS than AWS itself; ``AWS_ENDPOINT_URL`` does the same.
            capture: ``client`` or ``off``; ``LIMNER_CAPTURE``, else ``off``, where absent.

        Raises:
            LimnerError: ``NOT_DEPLOYED``, ``LAPTOP_NOT_RUNNING``, ``AWS_ERROR``, or
                ``INVALID_INPUT`` for settings that are wrong or incomplete.
        """
        settings = read_settings(stage)
        clients = Clients.of(
            session, endpoint_url=endpoint_url, path_style=bool(settings.aws_endpoint_url)
        )
        if deployment is None and stage is None:
            deployment = settings.deployment()
        return cls(
            clients,
            deployment or find_deployment(clients.cloudformation, settings.stage),
            capture=capture or settings.capture,
        )

    def onboard(
        self,
        user_id: str,
        photos: Sequence[PhotoSource],
        *,
        model_id: str = keys.DEFAULT_MODEL_ID,
        client_token: str | None = None,
        retrain: bool = False,
        config: TrainingConfig | None = None,
        queue: bool = False,
    ) -> Request:
        """Asks for a model of a user's subject, and returns at once.

        ::

            check photos ─> upload them and the config ─> put the request, if new
                         ─> start the execution, by name, or leave it to the queue

        A crash between two steps is mended by the same call with the same token: every step does
        nothing where it has been done.

        Args:
            user_id: Whose model, in the words of your app.
            photos: 3 to 50 files or file contents (PNG, JPEG, WebP).
            model_id: Which of the user's models.
            client_token: Makes the call repeatable: the same token with the same input gives the
                same request. Do not use one token for two inputs at the same time.
            retrain: Train a new version even if the model is ready.
            config: How to train.
            queue: Let the deployed queue start it when there is room, perhaps in one job with
                others. For bursts: a direct start takes its chances with AWS's own limits.

        Raises:
            LimnerError: ``PHOTO_*``, ``TOO_FEW_PHOTOS``, ``TOO_MANY_PHOTOS``, ``INVALID_INPUT``;
                ``REQUEST_CONFLICT``, if the token was used with other input;
                ``TOO_MANY_REQUESTS``, if the user has 100 that have not ended; ``THROTTLED``,
                ``AWS_ERROR``.
        """
        repeatable = client_token is not None
        request_id = (
            keys.new_request_id()
            if client_token is None
            else keys.request_id_of_token(user_id, client_token)
        )
        keys.check_user_id(user_id)
        keys.check_model_id(model_id)
        config = config or TrainingConfig()
        checked = check_photos(photos)
        digest = input_digest(
            user_id,
            model_id,
            retrain,
            config.model_dump(mode="json"),
            (photo.sha256 for photo in checked),
        )
        request = self._known(request_id) if repeatable else None
        if request is None:
            self._check_room(user_id)
            new = Request.new(
                request_id,
                user_id,
                model_id,
                retrain=retrain,
                steps=config.steps,
                photos=len(checked),
                input_digest=digest,
                # One that may meet the leavings of an earlier call is put into the queue below,
                # when those are cleared away: the queue does not wait for us.
                queued=queue and not repeatable,
            )
            self._upload(new, checked, config)
            with translated():
                request = self._registry.create_request(new)
        if request.input_digest != digest:
            detail = f"Request {request_id} was made with other photos or settings."
            raise LimnerError("REQUEST_CONFLICT", detail)
        if request.status is RequestStatus.REGISTERED:  # its photos were to come another way
            self._upload(request, checked, config)
            with translated():
                request = self._registry.complete(request)
        if request.status is RequestStatus.QUEUED:
            if repeatable:
                self._tidy(request, checked, config)
            request = self._hand_over(request, queue)
        return request

    def register(
        self,
        user_id: str,
        photos: Sequence[PhotoSource] | Sequence[PromisedPhoto],
        *,
        model_id: str = keys.DEFAULT_MODEL_ID,
        client_token: str | None = None,
        retrain: bool = False,
        config: TrainingConfig | None = None,
    ) -> Registration:
        """Asks for a model of photos that somebody else uploads, such as the user's browser.

        The answer has a form for each photo; S3 takes exactly the bytes that were promised, for
        15 minutes. ``submit`` ends it. A request that is not submitted within a day fails.

        Args:
            user_id: Whose model, in the words of your app.
            photos: What the 3 to 50 photos promise to be; or the photos themselves, for programs
                that go on with ``Registration.upload``.
            model_id: Which of the user's models.
            client_token: Makes the call repeatable, as in ``onboard``: the same token with the
                same input gives the same request, with fresh forms.
            retrain: Train a new version even if the model is ready.
            config: How to train.

        Raises:
            LimnerError: As ``onboard``; ``NOT_DEPLOYED``, if the stack has no such function.
        """
        given = TrainingConfig() if config is None else config
        token = {} if client_token is None else {"client_token": client_token}
        answer = self._ask(
            {
                "action": "register",
                "user_id": user_id,
                "model_id": model_id,
                "retrain": retrain,
                "config": given.model_dump(mode="json"),
                "photos": registration.promises(photos),
                **token,
            }
        )
        return registration.read_registration(answer)

    def submit(self, request_id: str, *, start: Literal["queue", "event"] = "queue") -> Request:
        """Starts a registered request whose photos have arrived; doing it again changes nothing.

        Args:
            request_id: The request.
            start: ``queue`` waits for room, perhaps shares a job with others; ``event`` puts
                ``limner.onboarding.requested`` on the bus, whose rule starts it at once.

        Raises:
            LimnerError: ``UPLOAD_INCOMPLETE``, naming the photos that are missing or other than
                promised; ``PHOTO_*`` for what is no photo; ``REQUEST_NOT_FOUND``;
                ``NOT_DEPLOYED``.
        """
        user_id = self.request(request_id).user_id
        self._ask(
            {"action": "submit", "request_id": request_id, "user_id": user_id, "start": start}
        )
        return self.request(request_id)

    def status(self, user_id: str, model_id: str = keys.DEFAULT_MODEL_ID) -> ModelStatus:
        """How a model stands: its live version and the last requests for it.

        Raises:
            LimnerError: ``MODEL_NOT_FOUND``, if the model was never asked for.
        """
        with translated():
            model = self._registry.model(user_id, model_id)
            of_model = (
                request
                for request in self._registry.requests_of(user_id)
                if request.model_id == model_id
            )
            requests = tuple(islice(of_model, _LAST_REQUESTS))
        if model is None and not requests:
            raise _no_model(user_id, model_id)
        return ModelStatus(
            user_id=user_id,
            model_id=model_id,
            live_version=None if model is None else model.live_version,
            target_model=None if model is None else model.target_model,
            active_request=None if model is None else model.active_request,
            requests=requests,
        )

    def request(self, request_id: str) -> Request:
        """One request.

        Raises:
            LimnerError: ``REQUEST_NOT_FOUND``.
        """
        with translated():
            return self._registry.request(request_id)

    def wait(self, request_id: str, *, timeout_s: float = 3_600, poll_s: float = 2.0) -> Request:
        """Waits until a request is READY.

        Args:
            request_id: The request.
            timeout_s: Seconds to wait at the most; the request itself goes on.
            poll_s: Seconds between two looks.

        Raises:
            LimnerError: The request's own error if it FAILED or was CANCELLED;
                ``DEADLINE_EXCEEDED`` when the time is over.
        """
        for request in self._polls(request_id, timeout_s, poll_s):
            last = request
        return last.raise_for_error()

    def progress(self, request_id: str) -> Progress:
        """A request with the states that its execution has visited and its training job.

        A request that shares its execution with others (a batch) shows no states: the history of
        a batch is that of all its requests, too long to be read for each of them.

        Raises:
            LimnerError: ``REQUEST_NOT_FOUND``.
        """
        return self._progress(self.request(request_id))

    def follow(
        self, request_id: str, *, timeout_s: float = 3_600, poll_s: float = 1.0
    ) -> Iterator[Progress]:
        """Yields the progress of a request whenever it changes, and ends when the request ends.

        The end is not judged here: ask the last ``progress.request.raise_for_error()``.

        Raises:
            LimnerError: ``REQUEST_NOT_FOUND``; ``DEADLINE_EXCEEDED`` when the time is over.
        """
        before: Progress | None = None
        for request in self._polls(request_id, timeout_s, poll_s):
            at_present = self._progress(request)
            if at_present != before:
                yield at_present
            before = at_present

    def cancel(self, request_id: str) -> Request:
        """Stops a request; one that has ended is left alone.

        A request that nobody has claimed is CANCELLED at once. Else its execution is stopped, and
        the deployed rule ends the record a moment later; ``wait`` then raises
        ``EXECUTION_STOPPED``. A batch is never stopped for one of its requests: the wish is noted
        in the record (``cancel_requested``), and the job goes on.

        Returns:
            The request right after that.

        Raises:
            LimnerError: ``REQUEST_NOT_FOUND``.
        """
        request = self.request(request_id)
        detail = "The request was cancelled by its client."
        if request.owner is None and not _has_been_started(request):
            with translated():
                request = self._registry.cancel_unclaimed(request_id, _stopped(detail))
        if request.has_ended:
            return request
        if not self._works_alone(request):
            with translated():
                return self._registry.ask_to_cancel(request_id)
        with translated():
            try:
                self.clients.stepfunctions.stop_execution(
                    executionArn=self.execution_arn(request),
                    error="EXECUTION_STOPPED",
                    cause=detail,
                )
            except ClientError as error:
                if code_of(error) != "ExecutionDoesNotExist":
                    raise
                # It was never started, so no rule will end it.
                return self._registry.cancel_unclaimed(request_id, _stopped(detail))
        return self.request(request_id)

    def generate(
        self,
        user_id: str,
        prompt: str,
        *,
        model_id: str = keys.DEFAULT_MODEL_ID,
        version: int | None = None,
        negative_prompt: str = "",
        images: int = 1,
        seed: int = 0,
        steps: int = 20,
        guidance: float = 3.0,
        height: int | None = None,
        width: int | None = None,
        image_format: ImageFormat = "png",
        deadline_s: float = generation.LOADING_DEADLINE_S,
    ) -> Generation:
        """Draws images with a user's model.

        Which artifact the endpoint loads is computed from the registry; no argument can name one.

        Args:
            user_id: Whose model.
            prompt: The text; ``{token}`` stands for the user's subject.
            model_id: Which of the user's models.
            version: An older version; the live one where absent.
            negative_prompt: What to keep away from.
            images: 1 to 8.
            seed: Of the first image; image i has seed + i.
            steps: Denoising steps, 1 to 100.
            guidance: Scale of classifier-free guidance.
            height: Pixels, a multiple of 8; the base's own size where absent.
            width: As the height.
            image_format: ``png``, ``jpeg`` or ``webp``.
            deadline_s: Seconds to go on asking while the endpoint loads the model, or is busy.

        Raises:
            LimnerError: ``INVALID_INPUT``, ``MODEL_NOT_FOUND``, ``VERSION_NOT_FOUND``,
                ``MODEL_NOT_READY``, ``MODEL_LOADING``, ``ENDPOINT_BUSY`` or ``THROTTLED`` at the
                deadline, ``CONTENT_REFUSED``, ``GENERATION_FAILED``.
        """
        try:
            wish = GenerateRequest(
                prompt=prompt,
                negative_prompt=negative_prompt,
                steps=steps,
                guidance=guidance,
                seed=seed,
                images=images,
                height=height,
                width=width,
                format=image_format,
            )
        except ValidationError as error:
            raise LimnerError("INVALID_INPUT", f"{explain(error)}.") from error
        served = self._servable(user_id, model_id, version)
        target_model = keys.target_model(user_id, model_id, served)
        response = generation.invoke(
            self.clients.runtime,
            self.deployment.endpoint_name,
            target_model,
            wish,
            deadline_s=deadline_s,
            clock=self._clock,
        )
        drawn = Generation(
            images=generation.images_of(response),
            user_id=user_id,
            model_id=model_id,
            version=served,
            target_model=target_model,
            prompt=response.prompt,
            base_id=response.base_id,
            adapter_sha256=response.adapter_sha256,
            denoise_ms=response.denoise_ms,
        )
        if self._capture:
            self._capture.offer(wish, drawn)
        return drawn

    def prefetch(
        self,
        user_id: str,
        model_id: str = keys.DEFAULT_MODEL_ID,
        *,
        version: int | None = None,
        deadline_s: float = generation.LOADING_DEADLINE_S,
    ) -> Prefetched:
        """Loads a model into the endpoint's memory, before somebody waits for its images.

        For the moment in which your app sees the user come, or for a version that is to be
        activated. It costs the endpoint one image of 64 pixels in one step. How long a model stays
        is SageMaker's affair: until its memory is wanted for another one.

        Args:
            user_id: Whose model.
            model_id: Which of the user's models.
            version: Another version than the live one.
            deadline_s: Seconds to go on asking while the endpoint loads the model.

        Raises:
            LimnerError: As ``generate``.
        """
        began = self._clock.monotonic()
        served = self._servable(user_id, model_id, version)
        target_model = keys.target_model(user_id, model_id, served)
        generation.invoke(
            self.clients.runtime,
            self.deployment.endpoint_name,
            target_model,
            SMALLEST,
            deadline_s=deadline_s,
            clock=self._clock,
        )
        seconds = self._clock.monotonic() - began
        return Prefetched(user_id, model_id, served, target_model, seconds)

    def prefetch_in_background(
        self,
        user_id: str,
        model_id: str = keys.DEFAULT_MODEL_ID,
        *,
        version: int | None = None,
        deadline_s: float = generation.LOADING_DEADLINE_S,
    ) -> Future[Prefetched]:
        """``prefetch`` that returns at once and never raises.

        What goes wrong is in the future's ``exception()``, and by its code in the log
        ``limner.client.prefetching``. The same model is prefetched once at a time, and at most
        eight are; one more is dropped (``THROTTLED``).

        Args:
            user_id: Whose model.
            model_id: Which of the user's models.
            version: Another version than the live one.
            deadline_s: Seconds to go on asking while the endpoint loads the model.
        """
        return self._prefetches.begin(
            (user_id, model_id, version),
            lambda: self.prefetch(user_id, model_id, version=version, deadline_s=deadline_s),
        )

    def versions(self, user_id: str, model_id: str = keys.DEFAULT_MODEL_ID) -> ModelVersions:
        """The versions of a model, newest first, and which of them serves.

        Raises:
            LimnerError: ``MODEL_NOT_FOUND``, also before the first version was begun.
        """
        with translated():
            return versions.read(self._registry, user_id, model_id)

    def activate(self, user_id: str, model_id: str, version: int) -> Model:
        """Lets another version of a model serve: an older one, or one that was left by a roll-back.

        The version that serves goes on until the one write that changes it; from then on, every
        ``generate`` asks for the other. Doing it again changes nothing. A new version that is being
        trained goes live at its end all the same: ``cancel`` its request if it shall not.

        Returns:
            The model as it stands then.

        Raises:
            LimnerError: ``MODEL_NOT_FOUND``, ``VERSION_NOT_FOUND``; ``MODEL_NOT_READY``, if the
                version has never served; ``MODEL_CHANGED``, if another one went live meanwhile.
        """
        with translated():
            model = self._registry.model(user_id, model_id)
            if model is None:
                raise _no_model(user_id, model_id)
            return versions.activate(self._registry, model, version)

    def roll_back(
        self,
        user_id: str,
        model_id: str = keys.DEFAULT_MODEL_ID,
        *,
        from_version: int | None = None,
    ) -> Model:
        """Lets the version serve again that served before the present one.

        Of the older versions, that is the one that went live last. See ``activate``.

        Args:
            user_id: Whose model.
            model_id: Which of the user's models.
            from_version: The version that shall serve no more. If it does not, nothing is done:
                so the call can be repeated without going further back.

        Returns:
            The model as it stands then.

        Raises:
            LimnerError: As ``activate``; ``VERSION_NOT_FOUND``, if there is no older version.
        """
        with translated():
            found = versions.read(self._registry, user_id, model_id)
            if from_version is not None and found.model.live_version != from_version:
                return found.model
            if found.previous is None:
                detail = f"{user_id}'s model {model_id} has no older version that can serve."
                raise LimnerError("VERSION_NOT_FOUND", detail)
            return versions.activate(self._registry, found.model, found.previous)

    def list_models(self, user_id: str, *, page_size: int = 50) -> Iterator[Model]:
        """A user's models by name; pages are fetched while the iterator is used.

        A model appears here when its first version is reserved; before that, see its request.
        """
        yield from self._pages(self._registry.models_of(user_id, page_size=page_size))

    def list_requests(self, user_id: str, *, page_size: int = 50) -> Iterator[Request]:
        """A user's requests, newest first; pages are fetched while the iterator is used.

        A request of the last second may be missing (the index is eventually consistent).
        """
        yield from self._pages(self._registry.requests_of(user_id, page_size=page_size))

    def execution_arn(self, request: Request) -> str:
        """ARN of the execution that works on a request, or would, before it is started."""
        if request.owner is not None:
            return request.owner
        name = keys.execution_name(request.request_id, request.attempt)
        return self.deployment.execution_arn(name)

    def _works_alone(self, request: Request) -> bool:
        return request.owner is None or self.deployment.works_alone(request.owner)

    def _ask(self, question: dict[str, object]) -> dict[str, Any]:
        return registration.ask(self.clients.functions, self.deployment.register_function, question)

    def _known(self, request_id: str) -> Request | None:
        try:
            return self.request(request_id)
        except LimnerError as error:
            if error.code == "REQUEST_NOT_FOUND":
                return None
            raise

    def _check_room(self, user_id: str) -> None:
        with translated():
            count = self._registry.count_open(user_id)
        if count >= MAX_OPEN_REQUESTS:
            raise LimnerError("TOO_MANY_REQUESTS", f"{count} requests of {user_id} are open.")

    def _upload(self, request: Request, photos: Sequence[Photo], config: TrainingConfig) -> None:
        """Uploads photos and config: a QUEUED request has all that it needs."""
        s3, bucket = self.clients.s3, self.deployment.bucket
        prefix = keys.uploads_prefix(request.user_id, request.request_id)
        try:
            with translated():
                uploads.upload(s3, bucket, prefix, photos)
                uploads.put_config(s3, bucket, request.request_id, config)
        except OSError as error:  # a file went away after it was checked
            detail = f"{error.filename}: {error.strerror}."
            raise LimnerError("INVALID_INPUT", detail) from error

    def _tidy(self, request: Request, photos: Sequence[Photo], config: TrainingConfig) -> None:
        """Undoes what a call with the same token and other input did before it broke off."""
        s3, bucket = self.clients.s3, self.deployment.bucket
        prefix = keys.uploads_prefix(request.user_id, request.request_id)
        with translated():
            uploads.remove_strays(s3, bucket, prefix, photos)
            uploads.put_config(s3, bucket, request.request_id, config)

    def _hand_over(self, request: Request, queue: bool) -> Request:
        """Starts the execution, or leaves that to the queue. In the queue it stays there."""
        if not queue and request.queue is None:
            self._start(request)
            return request
        with translated():
            return request if request.queue else self._registry.enqueue(request)

    def _start(self, request: Request) -> None:
        wish = OnboardingInput(
            request_id=request.request_id,
            user_id=request.user_id,
            model_id=request.model_id,
            attempt=request.attempt,
            retrain=request.retrain,
        )
        with translated():
            try:
                self.clients.stepfunctions.start_execution(
                    stateMachineArn=self.deployment.onboard_machine_arn,
                    name=keys.execution_name(request.request_id, request.attempt),
                    input=wish.model_dump_json(),
                )
            except ClientError as error:
                # The name is taken: this request's execution was started before and has ended.
                if code_of(error) != "ExecutionAlreadyExists":
                    raise

    def _polls(self, request_id: str, timeout_s: float, poll_s: float) -> Iterator[Request]:
        return polling.poll_request(
            lambda: self.request(request_id),
            self._ended_without,
            timeout_s=timeout_s,
            poll_s=poll_s,
            clock=self._clock,
        )

    def _ended_without(self, request: Request) -> LimnerError | None:
        """What to say if the execution of a request that is under way has ended.

        Of a batch nothing is said: when it ends, what is left of it is put back into the queue.
        """
        if not _has_been_started(request) or not self._works_alone(request):
            return None
        arn = self.execution_arn(request)
        with translated():
            try:
                execution = self.clients.stepfunctions.describe_execution(executionArn=arn)
            except ClientError as error:
                if code_of(error) == "ExecutionDoesNotExist":
                    return None  # not started yet
                raise
        match execution["status"]:
            case "RUNNING" | "PENDING_REDRIVE":
                return None
            case "ABORTED":
                return LimnerError("EXECUTION_STOPPED", f"The execution {arn} was stopped.")
            case "TIMED_OUT":
                return LimnerError("DEADLINE_EXCEEDED", f"The execution {arn} timed out.")
            case "FAILED":
                code = execution.get("error", "")
                if code in REGISTRY:
                    return LimnerError(code, execution.get("cause", ""))
                return LimnerError("TRAINING_FAILED", f"The execution {arn} failed: {code}.")
        detail = f"The execution {arn} succeeded, but its request is {request.status}."
        return LimnerError("INTERNAL", detail)

    def _progress(self, request: Request) -> Progress:
        alone = self._works_alone(request)
        states: tuple[StateVisit, ...] = ()
        with translated():
            if alone and _has_been_started(request):
                arn = self.execution_arn(request)
                states = progress.read_visits(self.clients.stepfunctions, arn)
            job = progress.read_job(self.clients.sagemaker, request, alone=alone)
        return Progress(request, states, job)

    def _servable(self, user_id: str, model_id: str, version: int | None) -> int:
        """The version that shall draw, checked to be able to."""
        with translated():
            if version is not None:
                versions.check_servable(self._registry, user_id, model_id, version)
                return version
            model = self._registry.model(user_id, model_id)
        if model is not None and model.live_version is not None:
            return model.live_version
        if model is None and next(iter(self.list_requests(user_id, page_size=1)), None) is None:
            raise _no_model(user_id, model_id)
        detail = f"{user_id}'s model {model_id} has no version that can serve yet."
        raise LimnerError("MODEL_NOT_READY", detail)

    @staticmethod
    def _pages(rows: Iterator[_Row]) -> Iterator[_Row]:
        with translated():
            yield from rows


def _has_been_started(request: Request) -> bool:
    """Whether an execution may exist: photos have come, and the queue has let go of it."""
    waits = request.status is RequestStatus.REGISTERED or request.queue is not None
    return request.owner is not None or not waits


def _no_model(user_id: str, model_id: str) -> LimnerError:
    return LimnerError("MODEL_NOT_FOUND", f"{user_id} has no model {model_id}.")


def _stopped(detail: str) -> RequestFailure:
    spec = REGISTRY["EXECUTION_STOPPED"]
    return RequestFailure(
        code=spec.code,
        message=detail,
        retryable=spec.retryable,
        fault=spec.fault,
        fix=spec.fix,
    )
