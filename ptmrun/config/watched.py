"""Settings that note which of them are read, to find those that a user gives and nothing reads."""

from typing import Any

from ptmrun.config.schema import Config, Strict


class Watched:
    """Stands for settings of a run. The first read of a key is noted in `read` as its dotted name; later ones cost nothing, as
    the value is an attribute then. Each run has a set of its own."""

    def __init__(self, settings: Strict, read: set[str]):
        self.__dict__ |= {"bare": settings, "noted": read}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.bare, name)
        if name not in type(self.bare).model_fields:
            return value
        self.noted.add(f"{self.bare.section}.{name}" if self.bare.section else name)
        self.__dict__[name] = attribute = Watched(value, self.noted) if isinstance(value, Strict) else value
        return attribute

    def model_copy(self, update: dict[str, Any]) -> "Watched":
        return Watched(self.bare.model_copy(update=update), self.noted)

    def __deepcopy__(self, memo: Any) -> "Watched":
        return self


def watch(config: Any, read: set[str]) -> Any:
    """The config, whose reads are noted from here on."""
    return Watched(bare(config), read)


def bare(config: Any) -> Config:
    """The config itself."""
    return config.bare if isinstance(config, Watched) else config
