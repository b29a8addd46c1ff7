"""The real server, `labelrounds start`, on phantom studies; the tests ask it and read its files beside the client."""

import json
import os
import subprocess
import time
from pathlib import Path

import requests
from observed import Volume, read_nifti, read_nrrd
from requests_toolbelt import MultipartDecoder
from tests.forked import start

from labelrounds.client import free_port
from labelrounds.users import UserFile

MODEL = "unet_phantom"
MODEL_WITHOUT_SPLEEN = "unet_spleenless"
QUICK_MODEL = "unet_quick"


class LabelServer:
    """A running server.

    Args:
        studies: Folder of the images, which the server also writes labels to.
        home: Folder of the server's trained state, and of its log.
        configs: Folder of the user's own models.
        models: Names of the models to serve; all when left out.
    """

    def __init__(self, studies: Path, home: Path, configs: Path, *models: str):
        port = free_port()
        self.studies = studies
        self.url = f"http://127.0.0.1:{port}"
        home.mkdir(parents=True, exist_ok=True)
        self._home, self._http = home, requests.Session()
        self._log_read = 0
        self._log = home / "server.log"
        arguments = ["start", "--studies", studies, "--configs", configs, "--host", "127.0.0.1", "--port", str(port)]
        arguments += ["--models", ",".join(models)] if models else []
        with self._log.open("wb") as log:
            self._process = start(
                ["labelrounds", *arguments],
                env={**os.environ, "LABELROUNDS_HOME": str(home)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self, timeout_s: float = 180) -> None:
        """Return once the server answers `/info/`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if requests.get(f"{self.url}/info/", timeout=10).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"the server did not start (exit code {self._process.returncode}):\n{self.take_log()}")

    def demand_login(self) -> str:
        """Add an annotator, which no running server forgets again, and return the key; go on as an admin."""
        users = UserFile(self._home / "users.json")
        self._http.headers["Authorization"] = f"Bearer {users.add('the-admin', 'admin')}"
        return users.add("ann", "annotator")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def take_log(self) -> str:
        """Return what the server has logged since the last call."""
        log = self._log.read_bytes()
        new, self._log_read = log[self._log_read :], len(log)
        return new.decode(errors="replace")

    def info(self) -> dict:
        return self._get("/info/").json()

    def images(self) -> set[str]:
        return set(self._objects())

    def labelled(self) -> set[str]:
        return {name for name, entry in self._objects().items() if "final" in entry["labels"]}

    def saved_label(self, image: str) -> tuple[Volume, dict]:
        """Read the label that the server keeps for an image, and what it noted with it."""
        info = self._get("/datastore/label/info", label=image, tag="final").json()
        path = self.studies / "labels" / "final" / f"{image}.nii.gz"
        return read_nifti(path), info

    def predict(self, model: str, image: str, folder: Path) -> tuple[list[str], Volume]:
        """Ask for a prediction as the Slicer client does; return the label names in order of value, and the voxels."""
        response = self._http.post(
            f"{self.url}/infer/{model}",
            params={"image": image},
            data={"params": json.dumps({"result_extension": ".nrrd", "result_dtype": "uint8"})},
            timeout=120,
        )
        response.raise_for_status()
        parts = {_part_name(part): part for part in MultipartDecoder.from_response(response).parts}
        names = json.loads(parts["params"].text)["label_names"]
        path = folder / "prediction.nrrd"
        path.write_bytes(parts["image"].content)
        return sorted(names, key=names.get), read_nrrd(path)

    def submit(self, image: str, label: Path, names: list[str]) -> None:
        info = [{"name": name, "idx": index} for index, name in enumerate(names, 1)]
        with label.open("rb") as file:
            self._http.put(
                f"{self.url}/datastore/label",
                params={"image": image},
                data={"params": json.dumps({"label_info": info})},
                files={"label": (label.name, file)},
                timeout=60,
            ).raise_for_status()

    def stop_training(self) -> None:
        if self._http.get(f"{self.url}/train/", params={"check_if_running": True}, timeout=60).ok:
            self._delete("/train/")

    def withdraw_label(self, image: str) -> None:
        self._delete("/datastore/label", id=image, tag="final")

    def remove_image(self, image: str) -> None:
        self._delete("/datastore/image", id=image)

    def _objects(self):
        return self._get("/datastore/", output="all").json()["objects"]

    def _get(self, route, **params):
        response = self._http.get(f"{self.url}{route}", params=params, timeout=60)
        response.raise_for_status()
        return response

    def _delete(self, route, **params):
        self._http.delete(f"{self.url}{route}", params=params, timeout=60).raise_for_status()


def _part_name(part) -> str:
    return part.headers[b"Content-Disposition"].decode().split('name="')[1].split('"')[0]
