"""The settings of a server that are LabelRounds' own, each also an environment variable ``LABELROUNDS_`` and its name.

The host's stand in ``monailabel.config.settings``. Read once, when the server's process first asks; child processes get
them by the environment. What a command line names is written to the environment before.
"""

from functools import cache

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServerSettings(BaseSettings):
    """What an administrator may set; the README's part for IT describes each."""

    model_config = SettingsConfigDict(env_prefix="LABELROUNDS_", frozen=True, extra="ignore")

    refuse_identified: bool = Field(default=False, description="Refuse DICOM images that still say whose they are.")
    model_upload_gb: float = Field(default=4.0, gt=0, description="The most that uploaded weights take, in 10^9 bytes.")


@cache
def server_settings() -> ServerSettings:
    """Return the settings of this process.

    Raises:
        BadInput: a value that is not allowed; named with its variable.
    """
    return ServerSettings()
