"""The labelling rounds in a browser, by trame-slicer: for those without 3D Slicer on their desk.

``command`` starts it; ``access`` says who may come in; ``page`` is what they see and ``rounds`` what their clicks do;
``asking`` asks the server and says what came of it; ``desk`` holds the case on the screen. The requests, the
segmentations and the sentences of failures are those of the Slicer extension (``apps/slicer``), which finds by ``host``
what Slicer's core lacks. One process serves one user: all browser windows that come in see and steer the same round.
"""
