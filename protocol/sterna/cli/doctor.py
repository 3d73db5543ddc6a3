"""`sterna doctor`: what this machine can do for a migration, and how to make it do more."""

from __future__ import annotations

import platform

from sterna.cli.units import Json


def doctor(*, json: Json = False) -> None:
    """Tell what this machine can do, with a reason and a remedy for what it cannot.

    Nothing is changed. Whatever is missing, some guest still works: this only tells which.
    """
    from sterna.cli.output import Output
    from sterna.cli.version import versions
    from sterna.linux.capabilities import probe

    output = Output(json=json)
    found = probe()
    rows = [
        (one.name, "yes" if one.available else "no", one.detail if one.available else one.reason)
        for one in found
    ]
    output.table(
        ("capability", "", "what was found"), rows, title=f"{platform.system()} {platform.release()}"
    )
    missing = [one for one in found if not one.available and one.remedy]
    if missing and not json:
        output.say("To get what is missing:")
        for one in missing:
            output.say(f"  {one.name}: {one.remedy}")
    output.result(
        {
            **versions(),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "capabilities": [
                {
                    "name": one.name,
                    "available": one.available,
                    "detail": one.detail,
                    "reason": one.reason,
                    "remedy": one.remedy,
                }
                for one in found
            ],
        }
    )
