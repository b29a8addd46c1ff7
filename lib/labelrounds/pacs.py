"""The DICOMweb server that the studies come from: its address, login and limits, and what its failures mean to a user.

On the way of every image of a PACS: `labelrounds.dicomweb` asks it for series and sends segmentations back, and
`labelrounds.dicom_proxy` passes a viewer's requests on. Any thread may use it.

It is asked with a timeout, never by way of a redirect, and with its TLS certificate checked. The login comes from
``MONAI_LABEL_DICOMWEB_USERNAME`` and ``MONAI_LABEL_DICOMWEB_PASSWORD``, travels in a header and is in no address, log
or message. What a user sees of a failure: 503 where asking again may help, 404 where something is not there, else 409
or 400.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from labelrounds import host  # makes the next imports possible

# isort: split
from dicomweb_client import DICOMwebClient
from monailabel.config import settings as host_settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.dataset import Dataset
from pydicom.uid import UID

from labelrounds.atomic import disk_errors
from labelrounds.errors import BadInput, Conflict, LabelRoundsError, NotFound, TooLarge, Unreachable
from labelrounds.settings import ServerSettings, server_settings

__all__ = ["Pacs", "Series", "check_address", "host", "told"]
logger = logging.getLogger(__name__)

_CONNECT_S = 5.0
_LONGEST_FETCH_S = 1800.0
_PAGE = 1000
_MOST_SERIES = 200_000
_FIELDS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesDescription", "StudyDate")


@dataclass(frozen=True)
class Series:
    """A series on the server, as its list says.

    Attributes:
        instances: How many files it has, 0 where the server does not tell.
    """

    uid: str
    study: str
    patient: str = ""
    modality: str = ""
    description: str = ""
    date: str = ""
    instances: int = 0


def check_address(address: str) -> str:
    """Return the address of a DICOMweb server without a slash at its end.

    Raises:
        BadInput: no http or https address, or one that holds a name, a password or a query.
    """
    try:
        parts = urlsplit(address.strip())
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or bool(parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        raise BadInput("the DICOMweb server's address is none: http(s)://host[:port]/path is expected") from None
    if parts.username is not None or parts.password is not None:
        raise BadInput(
            "the address of the DICOMweb server holds a login, which would be seen in logs and process lists: set"
            " MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD instead"
        )
    if wrong:
        raise BadInput(f"DICOMweb server {address[:200]!r} is not an address like http(s)://host[:port]/path")
    return address.strip().rstrip("/")


class Pacs:
    """A DICOMweb server.

    Args:
        address: as `check_address` takes it.
        limits: by default those of this process's settings.
    """

    def __init__(self, address: str, limits: ServerSettings | None = None) -> None:
        self.address = check_address(address)
        self.limits = limits or server_settings()
        self.most_bytes = int(self.limits.pacs_max_gb * 1e9)
        self._session = _session(self.limits)
        self._client: DICOMwebClient = DICOMwebClientX(
            url=self.address,
            session=self._session,
            qido_url_prefix=host_settings.MONAI_LABEL_QIDO_PREFIX or None,
            wado_url_prefix=host_settings.MONAI_LABEL_WADO_PREFIX or None,
            stow_url_prefix=host_settings.MONAI_LABEL_STOW_PREFIX or None,
            timeout=self._timeout,
        )
        self._client.set_http_retry_params(retry=False)

    @property
    def _timeout(self) -> tuple[float, float]:
        return min(_CONNECT_S, self.limits.pacs_timeout_s), self.limits.pacs_timeout_s

    def search(self, filters: Mapping[str, Any]) -> list[Series]:
        """Return the series that match, such as ``{"Modality": "MR"}``, sorted by their UIDs.

        Raises:
            Unreachable: the server does not answer.
            Conflict: it refuses the login, or the question.
            BadInput: an answer that can't be understood.
        """
        found: dict[str, Series] = {}
        with told("the list of series"):
            for offset in range(0, _MOST_SERIES, _PAGE):
                page = self._client.search_for_series(
                    search_filters=dict(filters), fields=list(_FIELDS), limit=_PAGE, offset=offset
                )
                new = [one for one in map(_series, page) if one is not None and one.uid not in found]
                found |= {one.uid: one for one in new}
                if len(page) < _PAGE or not new:  # some servers know no offset, and give the same page again
                    break
        return [found[uid] for uid in sorted(found)]

    def headers(self, series: Series) -> list[Dataset]:
        """Return the headers of a series' files, without pixels; raises as `search` does, and `NotFound`."""
        with told(f"series {series.uid}"):
            found = self._client.retrieve_series_metadata(series.study, series.uid)
            return [Dataset.from_json(one, lambda *_: b"") for one in found]

    def fetch(self, series: Series, folder: Path) -> int:
        """Write the files of a series into a folder, named by their numbers, and return how many there are.

        Raises:
            Unreachable: the server does not answer, stopped in between, or sent fewer files than it has.
            NotFound: it has no such series any more.
            TooLarge: over ``LABELROUNDS_PACS_MAX_GB``.
            Conflict, BadInput: as `search`.
            OutOfSpace: the disk is full.
        """
        count, left, deadline = 0, self.most_bytes, time.monotonic() + _LONGEST_FETCH_S
        with disk_errors(folder), told(f"series {series.uid}"):
            for dataset in self._client.iter_series(series.study, series.uid):
                path = folder / f"{count:06}.dcm"
                dataset.save_as(path, enforce_file_format=True)
                count, left = count + 1, left - path.stat().st_size
                if left < 0:
                    raise TooLarge(
                        f"series {series.uid}: over {self.limits.pacs_max_gb:g} GB, the most that is fetched"
                        " (LABELROUNDS_PACS_MAX_GB)"
                    )
                if time.monotonic() > deadline:
                    raise Unreachable(f"series {series.uid}: not fetched within {_LONGEST_FETCH_S:g} s")
        if count < max(1, series.instances):
            raise Unreachable(f"series {series.uid}: the DICOMweb server sent {count} of {series.instances or 1} files")
        return count

    def store(self, dataset: Dataset) -> None:
        """Send one object (STOW-RS).

        Raises:
            Conflict: the server did not take it; its reason's number.
            Unreachable, BadInput: as `search`.
        """
        with told("storing the segmentation"):
            answer = self._client.store_instances([dataset])
            failed = answer.get("FailedSOPSequence") or []
            if failed or not answer.get("ReferencedSOPSequence"):
                reason = f"{int(failed[0].get('FailureReason', 0)):#06x}" if failed else "it names no stored object"
                raise Conflict(f"storing the segmentation: the DICOMweb server refused it ({reason})")

    def ask(self, path: str, query: Sequence[tuple[str, str]], accept: str) -> requests.Response:
        """Return the server's open answer to a GET; the caller closes it.

        Args:
            path: of checked segments below the server's address.
            query: names and values.
            accept: the media types that the viewer takes.

        Raises:
            LabelRoundsError: as `search` and `headers`; a redirect is a `Conflict`.
        """
        prefixes = host_settings.MONAI_LABEL_QIDO_PREFIX, host_settings.MONAI_LABEL_WADO_PREFIX
        prefix = prefixes[0 if query or path in ("studies", "series", "instances") else 1]
        address = "/".join(part for part in (self.address, prefix or "", path) if part)
        with told("the viewer's request"):
            answer = self._session.get(
                address,
                params=list(query),
                headers={"Accept": accept, "Accept-Encoding": "identity"},
                timeout=self._timeout,
                stream=True,
            )
            if not answer.ok:
                answer.close()
                answer.raise_for_status()
            return answer


