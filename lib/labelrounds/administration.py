"""The commands of whoever administers a server: who may come in, who has done what, files that name nobody.

Registered by ``cli.py``, and like its other commands they import heavy modules only when they run.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

users = typer.Typer(no_args_is_help=True, help="Say who may come in, each with a key; also beside a running server.")


@users.command("add")
def add_user(
    name: Annotated[str, typer.Argument(help="Letters, digits and ._@-")],
    role: Annotated[str, typer.Option(help="user, annotator, reviewer or admin; each may do what those before may.")],
) -> None:
    """Add a user and print the key, once: it is kept nowhere. In Slicer it is the password."""
    from labelrounds import folders
    from labelrounds.audit import record_command
    from labelrounds.users import UserFile

    folders.make_home()
    key = UserFile().add(name, role)
    record_command("users add", name=name, role=role)
    print(key)
    print(f"This is the key of {name}. Keep it: it can't be shown again.", file=sys.stderr)


@users.command("list")
def list_users() -> None:
    """List the users, their roles and the days of their keys."""
    from labelrounds.users import UserFile

    for name, account in UserFile().accounts().items():
        print(f"{name}\t{account.role}\t{account.created}")


@users.command("remove")
def remove_user(name: Annotated[str, typer.Argument(help="See `labelrounds users list`.")]) -> None:
    """Remove a user, whose key lets nobody in from now on."""
    from labelrounds.audit import record_command
    from labelrounds.users import UserFile

    UserFile().remove(name)
    record_command("users remove", name=name)
    print(f"{name} can't come in any more.")


def audit(
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no line was altered, moved or taken out; status 1 otherwise.")
    ] = False,
    last: Annotated[int, typer.Option(min=1, help="How many of the newest lines are listed.")] = 50,
    user: Annotated[str, typer.Option(help="List only what this user has done.")] = "",
    image: Annotated[str, typer.Option(help="List only what was done with this image, or label of it.")] = "",
) -> None:
    """List who saw, changed or trained what, by the audit log in LABELROUNDS_HOME, or check that it is whole."""
    from labelrounds.audit import listing, verification

    if not verify:
        print("\n".join(listing(last, user, image)))
        return
    told, is_whole = verification()
    print(told)
    sys.exit(0 if is_whole else 1)


def deidentify_files(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A file, or a folder with all that is in it.")],
    output: Annotated[Path, typer.Argument(help="A folder for the new files; nothing in it is replaced.")],
    secret: Annotated[
        Path | None,
        typer.Option(help="A file with the key of the pseudonyms, made if need be; one run's own when left out."),
    ] = None,
    dates: Annotated[str, typer.Option(help="`remove`, or `shift` by each patient's own number of days.")] = "remove",
    report: Annotated[
        Path | None, typer.Option(help="The CSV file of what was done; OUTPUT-report.csv when left out.")
    ] = None,
    with_burned_in: Annotated[
        bool, typer.Option("--with-burned-in", help="Write images, too, that say that text stands in their pixels.")
    ] = False,
) -> None:
    """Write copies of DICOM, NIfTI and NRRD files that do not say whose they are; faces and pixels stay as they are."""
    from labelrounds.privacy.command import deidentify

    sys.exit(deidentify(source, output, report, secret, dates, with_burned_in))
