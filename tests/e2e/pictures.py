"""Make the README's pictures of the viewer and of the Slicer extension from the running programs: `make pictures`."""

import io
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from label_server import MODEL, LabelServer
from PIL import Image
from slicer_process import OwnExtensionProcess
from viewer_user import Viewer, ViewerUser, open_browser

from labelrounds import phantoms

FOLDER = Path(__file__).parents[2] / ".github"
SIZE = {"width": 1280, "height": 760}


def viewer_picture(folder: Path) -> None:
    """Show a case that was handed out, segmented, and is being corrected."""
    phantoms.write_studies(folder / "studies", 6)
    os.environ["LABELROUNDS_HOME"] = str(folder / "home")
    (folder / "configs").mkdir()
    server = LabelServer(folder / "studies", folder / "home", folder / "configs", MODEL)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.wait()
        viewer = Viewer(server.url, folder / "viewer.log")
        stack.callback(viewer.close)
        with open_browser() as browser:
            user = ViewerUser(browser.new_page(viewport=SIZE), viewer)
            user.next_case()
            user.segment()
            user.choose("spleen")
            user.tool("brush")
            user.dab()
            user.page.mouse.move(150, SIZE["height"] - 20)
            user.page.wait_for_timeout(3000)  # the views come sharp a moment after they have come to rest
            save(user.page.screenshot(), FOLDER / "viewer.png")


def panel_picture(folder: Path) -> None:
    """Show toolbar and panel of the Slicer extension in the middle of a round."""
    os.environ["LABELROUNDS_HOME"] = str(folder / "home")
    phantoms.write_studies(folder / "studies", 6)
    (folder / "configs").mkdir()
    (folder / "slicer").mkdir()
    server = LabelServer(folder / "studies", folder / "home", folder / "configs", MODEL)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.wait()
        slicer = OwnExtensionProcess(folder / "slicer", server.url, model=MODEL)
        stack.callback(slicer.close)
        slicer.click("connectButton")
        slicer.tool("next")
        slicer.tool("segment")
        slicer.unfold("queueSection")
        slicer.picture(folder / "panel.png", 700, 900)
        save((folder / "panel.png").read_bytes(), FOLDER / "panel.png")


def save(screenshot: bytes, path: Path) -> None:
    """Write a screenshot in 256 colours, which is half of its size."""
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    picture.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    for picture in (panel_picture, viewer_picture):
        with tempfile.TemporaryDirectory() as folder:
            picture(Path(folder))
