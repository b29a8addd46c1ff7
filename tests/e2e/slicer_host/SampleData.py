"""Stand in for Slicer's SampleData module: download an image, check its checksum, load it."""

from pathlib import Path

import slicer


class SampleDataLogic:
    def downloadFromURL(self, uris, fileNames, nodeNames, checksums=None):
        path = Path(slicer.app.temporaryPath, "cache", fileNames)
        path.parent.mkdir(exist_ok=True)
        if not slicer.util.downloadFile(uris, str(path), checksums):
            raise RuntimeError(f"Failed to download {uris}")
        node = slicer.util.loadVolume(path)
        node.SetName(nodeNames)
        return [node]
