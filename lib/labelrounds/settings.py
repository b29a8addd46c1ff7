"""The settings of a server that are LabelRounds' own, each also an environment variable ``LABELROUNDS_`` and its name.

The host's stand in ``monailabel.config.settings``. Read once, when the server's process first asks; child processes get
them by the environment. What a command line names is written to the environment before.
"""

from functools import cache
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from labelrounds.errors import BadInput
from labelrounds.users import Role

_OIDC_ROLES: dict[str, Role] = {
    "labelrounds-user": "user",
    "labelrounds-annotator": "annotator",
    "labelrounds-reviewer": "reviewer",
    "labelrounds-admin": "admin",
}
_EXAMPLES = {"hosts": '["labels.example.org"]', "oidc_roles": '{"radiology": "annotator"}'}
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServerSettings(BaseSettings):
    """What an administrator may set; the README's part for IT describes each."""

    model_config = SettingsConfigDict(env_prefix="LABELROUNDS_", frozen=True, extra="ignore")

    # Who may come in
    insecure: Annotated[bool, Field(description="Let everybody in who can reach the server, as anything.")] = False
    hosts: Annotated[
        list[str],
        Field(description="Names by which a server without a login may be called, besides localhost; as JSON."),
    ] = []
    session_hours: Annotated[Positive, Field(description="How long a login from Slicer lasts.")] = 12
    download_s: Annotated[
        float,
        Field(ge=0, description="How long Slicer may fetch the case it was just given, for which it sends no token."),
    ] = 60
    oidc_issuer: Annotated[str, Field(description="The issuer of OpenID Connect tokens, as their iss names it.")] = ""
    oidc_audience: Annotated[str, Field(description="What their aud must name.")] = ""
    oidc_jwks_url: Annotated[str, Field(description="Where the issuer publishes its keys.")] = ""
    oidc_token_url: Annotated[
        str, Field(description="Where name and password that Slicer asks for are sent to; nowhere when empty.")
    ] = ""
    oidc_client_id: Annotated[str, Field(description="As whom this server asks there.")] = ""
    oidc_client_secret: Annotated[SecretStr, Field(description="Its secret, where it has one.")] = SecretStr("")
    oidc_name_claim: Annotated[str, Field(description="The claim with the user's name.")] = "preferred_username"
    oidc_roles_claim: Annotated[str, Field(description="The claim with the roles; dots go deeper.")] = (
        "realm_access.roles"
    )
    oidc_roles: Annotated[dict[str, Role], Field(description="What each of those roles is here; as JSON.")] = (
        _OIDC_ROLES
    )
    oidc_timeout_s: Annotated[Positive, Field(description="How long the issuer may take to answer.")] = 10
    # How much a client may send
    requests_per_second: Annotated[Positive, Field(description="Of one client, on average.")] = 500
    largest_upload_mb: Annotated[Positive, Field(description="Of a request that carries files.")] = 2048
    largest_body_mb: Annotated[Positive, Field(description="Of any other request.")] = 10
    largest_headers_kb: Annotated[Positive, Field(description="Of a request's headers and address together.")] = 32
    upload_pause_s: Annotated[Positive, Field(description="How long a request may pause before its end.")] = 60
    # How it runs
    log_format: Literal["text", "json"] = Field(default="text", description="How a line of the log is written.")
    stop_s: float = Field(default=60.0, ge=0, le=3600, description="Seconds that requests have when the server ends.")
    audit_required: bool = Field(
        default=False, description="Refuse requests (507) while the audit log can't be written, instead of a warning."
    )
    metrics_token: SecretStr | None = Field(
        default=None, min_length=16, description="Bearer token for /metrics; without one only this machine reads them."
    )
    least_free_mb: int = Field(default=500, ge=0, description="Free space on a disk below which readiness warns.")
    refuse_identified: bool = Field(default=False, description="Refuse DICOM images that still say whose they are.")
    series_rest_s: float = Field(
        default=10.0, ge=0, le=86400, description="How long a DICOM series must not have changed to count as whole."
    )
    readers: int = Field(default=2, ge=0, le=64, description="Files read at a time; with 0, the server reads itself.")
    reader_memory_gb: float = Field(default=8.0, gt=0, description="What reading a file may take, in gigabytes.")
    reader_seconds: float = Field(default=60.0, gt=0, description="How long it may take, besides 1 s for each 5 MB.")
    measure_runtimes: bool = Field(
        default=True, description="Compare a new version's runtimes on this machine, and serve it by the quickest."
    )
    # The DICOMweb server
    pacs_timeout_s: Positive = Field(default=30.0, description="How long it may stay silent before it is given up.")
    pacs_list_s: float = Field(default=60.0, ge=0, description="After how long it is asked again which series it has.")
    pacs_max_gb: Positive = Field(default=4.0, description="The largest series, and answer to a viewer, taken from it.")
    pacs_ca: str = Field(default="", description="A file of authorities (PEM) to check its certificate against.")


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
        name = "_".join(str(part) for part in first["loc"])
        raise BadInput(f"LABELROUNDS_{name.upper()}: {first['msg'].lower()}") from None
    except SettingsError as error:
        name = str(error).split('"')[1]
        raise BadInput(f"LABELROUNDS_{name.upper()}: is not JSON, such as {_EXAMPLES.get(name, '[]')}") from None
