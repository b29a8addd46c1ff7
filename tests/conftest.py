"""Every test sees the packages as a server does: without what nobody uses here, which takes half of the start."""

import labelrounds.host  # noqa: F401 - first, whatever a test imports
