"""The CDK app: ``python -m infra.app`` synthesizes into cdk.out, or where CDK_OUTDIR says.

The stage comes from ``LIMNER_STAGE``; see ``infra.settings``. No CLI, credentials or network are
needed for it; to deploy, run ``cdk deploy --app "python -m infra.app"``.
"""

from __future__ import annotations

from pathlib import Path

from aws_cdk import App

from infra.settings import StageSettings
from infra.stack import LimnerStack


def build(settings: StageSettings, outdir: Path | None = None) -> tuple[App, LimnerStack]:
    """The app with the stack of one stage.

    Args:
        settings: The stage.
        outdir: Where ``synth`` writes; CDK's own choice if absent.
    """
    app = App(analytics_reporting=False, outdir=str(outdir) if outdir else None)
    return app, LimnerStack(app, settings)


def main() -> None:
    """Synthesizes the stage that the environment names."""
    app, _ = build(StageSettings())
    app.synth()


if __name__ == "__main__":
    main()
