"""The settings of a server that are LabelRounds' own, each also an environment variable ``LABELROUNDS_`` and its name.

The host's stand in ``monailabel.config.settings``. Read once, when the server's process first asks; child processes get
them by the environment. What a command line names is written to the environment before.
"""

from functools import cache
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from labelrounds.errors import BadInput


class ServerSettings(BaseSettings):
    """What an administrator may set; the README's part for IT describes each."""

    model_config = SettingsConfigDict(env_prefix="LABELROUNDS_", frozen=True, extra="ignore")

    log_format: Literal["text", "json"] = Field(default="text", description="How a line of the log is written.")
    stop_s: float = Field(default=60.0, ge=0, le=3600, description="Seconds that requests have when the server ends.")
    audit_required: bool = Field(
        default=False, description="Refuse requests (507) while the audit log can't be written, instead of a warning."
    )
    metrics_token: SecretStr | None = Field(
        default=None, min_length=16, description="Bearer token for /metrics; without one only this machine reads them."
    )
    least_free_mb: int = Field(default=500, ge=0, description="Free space on a disk below which readiness warns.")


@cache
def server_settings() -> ServerSettings:
    """Return the settings of this process.

    Raises:
        BadInput: a value that is not allowed; named with its variable.
    """
    try:
        return ServerSettings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(["LABELROUNDS", *map(str, first["loc"])]).upper()
        raise BadInput(f"{name}: {first['msg'].lower()}") from None
