"""Where in an image a segmentation model is unsure: a map of each voxel's entropy.

On the way of inference, in place of ``inference.predict``. The entropy ``-sum p ln p`` over the classes is given in
percent of the highest that there can be, that of classes all as likely: 0 where the model is certain, 100 where it
knows nothing. It is the uncertainty of one network in one pass: high at borders and where two labels are alike, and it
may be low where the network errs with certainty (DOI 10.48550/arXiv.1706.04599).
"""

import math

import torch

from labelrounds.config import ModelConfig
from labelrounds.inference import probability_pieces
from labelrounds.sliding import Run, Stopped


@torch.inference_mode()
def uncertainty(
    run: Run,
    image: torch.Tensor,
    config: ModelConfig,
    stopped: Stopped | None = None,
    most_at_once: int | None = None,
) -> torch.Tensor:
    """Return the map ``(X, Y, Z)`` uint8, 0 to 100, of a prepared image ``(C, X, Y, Z)``, on the image's device.

    Args and errors are those of `inference.predict`.
    """
    found = torch.zeros(image.shape[1:], dtype=torch.uint8, device=image.device)
    scale = 100 / math.log(config.outputs)
    for (x, y, z), chances in probability_pieces(run, image, config, stopped, most_at_once):
        found[x, y, z] = (torch.special.entr(chances).sum(dim=0) * scale).round().clamp(0, 100).to(torch.uint8)
    return found