class _OnceMore(HTTPAdapter):
    """Sends a request a second time where its connection broke before an answer came.

    A server closes connections that have rested, Orthanc after a second; one that it closes while it is taken up again
    is found broken. All that is asked here may be asked twice, storing an object included.
    """

    def send(self, request: requests.PreparedRequest, *how: Any, **options: Any) -> requests.Response:
        try:
            return super().send(request, *how, **options)
        except requests.ConnectionError as error:
            if isinstance(error, requests.Timeout | requests.exceptions.SSLError):
                raise
            return super().send(request, *how, **options)


def _session(limits: ServerSettings) -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _OnceMore())
    session.trust_env = False  # no login from ~/.netrc, no proxy that would see patients
    session.max_redirects = 0
    session.verify = limits.pacs_ca or True
    user, password = host_settings.MONAI_LABEL_DICOMWEB_USERNAME, host_settings.MONAI_LABEL_DICOMWEB_PASSWORD
    if user and password:
        session.auth = (user, password)
    return session


def _series(entry: dict[str, Any]) -> Series | None:
    """Return an entry of the list; None for one whose identifiers are none, which no path may be made of."""
    dataset = Dataset.from_json(entry)
    uid, study = str(dataset.get("SeriesInstanceUID", "")), str(dataset.get("StudyInstanceUID", ""))
    if not (UID(uid).is_valid and UID(study).is_valid):
        logger.warning("A series of the DICOMweb server is left out: its UIDs are missing or not valid")
        return None
    return Series(
        uid=uid,
        study=study,
        patient=str(dataset.get("PatientID", "") or "").strip(),
        modality=str(dataset.get("Modality", "") or ""),
        description=str(dataset.get("SeriesDescription", "") or ""),
        date=str(dataset.get("StudyDate", "") or ""),
        instances=int(dataset.get("NumberOfSeriesRelatedInstances", 0) or 0),
    )


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what goes wrong with the server into an error for the user, which names no address and no login."""
    try:
        yield
    except LabelRoundsError:
        raise
    except requests.HTTPError as error:
        raise _refusal(what, error.response.status_code if error.response is not None else 0) from error
    except requests.exceptions.SSLError as error:
        raise Unreachable(
            f"{what}: the DICOMweb server's TLS certificate is not trusted; LABELROUNDS_PACS_CA names its authority"
        ) from error
    except requests.Timeout as error:
        raise Unreachable(f"{what}: the DICOMweb server does not answer in time") from error
    except requests.TooManyRedirects as error:
        raise Conflict(f"{what}: the DICOMweb server redirects elsewhere, which is not followed") from error
    except (requests.RequestException, ConnectionError) as error:
        raise Unreachable(f"{what}: the DICOMweb server can't be reached, or broke off") from error
    except OSError:
        raise  # the disk
    except Exception as error:  # of the many kinds that parsers raise on a damaged answer
        raise BadInput(f"{what}: the DICOMweb server's answer can't be read ({type(error).__name__})") from error


def _refusal(what: str, status: int) -> LabelRoundsError:
    if status in (401, 403):
        return Conflict(
            f"{what}: the DICOMweb server refuses this server's login ({status}); an administrator sets"
            " MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD"
        )
    if status in (404, 410):
        return NotFound(f"{what}: not on the DICOMweb server")
    if status in (408, 429) or status >= 500:
        return Unreachable(f"{what}: the DICOMweb server answers {status}; try again later")
    return Conflict(f"{what}: the DICOMweb server answers {status}")
