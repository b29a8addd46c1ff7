"""The colours of the server's light; the sentence beside it says the same in words."""

GREY, GREEN, YELLOW, RED = "#808080", "#2e9e3f", "#d9a400", "#d03030"
