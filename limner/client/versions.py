"""The versions of a model: which there are, which one serves, and where a roll-back leads."""

from __future__ import annotations

from dataclasses import dataclass

from limner.contracts.errors import LimnerError
from limner.contracts.statuses import VersionStatus
from limner.registry import Model, Registry, Version


@dataclass(frozen=True, slots=True)
class ModelVersions:
    """All versions of a model.

    Attributes:
        model: The model; its ``live_version`` serves.
        versions: Newest first; those alone that are READY can serve.
    """

    model: Model
    versions: tuple[Version, ...]

    @property
    def previous(self) -> int | None:
        """Where a roll-back leads: of the older versions, the one that went live last.

        Not simply the next lower number: after 1, 2, 3, a roll-back to 1, and 4, that is 1. Always
        a lower one, so that a roll-back that is repeated never comes back to what it left.
        """
        live = self.model.live_version or 0
        older = [v for v in self.versions if v.status is VersionStatus.READY and v.version < live]
        found = max(older, key=lambda v: (v.updated_at, v.version), default=None)
        return None if found is None else found.version


def read(registry: Registry, user_id: str, model_id: str) -> ModelVersions:
    """The versions of a model as they stand.

    Raises:
        LimnerError: ``MODEL_NOT_FOUND``.
    """
    model = registry.model(user_id, model_id)
    if model is None:
        raise LimnerError("MODEL_NOT_FOUND", f"{user_id} has no model {model_id}.")
    return ModelVersions(model, tuple(registry.versions_of(user_id, model_id)))


def check_servable(registry: Registry, user_id: str, model_id: str, version: int) -> None:
    """Checks that a version exists and can serve.

    Raises:
        LimnerError: ``VERSION_NOT_FOUND`` or ``MODEL_NOT_READY``.
    """
    row = registry.version(user_id, model_id, version)
    if row is None:
        detail = f"{user_id}'s model {model_id} has no version {version}."
        raise LimnerError("VERSION_NOT_FOUND", detail)
    if row.status is not VersionStatus.READY:
        detail = f"Version {version} of {user_id}'s model {model_id} is {row.status}."
        raise LimnerError("MODEL_NOT_READY", detail)


def activate(registry: Registry, model: Model, version: int) -> Model:
    """Lets a version serve, unless another one went live since the model was read.

    Args:
        registry: The tables.
        model: The model as it was read.
        version: The version.

    Returns:
        The model as it stands then.

    Raises:
        LimnerError: ``VERSION_NOT_FOUND``, ``MODEL_NOT_READY`` or ``MODEL_CHANGED``.
    """
    user_id, model_id = model.user_id, model.model_id
    check_servable(registry, user_id, model_id, version)
    if model.live_version == version:
        return model
    written = registry.activate(model, version)
    now = registry.model(user_id, model_id)
    # Our own write, though its reply was lost; or somebody's who wanted the same.
    if now is not None and (written or now.live_version == version):
        return now
    check_servable(registry, user_id, model_id, version)
    live = "nothing" if now is None else f"version {now.live_version}"
    raise LimnerError("MODEL_CHANGED", f"{user_id}'s model {model_id} changed: {live} serves now.")
