"""What the laptop takes from its surroundings, and the environments of the processes it starts.

The only module of ``limner.local`` that reads the process environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from limner.local.layout import Layout

HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 4566
REGION: Final = "us-east-1"
ACCOUNT: Final = "000000000000"
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
}

# What a program needs to find its interpreter, its home and its certificates; nothing else of the
# user's environment reaches a container, and none of his AWS settings reaches anything.
_PLAIN: Final = frozenset(
    {"HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "SSL_CERT_FILE", "TZ", "USER"}
)


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """How one daemon runs.

    Attributes:
        layout: Where its files are.
        port: TCP port on the loopback interface.
        clock_scale: Seconds that a second of Wait and of Retry takes.
        jobs_at_once: Training jobs that run side by side, whatever their InstanceCount; further
            ones stay in Starting.
        instance_quota: Training instances in use at once before CreateTrainingJob answers
            ResourceLimitExceeded.
    """

    layout: Layout
    port: int
    clock_scale: float = 1.0
    jobs_at_once: int = 2
    instance_quota: int = 20

    @property
    def endpoint_url(self) -> str:
        """What AWS_ENDPOINT_URL must be."""
        return f"http://{HOST}:{self.port}"

    def threads(self, instances: int) -> int:
        """Threads that each process of a job may use, so that all share the cores.

        Args:
            instances: InstanceCount of the job.
        """
        return max(1, (os.cpu_count() or 1) // (self.jobs_at_once * instances))


def plain_environment() -> dict[str, str]:
    """The harmless part of this process's environment."""
    return {name: value for name, value in os.environ.items() if name in _PLAIN}


def aws_environment(settings: DaemonSettings) -> dict[str, str]:
    """Environment with which boto3 finds this laptop, and only this laptop.

    A container on AWS gets the credentials of its role from the platform; here they are settings.
    """
    return {
        **plain_environment(),
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": settings.endpoint_url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(settings.layout.scratch),
    }


def daemon_environment(settings: DaemonSettings) -> dict[str, str]:
    """Environment of the daemon; ministack 1.5.33 reads all its settings from it."""
    return {
        **aws_environment(settings),
        # The default is every interface.
        "BIND_HOST": HOST,
        "GATEWAY_PORT": str(settings.port),
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "MINISTACK_REGION": REGION,
        "PERSIST_STATE": "1",
        "STATE_DIR": str(settings.layout.state),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(settings.layout.objects),
        "SFN_WAIT_SCALE": str(settings.clock_scale),
        "LOG_LEVEL": "WARNING",
        # Listeners of services that Limner does not use; they would bind ports of their own.
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
    }
