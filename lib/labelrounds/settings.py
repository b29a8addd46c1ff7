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

    readers: int = Field(default=2, ge=0, le=64, description="Files read at a time; with 0, the server reads itself.")
    reader_memory_gb: float = Field(default=8.0, gt=0, description="What reading a file may take, in gigabytes.")
    reader_seconds: float = Field(default=60.0, gt=0, description="How long it may take, besides 1 s for each 5 MB.")


@cache
def server_settings() -> ServerSettings:
    """Return the settings of this process.

    Raises:
        BadInput: a value that is not allowed; named with its variable.
    """
    return ServerSettings()
