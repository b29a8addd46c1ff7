"""Names that come from a client and become part of a path."""

import re

from labelrounds.errors import BadInput

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ ()+,=@-]{0,199}")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def is_safe_id(name: object) -> bool:
    """Tell whether a name may be an image's id: it stays inside its folder on every file system."""
    return isinstance(name, str) and _ID.fullmatch(name) is not None and ".." not in name and name[-1] not in " ."


def check_id(name: object) -> str:
    """Return the name if it may be an image's id.

    Raises:
        BadInput: it has separators, "..", other characters, or more than 200 of them.
    """
    if not is_safe_id(name):
        raise BadInput(
            f"image id {str(name)[:200]!r}: allowed are 1 to 200 letters, digits and '._ ()+,=@-', "
            "the first a letter, digit or '_', without '..' and without a space or dot at the end"
        )
    return str(name)


def is_safe_tag(name: object) -> bool:
    """Tell whether a name may be a label's tag."""
    return isinstance(name, str) and _TAG.fullmatch(name) is not None and ".." not in name and name[-1] != "."


def check_tag(name: object) -> str:
    """Return the plain name of a label's tag, given as text or as the host's enumeration.

    Raises:
        BadInput: it has separators, "..", other characters, or more than 64 of them.
    """
    plain = getattr(name, "value", name)
    if not is_safe_tag(plain):
        raise BadInput(
            f"label tag {str(plain)[:200]!r}: allowed are 1 to 64 letters, digits and '._-', "
            "the first a letter, digit or '_', without '..'"
        )
    return str(plain)


def check_user(name: str) -> str:
    """Return the name if it may be a user's.

    Raises:
        BadInput: other characters, or more than 64 of them.
    """
    if _USER.fullmatch(name) is None:
        raise BadInput(
            f"user name {name[:200]!r}: allowed are 1 to 64 letters, digits and '._@-', the first a letter or digit"
        )
    return name
