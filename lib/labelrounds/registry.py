"""One kind of registry for everything that a configuration or a client names: networks, strategies.

A member is registered by a decorator in the file that defines it; the files of the package are imported on
first use, so that adding a member is adding a file.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, create_model

from labelrounds.errors import BadInput

Member = TypeVar("Member", bound=Callable[..., Any])


class Registry(Generic[Member]):
    """Names to builders; a builder's keyword-only parameters are the options that a configuration may set."""

    def __init__(self, kind: str, package: str) -> None:
        self._kind = kind
        self._package = package
        self._members: dict[str, Member] = {}

    def register(self, name: str) -> Callable[[Member], Member]:
        """Return the decorator that enters a builder under ``name``.

        Raises:
            ValueError: the name is taken by another builder.
        """

        def enter(member: Member) -> Member:
            known = self._members.get(name)
            if known is not None and known.__module__ != member.__module__:
                raise ValueError(f"{self._kind} {name!r} is registered by {known.__module__} already")
            self._members[name] = member
            return member

        return enter

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        return sorted(self._members)

    def get(self, name: str) -> Member:
        """Return the builder of that name.

        Raises:
            BadInput: no such name; the message lists the names there are.
        """
        if name not in self._members and name not in self.names():
            raise BadInput(f"{self._kind} {name!r} is not one of {', '.join(sorted(self._members))}")
        return self._members[name]

    def options(self, name: str) -> type[BaseModel]:
        """Return a strict model of the keyword-only parameters of a builder, with their types and defaults."""
        member: Any = self.get(name)
        parameters = inspect.signature(member, eval_str=True).parameters.values()
        fields: dict[str, Any] = {
            p.name: (p.annotation, ... if p.default is p.empty else p.default)
            for p in parameters
            if p.kind is p.KEYWORD_ONLY
        }
        return create_model(f"{self._kind}_{name}", __config__=ConfigDict(extra="forbid", strict=True), **fields)
