"""The settings of a server that are LabelRounds' own, each also an environment variable ``LABELROUNDS_`` and its name.

The host's stand in ``monailabel.config.settings``. Read once, when the server's process first asks; child processes get
them by the environment. What a command line names is written to the environment before.
"""

from functools import cache
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServerSettings(BaseSettings):
    """What an administrator may set; the README's part for IT describes each."""

    model_config = SettingsConfigDict(env_prefix="LABELROUNDS_", frozen=True, extra="ignore")

    # Seconds that the DICOMweb server may stay silent before a request to it is given up.
    pacs_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    # Seconds after which it is asked again which series it has.
    pacs_list_s: Annotated[float, Field(ge=0)] = 60.0
    # The largest series, and the largest answer to a viewer, that is taken from it, in gigabytes.
    pacs_max_gb: Annotated[float, Field(gt=0)] = 4.0
    # A file of certificate authorities (PEM) that its TLS certificate is checked against; empty takes the usual ones.
    pacs_ca: str = ""


@cache
def server_settings() -> ServerSettings:
    """Return the settings of this process.

    Raises:
        BadInput: a value that is not allowed; named with its variable.
    """
    return ServerSettings()
