"""The calls that the module makes to a LabelRounds server; no Slicer and no Qt, so that any thread may make them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from . import failures
from .failures import Failed
from .http import Answer, Call, Form, request
from .wording import RUNNING


@dataclass
class Prediction:
    """What a model says of an image.

    Attributes:
        file: the label map; None of a model that classifies.
        names: voxel value by label, in the server's order.
        classes: probability by class, the likeliest first; of a model that classifies.
        version: of the model.
        model: that was asked.
    """

    file: Path | None
    names: dict[str, int]
    classes: dict[str, float] = field(default_factory=dict)
    version: int | None = None
    model: str = ""


@dataclass
class Case:
    """A case that was handed out or is opened again.

    Attributes:
        image: its id on the server.
        file: where the image lies here.
        told: what the server says of it: ``reason``, ``score``, ``rank``, ``queue``, ``strategy``, ``lease_s``; of one
            that is opened again its label's ``sha256``.
        label: the submitted label map; of a case opened again or sent back.
        names: the label map's voxel value by label; empty where nobody has named them.
    """

    image: str
    file: Path
    told: dict[str, Any] = field(default_factory=dict)
    label: Path | None = None
    names: dict[str, int] = field(default_factory=dict)


class Client:
    """A server, and who asks it.

    Args:
        address: the server's, as ``http://localhost:8000``.
        client_id: by which the server knows whose case it is.
        token: shows who has logged in.
    """

    def __init__(self, address: str, client_id: str = "slicer", token: str = "") -> None:
        self.address = address.strip().rstrip("/")
        self.client_id, self.token = client_id, token

    def info(self, call: Call | None = None) -> dict[str, Any]:
        """Return the server's models, strategies and version."""
        info = self._json("GET", "/info/", timeout_s=30, call=call)
        if not isinstance(info, dict) or "models" not in info:
            raise failures.not_ours(self.address)
        return info

    def log_in(self, name: str, key: str, call: Call | None = None) -> None:
        """Log in, for as long as this object lives; the key is kept nowhere."""
        form = {"username": name, "password": key, "grant_type": "password"}
        self.token = ""
        answer = self._json("POST", "/auth/token", body=_FormText(form), timeout_s=60, call=call)
        self.token = answer["access_token"]

    def next_case(self, strategy: str, model: str, folder: Path, call: Call | None = None) -> Case | str:
        """Fetch the case that is most worth labelling; where there is none, return why.

        Of a case that a reviewer has sent back the label comes with it.
        """
        asked = {"client_id": self.client_id, **({"model": model} if model else {})}
        answer = self._request("POST", f"/activelearning/{quote(strategy, '')}", body=asked, call=call)
        told = answer.json()
        if not told:
            return answer.headers.get("X-LabelRounds-Message", "")
        image = str(told["id"])
        if told.get("review") and self._has_label(image, call):
            return replace(self.reopen(image, folder, call), told=told)
        return Case(image, self._image(image, folder, call), told)

    def images(self, call: Call | None = None) -> dict[str, bool]:
        """Return the ids of all images, and whether each has a submitted label map."""
        objects = self._json("GET", "/datastore/", {"output": "all"}, call=call)["objects"]
        return {image: "final" in objects[image]["labels"] for image in sorted(objects)}

    def labelled(self, call: Call | None = None) -> list[str]:
        """Return the ids of the images that have a submitted label map."""
        return [image for image, is_labelled in self.images(call).items() if is_labelled]

    def open(self, image: str, folder: Path, call: Call | None = None) -> Case:
        """Fetch an image, and the label that was submitted for it if there is one; it is in nobody's hands by that."""
        if self.images(call).get(image):
            return self.reopen(image, folder, call)
        return Case(image, self._image(image, folder, call))

    def reopen(self, image: str, folder: Path, call: Call | None = None) -> Case:
        """Fetch an image and the label that was submitted for it."""
        own = folder / "label"  # its file may be called as the image's is
        own.mkdir()
        label, info = self._label(image, own, call)
        sent = [entry["name"] for entry in info.get("label_info") or []]
        names = info.get("labels") or {name: value for value, name in enumerate(sent, 1)}
        told = {"sha256": info.get("sha256", "")}
        return Case(image, self._image(image, folder, call), told, label, names)

    def predict(
        self,
        model: str,
        folder: Path,
        image: str = "",
        file: Path | None = None,
        classify: bool = False,
        call: Call | None = None,
    ) -> Prediction:
        """Segment or classify an image of the server's, or a file, which is sent under a name that says nothing."""
        options = {"client_id": self.client_id, **({} if classify else {"result_extension": ".nrrd"})}
        answer = self._infer(model, "json" if classify else "all", options, image, file, call)
        if classify:
            told = answer.json()
            classes = {entry["label"]: entry["score"] for entry in told["prediction"]}
            return Prediction(None, {}, classes, told.get("version"), model)
        parts = answer.parts()
        told, path = json.loads(parts["params"]), folder / "prediction.nrrd"
        path.write_bytes(parts["image"])
        return Prediction(path, told["label_names"], {}, told.get("version"), model)

    def overlay(
        self,
        model: str,
        folder: Path,
        options: Mapping[str, Any],
        image: str = "",
        file: Path | None = None,
        call: Call | None = None,
    ) -> Path:
        """Fetch a map over an image: ``uncertainty``, or ``explain``, what a class was found by; else as `predict`."""
        sent = {"client_id": self.client_id, "result_extension": ".nrrd", **options}
        answer = self._infer(model, "image", sent, image, file, call)
        path = folder / "map.nrrd"
        path.write_bytes(answer.body)
        return path

    def add_image(self, image: str, file: Path, call: Call | None = None) -> str:
        """Upload an image under a name; return the id that the server gave it."""
        form = Form({}, {"file": (file, image + "".join(file.suffixes))})
        return str(self._json("PUT", "/datastore/image", {"image": image}, form, call=call)["image"])

    def submit(self, image: str, label: Path, names: Sequence[str], call: Call | None = None) -> dict[str, Any]:
        """Submit a label map whose values 1, 2, ... are the names in their order."""
        segments = [{"name": name, "idx": value} for value, name in enumerate(names, 1)]
        return self._submit(image, label, {"label_info": segments}, call)

    def submit_class(self, image: str, name: str, folder: Path, call: Call | None = None) -> dict[str, Any]:
        """Submit what an image is, as a whole."""
        label = folder / "class.json"
        label.write_text(json.dumps({"label": name}), encoding="utf-8")
        return self._submit(image, label, {}, call)

    def train(self, model: str, call: Call | None = None) -> dict[str, Any]:
        """Start a training, or have it wait for the one that runs."""
        return self._json("POST", f"/train/{quote(model, '')}", {"enqueue": "true"}, {}, call=call)

    def training(self, call: Call | None = None) -> dict[str, Any] | None:
        """Return the latest training, with ``progress``; None if there was none."""
        try:
            return self._json("GET", "/train/", timeout_s=30, call=call)
        except Failed as failed:
            if failed.status == 404:
                return None
            raise

    def stop_training(self, call: Call | None = None) -> None:
        """End the training that runs with the best so far."""
        self._request("DELETE", "/train/", call=call)

    def keep(self, image: str, call: Call | None = None) -> float:
        """Keep a case in hand; return for how many seconds."""
        body = {"image": image, "client_id": self.client_id}
        return float(self._json("POST", "/rounds/lease", body=body, timeout_s=30, call=call)["lease_s"])

    def put_aside(self, image: str, reason: str, hours: float | None = None, call: Call | None = None) -> None:
        """Skip a case for good, or defer it for some hours."""
        body: dict[str, Any] = {"image": image, "reason": reason, "client_id": self.client_id}
        body |= {"kind": "skip"} if hours is None else {"kind": "defer", "hours": hours}
        self._request("POST", "/rounds/aside", body=body, call=call)

    def versions(self, model: str, call: Call | None = None) -> dict[str, Any]:
        """Return a model's versions, and which of them is served."""
        return self._json("GET", f"/model/{quote(model, '')}/versions", call=call)

    def roll_back(self, model: str, number: int, call: Call | None = None) -> dict[str, Any]:
        """Have a version served from now on."""
        return self._json("POST", f"/model/{quote(model, '')}/rollback", body={"to": number}, call=call)

    def role(self, call: Call | None = None) -> str:
        """Return what this user may do: ``user``, ``annotator``, ``reviewer`` or ``admin``, each more than the last."""
        return str(self._json("GET", "/auth/token/valid", timeout_s=30, call=call).get("role", ""))

    def rounds(self, strategy: str, model: str, count: int, call: Call | None = None) -> dict[str, Any]:
        """Return how the rounds stand: the next cases with pictures, who has labelled what, suspects, the curve."""
        query = {"strategy": strategy, "count": count, "thumbnails": "true", **({"model": model} if model else {})}
        return self._json("GET", "/rounds/", query, call=call)

    def review(self, image: str, verdict: str, reason: str, sha256: str = "", call: Call | None = None) -> None:
        """Note a reviewer's word on a label: ``approved`` or ``sent_back``, which needs a reason.

        With the SHA-256 of the label that was looked at, a newer one is not approved by mistake.
        """
        body = {"image": image, "verdict": verdict, "reason": reason, "client_id": self.client_id}
        body |= {"sha256": sha256} if sha256 else {}
        self._request("POST", "/rounds/review", body=body, call=call)

    def _infer(
        self, model: str, output: str, options: Mapping[str, Any], image: str, file: Path | None, call: Call | None
    ) -> Answer:
        files = {} if file is None else {"file": (file, "image" + "".join(file.suffixes))}
        query = {"output": output, **({"image": image} if image else {})}
        form = Form({"params": json.dumps(options)}, files)
        return self._request("POST", f"/infer/{quote(model, '')}", query, form, call=call)

    def _image(self, image: str, folder: Path, call: Call | None) -> Path:
        return self._fetched("/datastore/image", {"image": image}, folder, call)

    def _fetched(self, route: str, which: Mapping[str, str], folder: Path, call: Call | None) -> Path:
        """Fetch a file, and keep it under the server's name, by whose ending Slicer knows how to read it."""
        answer = self._request("GET", route, which, call=call)
        told = answer.headers.get("Content-Disposition", "").partition('filename="')[2].partition('"')[0]
        file = folder / (Path(told).name or "image.nii.gz")
        file.write_bytes(answer.body)
        return file

    def _label(self, image: str, folder: Path, call: Call | None) -> tuple[Path, dict[str, Any]]:
        """Fetch an image's label and what is known of it, both of one version.

        Raises:
            Failed: another version came in between, twice.
        """
        which, last = {"label": image, "tag": "final"}, ""
        for _time in range(2):
            info = self._json("GET", "/datastore/label/info", which, call=call)
            file, noted = self._fetched("/datastore/label", which, folder, call), info.get("sha256", "")
            # A file that was edited in the server's folder is still noted as it was.
            if noted in ("", last, hashlib.sha256(file.read_bytes()).hexdigest()):
                return file, info
            file.unlink()
            last = noted
        raise failures.replaced(image)

    def _has_label(self, image: str, call: Call | None) -> bool:
        """Tell whether an image has a label map; of a class alone there is none to open."""
        try:
            self._request("GET", "/datastore/label/info", {"label": image, "tag": "final"}, call=call)
        except Failed as failed:
            if failed.status == 404:
                return False
            raise
        return True

    def _submit(self, image: str, label: Path, told: dict[str, Any], call: Call | None) -> dict[str, Any]:
        form = Form({"params": json.dumps({**told, "client_id": self.client_id})}, {"label": (label, label.name)})
        return self._json("PUT", "/datastore/label", {"image": image}, form, call=call)

    def _json(
        self, method: str, route: str, query: Mapping[str, Any] | None = None, body: Any = None, **more: Any
    ) -> Any:
        answer = self._request(method, route, query, body, **more)
        try:
            return answer.json()
        except ValueError:
            raise failures.not_ours(self.address) from None

    def _request(self, method: str, route: str, query: Any = None, body: Any = None, **more: Any) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return request(self.address, method, route, query, body, headers, **more)


class _FormText(Form):
    """A form of texts alone, encoded as the login wants it."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._parts = [urlencode(fields).encode()]
        self.content_type, self.size = "application/x-www-form-urlencoded", len(self._parts[0])


def is_running(training: Mapping[str, Any] | None) -> bool:
    """Tell whether a training still runs or waits."""
    return bool(training) and training.get("status") in RUNNING
