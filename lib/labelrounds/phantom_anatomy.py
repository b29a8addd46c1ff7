"""The invented patient of ``labelrounds.phantoms``: HU and organ at any place in the body.

Reads like a dissection: ``_paint_body`` fills the body from the fat outwards in, and each organ is one function. All
shapes are ellipsoids and tubes in mm, in a patient of scale 1, and differ from patient to patient in place, size and
turn; then the whole is scaled and bent. ``x`` points to the patient's right, ``y`` to the front, ``z`` to the head.
"""

import numpy as np
import numpy.typing as npt

LABELS = ("liver", "spleen", "left_kidney", "right_kidney", "spine")

# Half axes of the body of a patient of scale 1, along R and A, in mm.
BODY_MM = (140.0, 101.0)

# HU without contrast agent, and in the portal venous phase.
_TISSUE_HU = {
    "fat": (-105, -105),
    "skin": (10, 15),
    "muscle": (54, 64),
    "liver": (58, 108),
    "spleen": (48, 118),
    "kidney": (33, 165),
    "pancreas": (38, 95),
    "blood": (42, 145),
    "bowel": (28, 60),
    "bile": (8, 8),
    "lesion": (38, 60),
    "disc": (85, 92),
    "spongiosa": (170, 185),
    "cortex": (480, 480),
    "cord": (32, 36),
}
AIR_HU, _GAS_HU, _COUCH_HU = -1000.0, -900.0, -30.0

Array = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]
_Point = tuple[float, float, float]


def anatomy(places: Array, patient: np.random.Generator) -> tuple[Array, npt.NDArray[np.uint8]]:
    """Return HU and label at ``(3, N)`` places (RAS mm from the isocentre)."""
    scale = patient.uniform(0.9, 1.06)
    bent = np.stack([each + 6 * waves(places, patient, (130, 220)) for each in places])
    bent += np.stack([1.5 * waves(places, patient, (40, 60), count=2) for _ in places])
    bent /= scale
    wide, deep = BODY_MM * patient.uniform(0.95, 1.05, 2)
    radius = np.sqrt((bent[0] / wide) ** 2 + (bent[1] / deep) ** 2)
    hu, label = np.full(radius.shape, AIR_HU), np.zeros(radius.shape, np.uint8)
    # The couch does not bend with the patient.
    below = places[1] + deep * scale + 10 - (places[0] / 40) ** 2
    hu[(np.abs(below) < 5) & (np.abs(places[0]) < 150)] = _COUCH_HU
    # Only the points of the body are worked on: it is under half of the field of view.
    body = radius < 1
    canvas = _Canvas(bent[:, body], radius[body], patient)
    _paint_body(canvas)
    hu[body], label[body] = canvas.hu, canvas.label
    return hu, label


def waves(places: Array, rng: np.random.Generator, length_mm: tuple[float, float], count: int = 3) -> Array:
    """Return a smooth random field in -1..1, ``count`` plane waves, at ``(3, N)`` places."""
    field = np.zeros(places.shape[1])
    for _ in range(count):
        x, y, z = rng.uniform(-1, 1, 3) + 1e-6
        scale = 2 * np.pi / (rng.uniform(*length_mm) * np.sqrt(x * x + y * y + z * z))
        field += np.sin(scale * (x * places[0] + y * places[1] + z * places[2]) + rng.uniform(0, 2 * np.pi))
    return field / count


