"""The index as text, of which only what has changed is written anew.

At 10,000 images the text has five megabytes: to join them costs two milliseconds, to make them forty times as much.
"""

from labelrounds import host  # makes the next import possible

# isort: split
from monailabel.datastore.local import ImageLabelModel, LocalDatastoreModel
from pydantic_core import to_json

__all__ = ["IndexText", "host"]


class IndexText:
    """Makes the text of an index; what it was given is kept, and must never be changed in place.

    Its caller sees to it that one thread at a time is in it.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[ImageLabelModel, bytes]] = {}

    def of(self, model: LocalDatastoreModel) -> bytes:
        """Return an index as JSON, an image a line, as the host reads it."""
        known, objects = self._known, model.objects
        for name, found in objects.items():
            if name not in known or known[name][0] is not found:
                known[name] = found, to_json(name) + b":" + to_json(found, fallback=str)
        if len(known) > len(objects):
            self._known = known = {name: known[name] for name in objects}
        head = to_json(model.model_dump(exclude={"base_path", "objects"}), fallback=str)
        lines = b",\n".join([known[name][1] for name in objects])
        return b"".join((head.removesuffix(b"}"), b',\n"objects":{\n', lines, b"\n}}\n"))
