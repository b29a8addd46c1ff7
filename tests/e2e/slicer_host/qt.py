"""Stand in for PythonQt's `qt`: PySide6 with PythonQt's manners.

PythonQt shows every Qt property as a plain attribute (`box.currentText`, not `box.currentText()`), connects signals by
their C++ signature (`button.connect("clicked(bool)", slot)`) and converts what setters are given (`setEnabled("name")`,
`setValue(12.5)`). Widgets and timers are derived here, on first use, to do the same; all else is PySide6's own.
"""

import functools

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

# Getters that C++ calls as virtual functions: as attributes they would hide the function from Qt itself.
VIRTUAL_GETTERS = {"QWidget": {"sizeHint", "minimumSizeHint"}, "QProgressBar": {"text"}}
WITH_MANNERS = (QtWidgets.QWidget, QtCore.QTimer, QtGui.QAction, QtGui.QShortcut)
CONVERSIONS = {"bool": bool, "int": int, "QString": lambda value: "" if value is None else str(value)}


def _connect(self, signature, slot):
    name, _, arguments = signature.partition("(")
    # What a signature leaves out, as the state in "clicked()", is not handed over.
    getattr(self, name).connect((lambda *_: slot()) if arguments == ")" else slot)


def _keep_connect(subclass, **arguments):
    # PySide6 looks for QObject's own methods in an object's very class, past what that class inherits.
    subclass.connect = _connect


def _attribute(name):
    return property(lambda self: self.property(name), lambda self, value: self.setProperty(name, value))


def _setter(set_value, convert):
    @functools.wraps(set_value)
    def setter(self, value):
        set_value(self, convert(value))

    return setter


@functools.cache
def _with_manners(qt_class):
    """Derive a class of the same name that has PythonQt's attributes, setters and `connect`."""
    hidden = set().union(*(names for base, names in VIRTUAL_GETTERS.items() if _inherits(qt_class, base)))
    members = {
        "connect": _connect,
        "name": _attribute("objectName"),
        "__init_subclass__": classmethod(_keep_connect),
    }
    meta = qt_class.staticMetaObject
    for qt_property in map(meta.property, range(meta.propertyCount())):
        name = qt_property.name()
        if name not in hidden:
            members[name] = _attribute(name)
        setter, convert = f"set{name[0].upper()}{name[1:]}", CONVERSIONS.get(qt_property.typeName())
        if convert and hasattr(qt_class, setter):
            members[setter] = _setter(getattr(qt_class, setter), convert)
    return type(qt_class)(qt_class.__name__, (qt_class,), members)


def _inherits(qt_class, base):
    return any(ancestor.__name__ == base for ancestor in qt_class.__mro__)


class QUiLoader(QtUiTools.QUiLoader):
    """Build a .ui file's widgets from the classes that `qt`, `ctk` and `slicer` hold here."""

    def createWidget(self, class_name, parent=None, name=""):
        import ctk
        import slicer

        widget_class = getattr(ctk, class_name, None) or getattr(slicer, class_name, None) or __getattr__(class_name)
        widget = widget_class(parent)
        widget.setObjectName(name)
        return widget


def __getattr__(name):
    for module in (QtWidgets, QtGui, QtCore):
        if hasattr(module, name):
            found = getattr(module, name)
            derives = isinstance(found, type) and issubclass(found, WITH_MANNERS)
            return _with_manners(found) if derives else found
    raise AttributeError(f"qt has no {name}")
