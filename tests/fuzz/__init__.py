"""Files and requests that nobody means well with, by the thousand."""