class _Canvas:
    """The points of one body, on which tissue is painted; what is painted later covers what was there.

    Attributes:
        x, y, z: Right, anterior and superior of the middle of the body, mm in a patient of scale 1.
        radius: 0 at the axis of the body, 1 at the skin.
        hu: What is there, in HU.
        label: 0, or the organ's number.
    """

    def __init__(self, places: Array, radius: Array, patient: np.random.Generator) -> None:
        self.x, self.y, self.z = places
        self.radius = radius
        self.patient = patient
        self.label = np.zeros(radius.shape, np.uint8)
        enhancement = patient.uniform(0.35, 1.0)
        self.tissue_hu = {
            tissue: plain + enhancement * (portal - plain) + patient.uniform(-6, 6)
            for tissue, (plain, portal) in _TISSUE_HU.items()
        }
        self.hu = np.full(radius.shape, self.tissue_hu["fat"])

    def paint(self, where: _Mask, what: str | float, organ: str = "") -> None:
        """Fill ``where`` with a tissue (or a value in HU), as part of an organ or of none."""
        self.hu[where] = self.tissue_hu[what] if isinstance(what, str) else what
        self.label[where] = LABELS.index(organ) + 1 if organ else 0

    def tint(self, where: _Mask, what: str) -> None:
        """Fill ``where`` with a tissue, as part of the organ that it lies in."""
        self.hu[where] = self.tissue_hu[what]

    def around(self, centre: _Point, jitter_mm: float) -> _Point:
        """Move a point by up to ``jitter_mm`` along each axis, differently in each patient."""
        x, y, z = centre + self.patient.uniform(-jitter_mm, jitter_mm, 3)
        return x, y, z

    def size(self, radii: _Point, spread: float = 0.12) -> _Point:
        """Vary half axes by a share of up to ``spread``, differently in each patient."""
        x, y, z = radii * self.patient.uniform(1 - spread, 1 + spread, 3)
        return x, y, z

    def ellipsoid(self, centre: _Point, radii: _Point, turn_deg: float = 0, tilt_deg: float = 0) -> _Mask:
        """Return the points inside an ellipsoid, turned in the axial plane and then tilted in the coronal one."""
        x, y, z = self.x - centre[0], self.y - centre[1], self.z - centre[2]
        x, z = _turned(x, z, tilt_deg)
        x, y = _turned(x, y, turn_deg)
        return (x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2 < 1

    def tube(self, x: Array | float, y: Array | float, radii: tuple[float, float]) -> _Mask:
        """Return the points inside an elliptical tube that runs from foot to head through ``(x, y)``."""
        return ((self.x - x) / radii[0]) ** 2 + ((self.y - y) / radii[1]) ** 2 < 1


def _turned(a: Array, b: Array, angle_deg: float) -> tuple[Array, Array]:
    cos, sin = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return cos * a + sin * b, cos * b - sin * a


def _paint_body(canvas: _Canvas) -> None:
    wall = canvas.patient.uniform(0.85, 0.93)
    cavity = canvas.radius < wall - 0.09
    canvas.paint(canvas.radius > 0.97, "skin")
    canvas.paint((canvas.radius < wall) & ~cavity, "muscle")
    _paint_bowel(canvas, cavity)
    _paint_stomach_and_pancreas(canvas, cavity)
    _paint_liver(canvas, cavity)
    _paint_spleen(canvas, cavity)
    middle = _middle_of_spine(canvas)
    _paint_back_muscles(canvas, middle)
    for organ, side in (("right_kidney", 1), ("left_kidney", -1)):
        _paint_kidney(canvas, organ, side)
    _paint_great_vessels(canvas, middle)
    _paint_ribs(canvas, wall)
    _paint_spine(canvas, middle)


def _paint_bowel(canvas: _Canvas, cavity: _Mask) -> None:
    for side in (-1, 1):
        x, y, _ = canvas.around((side * 88, 0, 0), 8)
        wander = 6 * np.sin(canvas.z / canvas.patient.uniform(12, 18))
        colon = cavity & (canvas.z < -10) & canvas.tube(x + wander, y - wander, (17, 19))
        canvas.paint(colon, "bowel")
        canvas.paint(colon & (canvas.y > y + canvas.patient.uniform(0, 12)), _GAS_HU)
    for _ in range(16):
        centre = canvas.around((0, 34, -50), 34)
        centre = (centre[0] * 2, centre[1], centre[2])
        loop = cavity & canvas.ellipsoid(centre, canvas.size((17, 14, 14), 0.4), *canvas.patient.uniform(-60, 60, 2))
        canvas.paint(loop, "bowel")
        if canvas.patient.uniform() < 0.4:
            canvas.paint(loop & (canvas.y > centre[1] + 4), _GAS_HU)


def _paint_stomach_and_pancreas(canvas: _Canvas, cavity: _Mask) -> None:
    centre = canvas.around((-42, 32, 52), 8)
    stomach = cavity & canvas.ellipsoid(centre, canvas.size((36, 32, 34), 0.2), canvas.patient.uniform(0, 40))
    canvas.paint(stomach, "bowel")
    canvas.paint(stomach & (canvas.y > centre[1] + canvas.patient.uniform(4, 18)), _GAS_HU)
    pancreas = canvas.ellipsoid(canvas.around((-8, 2, 12), 6), canvas.size((50, 11, 12)), canvas.patient.uniform(0, 25))
    canvas.paint(pancreas, "pancreas")


def _paint_liver(canvas: _Canvas, cavity: _Mask) -> None:
    patient = canvas.patient
    right, left = canvas.around((70, 2, 32), 8), canvas.around((14, 44, 44), 10)
    lobes = canvas.ellipsoid(right, canvas.size((58, 74, 64)), 0, patient.uniform(-20, 5))
    lobes |= canvas.ellipsoid(left, canvas.size((60, 32, 28), 0.2), patient.uniform(-20, 10), patient.uniform(-25, 5))
    liver = cavity & lobes
    canvas.paint(liver, "liver", "liver")
    for _ in range(5):
        vein = canvas.ellipsoid(canvas.around(right, 28), (5, 5, 60), *patient.uniform(-80, 80, 2))
        canvas.tint(liver & vein, "blood")
    for _ in range(int(patient.integers(0, 4))):
        canvas.tint(liver & canvas.ellipsoid(canvas.around(right, 36), canvas.size((9, 9, 9), 0.5)), "lesion")
    canvas.paint(canvas.ellipsoid(canvas.around((44, 42, 2), 6), canvas.size((12, 15, 22), 0.25)), "bile")


def _paint_spleen(canvas: _Canvas, cavity: _Mask) -> None:
    centre = canvas.around((-86, -24, 44), 7)
    whole = canvas.ellipsoid(centre, canvas.size((34, 46, 42), 0.18), canvas.patient.uniform(-15, 15))
    # The hollow towards the stomach makes it a crescent.
    hollow = canvas.ellipsoid((centre[0] + 36, centre[1] + 18, centre[2]), canvas.size((34, 40, 60)))
    canvas.paint(cavity & whole & ~hollow, "spleen", "spleen")


def _paint_kidney(canvas: _Canvas, organ: str, side: int) -> None:
    """Paint a bean in fat, its sinus open towards the spine; the right one hangs lower, under the liver."""
    x, y, z = canvas.around((side * 60, -40, -20 if side > 0 else -4), 6)
    turn, tilt = -side * canvas.patient.uniform(15, 40), side * canvas.patient.uniform(5, 18)
    wide, deep, high = canvas.size((28, 23, 48))
    bean = canvas.ellipsoid((x, y, z), (wide, deep, high), turn, tilt)
    canvas.paint(canvas.ellipsoid((x, y, z), (wide + 6, deep + 6, high + 6), turn, tilt), "fat")
    sinus = canvas.ellipsoid((x - side * 18, y + 5, z), canvas.size((17, 10, 22), 0.25), turn, tilt)
    canvas.paint(bean & ~sinus, "kidney", organ)
    canvas.paint(bean & sinus, "fat")


def _middle_of_spine(canvas: _Canvas) -> tuple[Array, Array]:
    """Return where the spine runs, right and anterior in mm, at each point's height: it bends both ways."""
    sideways, forwards, phase = canvas.patient.uniform((-6, 4, 0), (6, 12, 2 * np.pi))
    x = sideways * np.sin(canvas.z / 50 + phase)
    return x, -50 + forwards * np.cos((canvas.z + 40) / 60)


def _paint_back_muscles(canvas: _Canvas, middle: tuple[Array, Array]) -> None:
    x, y = middle
    for side in (-1, 1):
        wide, deep, _ = canvas.size((25, 16, 1))
        canvas.paint(canvas.tube(x + side * 32, y - 26, (wide, deep)), "muscle")
        canvas.paint(canvas.tube(x + side * 33, y + 4, (12, 15)) & (canvas.z < 0), "muscle")


def _paint_great_vessels(canvas: _Canvas, middle: tuple[Array, Array]) -> None:
    x, y = middle
    for side, offset, calibre in ((-1, 12, 10), (1, 16, 11)):
        wide, deep, _ = canvas.size((calibre, calibre, 1), 0.2)
        canvas.paint(canvas.tube(x + side * offset, y + 27, (wide, deep)), "blood")


def _paint_ribs(canvas: _Canvas, wall: float) -> None:
    step_mm, start, slope = canvas.patient.uniform((24, 0, 0.5), (30, 1, 0.9))
    rank = (canvas.z - slope * np.abs(canvas.y - 10)) / step_mm + start
    inside = (canvas.radius > wall - 0.075) & (canvas.radius < wall - 0.02) & (np.abs(canvas.y) < 75)
    canvas.paint(inside & (rank % 1 < 0.38) & (canvas.z > -30), "cortex")


def _paint_spine(canvas: _Canvas, middle: tuple[Array, Array]) -> None:
    """Paint vertebral bodies, discs, arches and spinous processes; the canal and its cord are not the spine's."""
    x, y = middle
    wide, deep, _ = canvas.size((23, 17, 1))
    height_mm, start = canvas.patient.uniform((32, 0), (38, 1))
    rank = (canvas.z / height_mm + start) % 1
    disc = rank < 0.2
    column = canvas.tube(x, y, (wide, deep))
    canvas.paint(column, "cortex", "spine")
    canvas.tint(canvas.tube(x, y, (wide - 4, deep - 4)) & (rank > 0.3) & (rank < 0.9), "spongiosa")
    canvas.tint(column & disc, "disc")
    canal = y - deep - 6
    arch = canvas.tube(x, canal - 2, (17, 14)) & ~column & ~disc
    wings = canvas.tube(x, canal + 2, (38, 5)) & ~column & (rank > 0.45) & (rank < 0.8)
    process = canvas.tube(x, canal - 18, (5, 14)) & (rank < 0.75) & ~disc
    canvas.paint(arch | wings | process, "cortex", "spine")
    canvas.paint(canvas.tube(x, canal, (10, 8)) & ~column, "cord")
