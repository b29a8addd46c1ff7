"""The MONAI Label app: `monailabel start_server --app apps/radiology` loads the one class that stands here."""

from labelrounds.app import LabelRoundsApp

__all__ = ["LabelRoundsApp"]
