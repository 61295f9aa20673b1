"""`keystep bridge` and `keystep simulate`."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import typer

from keystep_hololens.bridge_command import bridge
from keystep_hololens.simulate_command import simulate


def register(app: typer.Typer) -> None:
    """Add the bridge's subcommands to the `keystep` command."""
    app.command("bridge")(bridge)
    # The headset is what `keystep simulate` is without a subcommand; the group is capture's.
    group = next(known for known in app.registered_groups if known.name == "simulate")
    assert group.typer_instance is not None
    group.typer_instance.callback()(_unless_subcommand(simulate))


def _unless_subcommand(run: Callable[..., None]) -> Callable[..., None]:
    """Give a command the same options as a group's callback that leaves subcommands alone."""
    signature = inspect.signature(run, eval_str=True)
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    def callback(context: typer.Context, **options: object) -> None:
        if context.invoked_subcommand is None:
            run(**options)

    parameters = [p.replace(kind=context.kind) for p in signature.parameters.values()]
    signature = signature.replace(parameters=[context, *parameters])
    callback.__signature__ = signature  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    callback.__doc__ = run.__doc__
    return callback
